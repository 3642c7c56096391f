-- Which documents may personas be taken from?
-- Those that nobody withdrew, by source, licence or id.
SELECT d.*
FROM {documents} AS d
LEFT ANTI JOIN {withdrawals} AS w
  ON (w.kind = 'source' AND w.value = d.source)
  OR (w.kind = 'licence' AND w.value = d.licence)
  OR (w.kind = 'document' AND w.value = d.doc_id)
