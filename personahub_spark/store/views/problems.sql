-- Which math problems are there, for whom, and which checks does each pass?
SELECT
  s.synthesis_id, s.fields['problem'] AS problem, s.variant, s.topic, s.persona_id, p.text AS persona,
  NOT array_contains(s.checks, 'missing_prefix') AS prefix_present,
  NOT array_contains(s.checks, 'contains_solution') AS no_solution_inside,
  NOT array_contains(s.checks, 'too_many_subproblems') AS at_most_two_subproblems,
  NOT array_contains(s.checks, 'no_question') AS question_present,
  NOT array_contains(s.checks, 'persona_unused') AS persona_used,
  NOT array_contains(s.checks, 'garbled_latex') AS latex_whole,
  NOT array_contains(s.checks, 'cut_off') AS not_cut_off,
  size(s.checks) = 0 AS passed,
  s.prompt_version, c.model, c.model_returned, c.terms AS model_terms, c.cost_microusd, s.call_key, s.run_id
FROM {syntheses} AS s
JOIN {personas} AS p ON p.persona_id = s.persona_id
LEFT JOIN {llm_calls} AS c ON c.request_key = s.call_key
LEFT ANTI JOIN {withdrawn} AS w ON w.kind = 'synthesis' AND w.item = s.synthesis_id
WHERE s.task = 'math'
