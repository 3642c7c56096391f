-- Which personas are published?
-- Those that break no quality rule, are no duplicate of another and were not withdrawn.
SELECT p.persona_id, p.text, p.lang, p.hop, p.first_origin, p.run_id, p.created_at
FROM {personas} AS p
LEFT ANTI JOIN {persona_removals} AS r ON r.persona_id = p.persona_id
LEFT ANTI JOIN {withdrawn} AS w ON w.kind = 'persona' AND w.item = p.persona_id
WHERE size(p.quality_flags) = 0
