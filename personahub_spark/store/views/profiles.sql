-- What is told of each published persona beyond its sentence, and which checks does that fail?
-- One row a persona and recipe. lang is the persona's; the sentence is what the hub publishes, whatever its profiles say.
SELECT
  h.persona_id, h.text AS persona, h.lang, h.hop, p.background, p.history, p.preferences, p.skills,
  p.checks, size(p.checks) = 0 AS passed, p.recipe, p.prompt_version,
  c.model, c.model_returned, c.terms AS model_terms, c.cost_microusd, p.call_key, p.run_id
FROM {persona_profiles} AS p
JOIN {hub} AS h ON h.persona_id = p.persona_id
LEFT JOIN {llm_calls} AS c ON c.request_key = p.call_key
