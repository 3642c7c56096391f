-- What was spent, by step and model, and what did one kept row of it cost?
-- A conversation counts for the model that replied last.
WITH kept AS (
  SELECT min(o.call_key) AS call_key, 1 AS kept_rows  -- a persona counts once, for the call that found it first
  FROM {persona_origins} AS o JOIN {hub} AS h ON h.persona_id = o.persona_id AND h.first_origin = o.source_key
  GROUP BY o.persona_id
  UNION ALL
  SELECT s.call_key, 1 AS kept_rows FROM {syntheses} AS s
  LEFT ANTI JOIN {withdrawn} AS w ON w.kind = 'synthesis' AND w.item = s.synthesis_id
  WHERE size(s.checks) = 0
  UNION ALL
  SELECT j.call_key, 1 AS kept_rows FROM {judgements} AS j
  LEFT ANTI JOIN {withdrawn} AS w ON w.kind = 'synthesis' AND w.item = j.synthesis_id
),
kept_by_call AS (SELECT call_key, sum(kept_rows) AS kept_rows FROM kept GROUP BY call_key)
SELECT
  c.step, c.model, c.endpoint,
  count(*) AS requests,
  count_if(c.status = 'failed') AS failed_requests,
  sum(c.attempts) AS attempts,
  sum(c.input_tokens) AS input_tokens,
  sum(c.cached_tokens) AS cached_tokens,
  sum(c.output_tokens) AS output_tokens,
  sum(c.reasoning_tokens) AS reasoning_tokens,
  count_if(c.cost_microusd IS NULL) AS requests_without_cost,
  sum(c.cost_microusd) / 1000000 AS cost_usd,
  coalesce(sum(k.kept_rows), 0) AS kept_rows,
  sum(c.cost_microusd) / 1000000 / nullif(sum(k.kept_rows), 0) AS cost_usd_per_kept_row
FROM {llm_calls} AS c
LEFT JOIN kept_by_call AS k ON k.call_key = c.request_key
GROUP BY c.step, c.model, c.endpoint
