-- Under which source and licence does each text stand, and was it withdrawn?
-- Those that it was first found under; where these were withdrawn, the next ones that were not.
WITH others AS (
  SELECT s.doc_id, min(struct(s.created_at, s.file, s.line, s.source, s.licence, s.title, s.url)) AS place
  FROM {document_sources} AS s
  LEFT ANTI JOIN {withdrawals} AS w ON w.kind = 'source' AND w.value = s.source
  LEFT ANTI JOIN {withdrawals} AS v ON v.kind = 'licence' AND v.value = s.licence
  GROUP BY s.doc_id
)
SELECT
  d.doc_id, d.text,
  CASE WHEN o.doc_id IS NULL THEN d.title ELSE o.place.title END AS title,
  CASE WHEN o.doc_id IS NULL THEN d.url ELSE o.place.url END AS url,
  d.lang,
  CASE WHEN o.doc_id IS NULL THEN d.licence ELSE o.place.licence END AS licence,
  CASE WHEN o.doc_id IS NULL THEN d.source ELSE o.place.source END AS source,
  CASE WHEN o.doc_id IS NULL THEN d.file ELSE o.place.file END AS file,
  CASE WHEN o.doc_id IS NULL THEN d.line ELSE o.place.line END AS line,
  t.value IS NOT NULL OR (o.doc_id IS NULL AND coalesce(w.value, v.value) IS NOT NULL) AS withdrawn,
  d.run_id, d.created_at
FROM {documents} AS d
LEFT JOIN {withdrawals} AS w ON w.kind = 'source' AND w.value = d.source
LEFT JOIN {withdrawals} AS v ON v.kind = 'licence' AND v.value = d.licence
LEFT JOIN {withdrawals} AS t ON t.kind = 'document' AND t.value = d.doc_id
LEFT JOIN others AS o ON o.doc_id = d.doc_id AND coalesce(w.value, v.value) IS NOT NULL
