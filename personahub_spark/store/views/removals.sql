-- Why is a persona a duplicate: of which kept one, how alike are their texts, and which tier found that?
-- The similarity is the Jaccard similarity of the words; of the tier semantic it is the cosine of the vectors.
SELECT r.persona_id, r.tier, r.similarity, p.text AS removed_text, k.text AS kept_text, r.kept_id,
       p.hop AS removed_hop, k.hop AS kept_hop, r.parameters_version, r.run_id, r.created_at
FROM {persona_removals} AS r
JOIN {personas} AS p ON p.persona_id = r.persona_id
JOIN {personas} AS k ON k.persona_id = r.kept_id
