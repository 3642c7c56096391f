-- What was not used, at which stage, and why?
SELECT 'unreadable' AS stage, concat(source, ' line ', line) AS what, reason, raw AS detail, run_id, created_at
FROM {quarantine}
UNION ALL
SELECT 'call failed', request_key, error_class, error_message, run_id, created_at
FROM {llm_calls} WHERE status = 'failed'
UNION ALL
SELECT 'persona flagged', persona_id, array_join(quality_flags, ', '), text, run_id, created_at
FROM {personas} WHERE size(quality_flags) > 0
UNION ALL
SELECT 'persona removed', r.persona_id, r.tier, concat('duplicate of ', r.kept_id, ': ', k.text), r.run_id, r.created_at
FROM {persona_removals} AS r JOIN {personas} AS k ON k.persona_id = r.kept_id
UNION ALL
SELECT 'synthesis failed checks', synthesis_id, array_join(checks, ', '), text, run_id, created_at
FROM {syntheses} WHERE size(checks) > 0
UNION ALL
SELECT 'profile failed checks', f.persona_id, array_join(f.checks, ', '), f.background, f.run_id, f.created_at
FROM {persona_profiles} AS f
LEFT ANTI JOIN {withdrawn} AS w ON w.kind = 'persona' AND w.item = f.persona_id
WHERE size(f.checks) > 0
UNION ALL
SELECT concat(kind, ' withdrawn'), item, 'withdrawn', NULL, run_id, created_at
FROM {withdrawn} WHERE kind <> 'removal'
