-- Which documents may personas be taken from?
-- Those that were not withdrawn themselves, and have a source under a licence that nobody withdrew.
SELECT doc_id, text, title, url, lang, licence, source, file, line, run_id, created_at
FROM {document_places} WHERE NOT withdrawn
