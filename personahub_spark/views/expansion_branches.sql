-- Of what the descendants of each persona of hop 0 led to at each hop, how much is new?
WITH found AS (
  SELECT
    coalesce(a.root_id, o.source_key) AS root_id, o.hop, count(*) AS raw,
    count(DISTINCT CASE WHEN h.hop = o.hop AND h.first_origin = o.source_key THEN h.persona_id END) AS new
  FROM {persona_origins} AS o
  LEFT JOIN {persona_ancestors} AS a ON a.persona_id = o.source_key
  LEFT JOIN {hub} AS h ON h.persona_id = o.persona_id
  LEFT ANTI JOIN {withdrawn} AS child ON child.kind = 'persona' AND child.item = o.persona_id
  LEFT ANTI JOIN {withdrawn} AS parent ON parent.kind = 'persona' AND parent.item = o.source_key
  WHERE o.source_kind = 'persona'
  GROUP BY coalesce(a.root_id, o.source_key), o.hop
)
SELECT root_id, hop, raw, new, new / raw AS novelty FROM found
