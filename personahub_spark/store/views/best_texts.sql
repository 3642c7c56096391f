-- Which of several texts for one persona, or about one row, is the best, by checks and then by judges?
-- One row for each task, recipe and subject (a persona, or a row of another task): the text that fails the fewest checks; of those the one with the highest
-- score, the mean of all judges that could be read (a text without a score comes after any with one); of equal ones the
-- first sample. Withdrawn texts are left out.
WITH scores AS (SELECT synthesis_id, avg(score) AS score FROM {judgements} GROUP BY synthesis_id),
ranked AS (
  SELECT
    s.*, j.score,
    count(*) OVER (PARTITION BY s.task, s.recipe, s.subject_id) AS samples,
    row_number() OVER (
      PARTITION BY s.task, s.recipe, s.subject_id
      ORDER BY size(s.checks), j.score DESC NULLS LAST, s.sample, s.synthesis_id
    ) AS place
  FROM {syntheses} AS s
  LEFT JOIN scores AS j ON j.synthesis_id = s.synthesis_id
  LEFT ANTI JOIN {withdrawn} AS w ON w.kind = 'synthesis' AND w.item = s.synthesis_id
)
SELECT
  r.task, r.recipe, r.subject_id, r.persona_id, p.text AS persona, r.synthesis_id, r.sample, r.samples, r.score, r.checks,
  size(r.checks) = 0 AS passed, r.options, r.text, r.output, r.call_key, r.run_id
FROM ranked AS r
JOIN {personas} AS p ON p.persona_id = r.persona_id
WHERE r.place = 1
