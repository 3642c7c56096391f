-- How did the calls of each step and model end, how often, and what did that cost?
SELECT
  step, model, status, coalesce(answer_class, error_class) AS class,
  count(*) AS requests,
  count(*) / sum(count(*)) OVER (PARTITION BY step, model) AS share,
  sum(attempts) AS attempts,
  count_if(cost_microusd IS NULL) AS requests_without_cost,
  sum(cost_microusd) / 1000000 AS cost_usd
FROM {llm_calls}
GROUP BY step, model, status, coalesce(answer_class, error_class)
