-- How many texts of each task are nearly the same as another one, and which are the least alike, for example?
-- kind: text (the same numbers), template (other numbers) or topic (other words); share: of the task's texts. Withdrawn texts are left out.
WITH texts AS (
  SELECT s.task, s.synthesis_id, s.text FROM {syntheses} AS s
  LEFT ANTI JOIN {withdrawn} AS w ON w.kind = 'synthesis' AND w.item = s.synthesis_id
),
totals AS (SELECT task, count(*) AS texts FROM texts GROUP BY task),
pairs AS (
  SELECT
    s.task, d.kind, d.similarity,
    struct(d.similarity, d.synthesis_id, s.text, d.duplicate_of, k.text AS kept_text) AS pair
  FROM {synthesis_duplicates} AS d
  JOIN texts AS s ON s.synthesis_id = d.synthesis_id
  JOIN texts AS k ON k.synthesis_id = d.duplicate_of
),
kinds AS (SELECT task, kind, count(*) AS count, min(pair) AS pair FROM pairs GROUP BY task, kind)
SELECT
  k.task, k.kind, k.count, t.texts, k.count / t.texts AS share, k.pair.similarity AS lowest_similarity,
  k.pair.text AS example, k.pair.kept_text AS example_kept, k.pair.synthesis_id AS example_id
FROM kinds AS k JOIN totals AS t ON t.task = k.task
