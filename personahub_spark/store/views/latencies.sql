-- How long do calls take at each address of a model, in milliseconds of the last attempt?
SELECT
  model, endpoint,
  count(*) AS answers,
  percentile_approx(latency_ms, 0.5) AS p50_ms,
  percentile_approx(latency_ms, 0.9) AS p90_ms,
  percentile_approx(latency_ms, 0.99) AS p99_ms,
  max(latency_ms) AS longest_ms,
  avg(output_tokens) AS mean_output_tokens
FROM {llm_calls} WHERE status = 'answered'
GROUP BY model, endpoint
