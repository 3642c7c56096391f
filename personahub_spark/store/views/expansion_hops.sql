-- How much of what each hop found is new, what became of the rest, and what did one new persona cost?
-- raw = unparsable + flagged + exact_duplicates + surface_duplicates + semantic_duplicates + withdrawn + other + new;
-- Withdrawn ones that were flagged or removed, or found again, are in theirs; novelty leaves out all that led to them.
WITH asked AS (  -- every persona found and every one that could not be read, by the hop that asked for it
  SELECT o.hop, o.call_key, true AS is_read, w.item IS NOT NULL AS is_withdrawn
  FROM {persona_origins} AS o LEFT JOIN {withdrawn} AS w ON w.kind = 'persona' AND w.item = o.persona_id
  WHERE o.source_kind <> 'import'
  UNION ALL
  SELECT p.hop + 1, q.call_key, false, false
  FROM {quarantine} AS q JOIN {personas} AS p ON p.persona_id = substring(q.line, 1, 64)
  WHERE q.source LIKE 'expand_personas:%'
  UNION ALL
  SELECT 0, call_key, false, false FROM {quarantine} WHERE source LIKE 'extract_personas:%'
),
answers AS (
  SELECT hop, call_key, count(*) AS raw, count_if(is_read) AS edges, count_if(is_withdrawn) AS withdrawn
  FROM asked GROUP BY hop, call_key
),
found AS (
  SELECT
    a.hop, count(*) AS calls, sum(a.raw) AS raw, sum(a.edges) AS edges, sum(a.withdrawn) AS withdrawn,
    CASE WHEN count(*) = count(c.cost_microusd) THEN sum(c.cost_microusd) / 1000000 END AS cost_usd
  FROM answers AS a LEFT JOIN {llm_calls} AS c ON c.request_key = a.call_key
  GROUP BY a.hop
),
gone AS (SELECT persona_id, min(tier) AS tier FROM {persona_removals} GROUP BY persona_id),
texts AS (  -- each persona is a row once, at the hop that found it first
  SELECT
    p.hop, count(*) AS rows, count_if(size(p.quality_flags) > 0) AS flagged,
    count_if(size(p.quality_flags) = 0 AND g.tier = 'exact_tokens') AS exact_tokens,
    count_if(size(p.quality_flags) = 0 AND g.tier = 'surface') AS surface,
    count_if(size(p.quality_flags) = 0 AND g.tier = 'semantic') AS semantic,
    count_if(size(p.quality_flags) = 0 AND g.tier IS NULL AND w.item IS NOT NULL) AS withdrawn,
    count_if(h.persona_id IS NOT NULL) AS new
  FROM {personas} AS p
  LEFT JOIN gone AS g ON g.persona_id = p.persona_id
  LEFT JOIN {withdrawn} AS w ON w.kind = 'persona' AND w.item = p.persona_id
  LEFT JOIN {hub} AS h ON h.persona_id = p.persona_id
  LEFT ANTI JOIN {persona_imports} AS i ON i.source_key = p.first_origin
  GROUP BY p.hop
)
SELECT
  f.hop, f.calls, f.raw, f.raw - f.edges AS unparsable, coalesce(t.flagged, 0) AS flagged,
  f.edges - coalesce(t.rows - t.exact_tokens, 0) AS exact_duplicates,
  coalesce(t.surface, 0) AS surface_duplicates, coalesce(t.semantic, 0) AS semantic_duplicates,
  coalesce(t.withdrawn, 0) AS withdrawn,
  coalesce(t.rows - t.flagged - t.exact_tokens - t.surface - t.semantic - t.withdrawn - t.new, 0) AS other,
  coalesce(t.new, 0) AS new,
  coalesce(t.new, 0) / nullif(f.raw - f.withdrawn, 0) AS novelty,
  f.cost_usd, f.cost_usd / nullif(t.new, 0) AS cost_usd_per_new
FROM found AS f LEFT JOIN texts AS t ON t.hop = f.hop
