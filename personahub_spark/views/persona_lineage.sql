-- Where does a persona come from, under which licence, by which prompt and model, and at what cost?
SELECT
  o.persona_id, p.text AS persona, o.hop, o.source_kind, o.relation, o.verb, o.granularity,
  d.doc_id, d.title, d.url, coalesce(d.source, i.source) AS source, coalesce(d.licence, i.licence) AS licence,
  coalesce(d.lang, i.lang) AS source_lang, coalesce(d.file, i.file) AS file, coalesce(d.line, i.line) AS line,
  parent.persona_id AS parent_id, parent.text AS parent,
  o.prompt_version, c.model, c.model_returned, c.terms AS model_terms, c.cost_microusd, o.call_key, o.run_id
FROM {persona_origins} AS o
JOIN {personas} AS p ON p.persona_id = o.persona_id
LEFT JOIN {documents} AS d ON o.source_kind = 'document' AND d.doc_id = o.source_key
LEFT JOIN {persona_imports} AS i ON o.source_kind = 'import' AND i.source_key = o.source_key
LEFT JOIN {personas} AS parent ON o.source_kind = 'persona' AND parent.persona_id = o.source_key
LEFT JOIN {llm_calls} AS c ON c.request_key = o.call_key
