-- Where does a persona come from, through how many hops, under which licence, by which prompt and model, at what cost?
-- One row an origin. Of an origin that is a persona the source is where that one was first found, and path leads there.
-- Origins that were withdrawn are left out, unless the persona was withdrawn itself. Where the first way was withdrawn,
-- source and path are those of the way that stands for it (persona_reroutes); its length may differ from hop.
SELECT
  o.persona_id, p.text AS persona, o.hop, o.source_kind, o.relation, o.relation_words, o.verb, o.granularity, o.chunk,
  d.doc_id, d.title, d.url, coalesce(d.source, i.source) AS source, coalesce(d.licence, i.licence) AS licence,
  coalesce(d.lang, i.lang) AS source_lang, coalesce(d.file, i.file) AS file, coalesce(d.line, i.line) AS line,
  parent.persona_id AS parent_id, parent.text AS parent,
  root.persona_id AS root_id, root.text AS root,
  CASE
    WHEN o.source_kind = 'persona' THEN concat(coalesce(r.path, a.path, array()), array(o.source_key)) ELSE array()
  END AS path,
  o.prompt_version, c.model, c.model_returned, c.terms AS model_terms, c.cost_microusd, o.call_key, o.run_id
FROM {persona_origins} AS o
JOIN {personas} AS p ON p.persona_id = o.persona_id
LEFT JOIN {withdrawn} AS gone ON gone.kind = 'persona' AND gone.item = o.persona_id
LEFT JOIN {withdrawn} AS parent_gone
  ON o.source_kind = 'persona' AND parent_gone.kind = 'persona' AND parent_gone.item = o.source_key
LEFT JOIN {personas} AS parent ON o.source_kind = 'persona' AND parent.persona_id = o.source_key
LEFT JOIN {persona_ancestors} AS a ON o.source_kind = 'persona' AND a.persona_id = o.source_key
LEFT JOIN {persona_reroutes} AS r ON o.source_kind = 'persona' AND r.persona_id = o.source_key
LEFT JOIN {personas} AS root ON root.persona_id = coalesce(r.root_id, a.root_id, parent.persona_id)
LEFT JOIN {persona_reroutes} AS again ON again.persona_id = root.persona_id
LEFT JOIN {document_places} AS d ON d.doc_id = coalesce(again.origin, root.first_origin, o.source_key)
LEFT JOIN {persona_imports} AS i ON i.source_key = coalesce(again.origin, root.first_origin, o.source_key)
LEFT JOIN {withdrawals} AS w ON w.kind = 'source' AND w.value = i.source
LEFT JOIN {withdrawals} AS v ON v.kind = 'licence' AND v.value = i.licence
LEFT JOIN {llm_calls} AS c ON c.request_key = o.call_key
WHERE gone.item IS NOT NULL
  OR CASE
    WHEN o.source_kind = 'persona' THEN parent_gone.item IS NULL
    ELSE NOT coalesce(d.withdrawn, coalesce(w.value, v.value) IS NOT NULL)
  END
