-- What was not used, at which stage, and why?
-- A text that an order of rows takes is used, whatever checks it fails and whatever other orders make of it. A duplicate
-- stays listed when the text that was taken in its place is withdrawn; the next run of the order decides anew.
-- what names the document, file or persona as a reader knows it; item has the ids to join by. A failed call is named by
-- its step and model: the ledger has the hash of each question, and no question. What a failed call was about is among
-- those of which there is no answer: SELECT title, file, line FROM documents_in_use WHERE doc_id NOT IN (SELECT source_key
-- FROM persona_origins) AND doc_id NOT IN (SELECT left(line, 64) FROM quarantine).
WITH places AS (  -- what a persona may have been found in, by name
  SELECT doc_id AS source_key, coalesce(title, url, concat(element_at(split(file, '/'), -1), ':', line)) AS name
  FROM {document_places}
  UNION ALL
  SELECT source_key, concat(source, ', ', element_at(split(file, '/'), -1), ':', line) FROM {persona_imports}
  UNION ALL
  SELECT persona_id, text FROM {personas}
),
taken AS (SELECT synthesis_id FROM {acceptances} WHERE duplicate_of IS NULL),
passed_over AS (  -- orders that changed leave their rows behind, so a text is listed once, with what was decided last
  SELECT *, row_number() OVER (PARTITION BY synthesis_id ORDER BY created_at DESC, order_id) AS nth
  FROM {acceptances} WHERE duplicate_of IS NOT NULL
)
SELECT
  'unreadable' AS stage,
  CASE
    WHEN p.persona_id IS NOT NULL THEN p.text
    WHEN d.source_key IS NOT NULL THEN
      concat(d.name, coalesce(concat(', part ', 1 + cast(nullif(regexp_extract(q.line, ':(\\d+)', 1), '') AS int)), ''))
    ELSE concat(element_at(split(q.source, '/'), -1), ':', q.line)
  END AS what,
  q.reason, q.raw AS detail, concat(q.source, ':', q.line) AS item, q.run_id, q.created_at
FROM {quarantine} AS q
LEFT JOIN places AS d ON q.source LIKE 'extract_personas:%' AND d.source_key = substring(q.line, 1, 64)
LEFT JOIN {syntheses} AS a
  ON (q.source LIKE 'synthesize:%' OR q.source LIKE 'judge_texts:%') AND a.synthesis_id = substring(q.line, 1, 64)
LEFT JOIN {personas} AS p
  ON q.source NOT LIKE 'extract_personas:%' AND p.persona_id = coalesce(a.persona_id, substring(q.line, 1, 64))
UNION ALL
SELECT
  'call failed', concat(step, ', ', model), error_class, error_message, request_key, run_id, created_at
FROM {llm_calls} WHERE status = 'failed'
UNION ALL
SELECT
  'persona flagged', p.text, array_join(p.quality_flags, ', '), concat('found in: ', o.name), p.persona_id,
  p.run_id, p.created_at
FROM {personas} AS p LEFT JOIN places AS o ON o.source_key = p.first_origin
WHERE size(p.quality_flags) > 0
UNION ALL
SELECT 'persona removed', p.text, r.tier, concat('duplicate of: ', k.text), r.persona_id, r.run_id, r.created_at
FROM {persona_removals} AS r
JOIN {personas} AS p ON p.persona_id = r.persona_id
JOIN {personas} AS k ON k.persona_id = r.kept_id
UNION ALL
SELECT
  'synthesis failed checks', p.text, array_join(s.checks, ', '), s.text, s.synthesis_id, s.run_id, s.created_at
FROM {syntheses} AS s
LEFT JOIN {personas} AS p ON p.persona_id = s.persona_id
LEFT ANTI JOIN {withdrawn} AS w ON w.kind = 'synthesis' AND w.item = s.synthesis_id
LEFT ANTI JOIN taken AS t ON t.synthesis_id = s.synthesis_id
WHERE size(s.checks) > 0
UNION ALL
SELECT
  'synthesis not accepted', p.text, 'duplicate', concat('same text as: ', k.text), a.synthesis_id, a.run_id, a.created_at
FROM passed_over AS a
JOIN {syntheses} AS k ON k.synthesis_id = a.duplicate_of
LEFT JOIN {personas} AS p ON p.persona_id = a.persona_id
LEFT ANTI JOIN {withdrawn} AS w ON w.kind = 'synthesis' AND w.item = a.synthesis_id
LEFT ANTI JOIN taken AS t ON t.synthesis_id = a.synthesis_id
WHERE a.nth = 1
UNION ALL
SELECT
  concat(w.kind, ' withdrawn'), p.text, 'withdrawn', s.text, w.item, w.run_id, w.created_at
FROM {withdrawn} AS w
LEFT JOIN {syntheses} AS s ON w.kind = 'synthesis' AND s.synthesis_id = w.item
LEFT JOIN {personas} AS p ON p.persona_id = coalesce(s.persona_id, w.item)
WHERE w.kind <> 'removal'
