-- Of what the descendants of each persona of hop 0 led to at each hop, how much is new?
-- Found by and found as withdrawn personas are left out. A persona is new where its way now begins (persona_reroutes).
WITH found AS (
  SELECT
    coalesce(r.root_id, a.root_id, o.source_key) AS root_id, o.hop, count(*) AS raw,
    count(DISTINCT CASE WHEN coalesce(now.origin, h.first_origin) = o.source_key THEN h.persona_id END) AS new
  FROM {persona_origins} AS o
  LEFT JOIN {persona_ancestors} AS a ON a.persona_id = o.source_key
  LEFT JOIN {persona_reroutes} AS r ON r.persona_id = o.source_key
  LEFT JOIN {hub} AS h ON h.persona_id = o.persona_id
  LEFT JOIN {persona_reroutes} AS now ON now.persona_id = o.persona_id
  LEFT ANTI JOIN {withdrawn} AS child ON child.kind = 'persona' AND child.item = o.persona_id
  LEFT ANTI JOIN {withdrawn} AS parent ON parent.kind = 'persona' AND parent.item = o.source_key
  WHERE o.source_kind = 'persona'
  GROUP BY coalesce(r.root_id, a.root_id, o.source_key), o.hop
)
SELECT root_id, hop, raw, new, new / raw AS novelty FROM found
