-- Which rows do orders of rows that pass take, in their order?
-- No two rows of an order are the same text. Rows of personas that have left the hub are left out; the next run of the order takes others for them.
SELECT
  a.order_id, a.rank, a.tries, s.task, s.options, s.synthesis_id, s.persona_id, h.text AS persona,
  s.second_persona_id, s.text, s.output, s.checks, s.recipe, s.call_key, a.run_id
FROM {acceptances} AS a
JOIN {syntheses} AS s ON s.synthesis_id = a.synthesis_id
JOIN {hub} AS h ON h.persona_id = a.persona_id
LEFT ANTI JOIN {withdrawn} AS w ON w.kind = 'synthesis' AND w.item = s.synthesis_id
WHERE a.duplicate_of IS NULL
