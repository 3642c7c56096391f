-- Which checks and quality rules were failed how often, and by what, for example?
-- kind: persona (a quality rule flagged it), or the task of a text. One row may fail several. Texts that were withdrawn
-- are left out; the example is that of the smallest id.
WITH judged AS (
  SELECT 'persona' AS kind, quality_flags AS failed, persona_id AS id, text FROM {personas}
  UNION ALL
  SELECT s.task, s.checks, s.synthesis_id, s.text FROM {syntheses} AS s
  LEFT ANTI JOIN {withdrawn} AS w ON w.kind = 'synthesis' AND w.item = s.synthesis_id
),
totals AS (SELECT kind, count(*) AS judged FROM judged GROUP BY kind),
failures AS (SELECT kind, explode(failed) AS `check`, id, text FROM judged)
SELECT f.kind, f.`check`, count(*) AS count, t.judged, min_by(f.text, f.id) AS example, min(f.id) AS example_id
FROM failures AS f JOIN totals AS t ON t.kind = f.kind
GROUP BY f.kind, f.`check`, t.judged
