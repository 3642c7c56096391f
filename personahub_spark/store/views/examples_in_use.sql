-- Which examples may prompts show, and for which persona was each written?
-- Those of sources and licences that nobody withdrew. persona: their own, else the inferred one; null: none so far.
SELECT
  e.example_id, e.task, e.text, coalesce(e.persona, i.persona) AS persona,
  e.persona IS NULL AND i.persona IS NOT NULL AS persona_is_inferred,
  e.source, e.licence, e.file, e.line, i.call_key AS persona_call_key, e.run_id, e.created_at
FROM {examples} AS e
LEFT JOIN {example_personas} AS i ON i.example_id = e.example_id
LEFT ANTI JOIN {withdrawals} AS w ON w.kind = 'source' AND w.value = e.source
LEFT ANTI JOIN {withdrawals} AS v ON v.kind = 'licence' AND v.value = e.licence
