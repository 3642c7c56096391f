-- Which scores did judges give the texts, and why?
-- score: 1 to 5; null where the judge's answer could not be read, and failure then says why. Means leave nulls out.
-- recipe is the text's, judge_recipe the judge's: its prompt, model and sampling. Withdrawn texts are left out.
WITH answers AS (
  SELECT synthesis_id, judge, score, reason, NULL AS failure, recipe, prompt_version, call_key, run_id FROM {judgements}
  UNION ALL
  SELECT
    q.line, substring_index(c.prompt_version, '-', 1), NULL, NULL, q.reason, substring_index(q.source, ':', -1),
    c.prompt_version, q.call_key, q.run_id
  FROM {quarantine} AS q JOIN {llm_calls} AS c ON c.request_key = q.call_key
  WHERE q.source LIKE 'judge_texts:%'
)
SELECT
  s.task, s.recipe, s.synthesis_id, s.persona_id, p.text AS persona, s.text, s.checks,
  a.judge, a.score, a.reason, a.failure, a.recipe AS judge_recipe, a.prompt_version, c.model AS judge_model,
  c.cost_microusd, a.call_key, a.run_id
FROM answers AS a
JOIN {syntheses} AS s ON s.synthesis_id = a.synthesis_id
JOIN {personas} AS p ON p.persona_id = s.persona_id
LEFT JOIN {llm_calls} AS c ON c.request_key = a.call_key
LEFT ANTI JOIN {withdrawn} AS w ON w.kind = 'synthesis' AND w.item = s.synthesis_id
