-- What did each run spend, by step and model, and how much of the endpoint's limit did it use?
SELECT
  c.run_id, c.step, c.model, min(r.created_at) AS started_at, min(r.duration_s) AS duration_s,
  count(*) AS requests,
  sum(c.input_tokens) AS input_tokens,
  sum(c.output_tokens) AS output_tokens,
  count_if(c.status = 'answered' AND c.cost_microusd IS NULL) AS answers_without_cost,
  sum(c.cost_microusd) / 1000000 AS cost_usd,
  min(r.limit_share) AS limit_share
FROM {llm_calls} AS c
LEFT JOIN {runs} AS r ON r.run_id = c.run_id AND r.step = c.step
GROUP BY c.run_id, c.step, c.model
