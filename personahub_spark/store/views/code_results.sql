-- Of which code do how many of its tests pass?
-- Code and tests are of one model, so passed_share is a number to look at, and no verdict; null: there are no tests.
-- status: ok, or how the first run ended that did not come to its test. error is text of the program.
SELECT
  r.synthesis_id, r.tests, r.passed, r.passed / nullif(r.tests, 0) AS passed_share, r.status, r.sandbox_level,
  r.seconds, r.error,
  get_json_object(s.output, '$.question') AS question, get_json_object(s.output, '$.function') AS function,
  get_json_object(s.output, '$.tests') AS test_code,
  s.checks, s.persona_id, p.text AS persona, c.model, s.recipe, s.call_key, r.run_id
FROM {code_runs} AS r
JOIN {syntheses} AS s ON s.synthesis_id = r.synthesis_id
JOIN {personas} AS p ON p.persona_id = s.persona_id
LEFT JOIN {llm_calls} AS c ON c.request_key = s.call_key
LEFT ANTI JOIN {withdrawn} AS w ON w.kind = 'synthesis' AND w.item = s.synthesis_id
