-- What did each run spend, by step and model, how much of the endpoint's limit did it use, and what did it pay to no end?
WITH calls AS (
  SELECT
    run_id, step, model,
    count(*) AS requests,
    sum(input_tokens) AS input_tokens,
    sum(output_tokens) AS output_tokens,
    count_if(cost_microusd IS NULL) AS requests_without_cost,
    sum(cost_microusd) / 1000000 AS cost_usd
  FROM {llm_calls}
  GROUP BY run_id, step, model
),
steps AS (  -- a step may have asked several models, and may have run twice
  SELECT
    run_id, step, min(created_at) AS started_at, sum(duration_s) AS duration_s, max(limit_share) AS limit_share,
    sum(put_off_input_tokens + put_off_output_tokens) AS put_off_tokens,
    CASE WHEN count(*) = count(put_off_cost_microusd) THEN sum(put_off_cost_microusd) / 1000000 END AS put_off_cost_usd
  FROM {runs}
  GROUP BY run_id, step
)
SELECT
  coalesce(c.run_id, s.run_id) AS run_id, coalesce(c.step, s.step) AS step, c.model,
  s.started_at, s.duration_s,
  coalesce(c.requests, 0) AS requests, c.input_tokens, c.output_tokens,
  coalesce(c.requests_without_cost, 0) AS requests_without_cost, c.cost_usd,
  s.limit_share,
  s.put_off_tokens AS step_put_off_tokens, s.put_off_cost_usd AS step_put_off_cost_usd
FROM calls AS c
FULL OUTER JOIN steps AS s ON s.run_id = c.run_id AND s.step = c.step
WHERE c.run_id IS NOT NULL OR s.put_off_tokens > 0
