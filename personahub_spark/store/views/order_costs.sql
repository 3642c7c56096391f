-- What does a row that passes cost, with the answers that did not pass?
-- Orders of one recipe share their answers, so each of them counts all. Cost is null where a call's cost is unknown.
-- duplicates: answers that pass, but are the same text as a row that was taken before. Of a conversation all calls count; of one that could not be read, only the last one.
WITH answers AS (
  SELECT recipe, call_key, coalesce(turn_calls, array(call_key)) AS calls
  FROM {syntheses} WHERE call_key IS NOT NULL
  UNION ALL
  SELECT substring_index(source, ':', -1), call_key, array(call_key) FROM {quarantine} WHERE source LIKE 'synthesize:%'
),
asked AS (SELECT DISTINCT recipe, call_key AS answer, explode(calls) AS call_key FROM answers),
costs AS (
  SELECT
    t.recipe, count(DISTINCT t.answer) AS tries, sum(c.input_tokens) + sum(c.output_tokens) AS tokens,
    CASE WHEN count(c.cost_microusd) = count(*) THEN sum(c.cost_microusd) END AS cost_microusd
  FROM asked AS t
  JOIN {llm_calls} AS c ON c.request_key = t.call_key
  GROUP BY t.recipe
),
orders AS (
  SELECT order_id, task, recipe, count_if(duplicate_of IS NULL) AS rows, count(duplicate_of) AS duplicates
  FROM {acceptances} GROUP BY order_id, task, recipe
)
SELECT
  o.order_id, o.task, o.recipe, o.rows, o.duplicates, c.tries, c.tokens, c.cost_microusd,
  c.tries / o.rows AS tries_per_row, c.tokens / o.rows AS tokens_per_row,
  c.cost_microusd / o.rows AS cost_microusd_per_row
FROM orders AS o
JOIN costs AS c ON c.recipe = o.recipe
