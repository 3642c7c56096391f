-- How did the personas answer a survey with choices: all of them, and by each of their labels?
-- Shares with 95 % intervals (Wilson). Answers that fail a check, and those of personas that left the hub, do not count.
-- This is no poll: personas of a model agree with each other more than people do, and the model leans to some answers.
WITH answers AS (
  SELECT
    s.recipe, s.options['question'] AS question,
    get(filter(
      transform(split(s.options['choices'], '[;；]'), choice -> trim(choice)),
      choice -> lower(choice) = lower(trim(BOTH ' .。' FROM get_json_object(s.output, '$.answer')))
    ), 0) AS answer,
    concat(
      array(
        named_struct('label', 'all', 'value', 'all'),
        named_struct('label', 'lang', 'value', coalesce(h.lang, 'unknown')),
        named_struct('label', 'hop', 'value', string(h.hop))
      ),
      coalesce(transform(map_entries(i.labels), e -> named_struct('label', e.key, 'value', e.value)), array())
    ) AS labels
  FROM {syntheses} AS s
  JOIN {hub} AS h ON h.persona_id = s.persona_id
  LEFT JOIN {persona_imports} AS i ON i.source_key = h.first_origin
  LEFT ANTI JOIN {withdrawn} AS w ON w.kind = 'synthesis' AND w.item = s.synthesis_id
  WHERE s.task = 'survey' AND s.options['answers'] = 'choices' AND size(s.checks) = 0
),
labelled AS (SELECT recipe, question, answer, inline(labels) FROM answers WHERE answer IS NOT NULL),
counts AS (
  SELECT
    recipe, question, label, value, answer, count(*) AS answers,
    sum(count(*)) OVER (PARTITION BY recipe, question, label, value) AS asked
  FROM labelled
  GROUP BY recipe, question, label, value, answer
),
intervals AS (
  SELECT
    *, answers / asked AS share,
    (answers / asked + 1.9208 / asked) / (1 + 3.8416 / asked) AS middle,
    1.96 * sqrt((answers / asked) * (1 - answers / asked) / asked + 0.9604 / (asked * asked)) / (1 + 3.8416 / asked) AS half
  FROM counts
)
SELECT
  question, label, value, answer, answers, asked, share, greatest(middle - half, 0) AS low, least(middle + half, 1) AS high,
  recipe
FROM intervals
