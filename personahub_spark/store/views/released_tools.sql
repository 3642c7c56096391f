-- Which tools pass their checks, in the form of the authors' released file?
-- The text is JSON encoded twice, with the six keys of a released row in their order. Its arguments are a list of objects,
-- each with name, type, description and required. The view tools has the same with typed columns.
WITH fields AS (
  SELECT
    s.persona_id,
    from_json(
      s.output,
      'name string, description string, function_name string, returns string, dependencies array<string>,
       arguments array<struct<name: string, type: string, description: string, required: boolean>>'
    ) AS tool
  FROM {syntheses} AS s
  LEFT ANTI JOIN {withdrawn} AS w ON w.kind = 'synthesis' AND w.item = s.synthesis_id
  WHERE s.task = 'tool' AND s.call_key IS NOT NULL AND size(s.checks) = 0
),
interfaces AS (
  SELECT
    persona_id,
    to_json(
      named_struct(
        'name', tool.name, 'description', tool.description, 'function_name', tool.function_name,
        'input_args', tool.arguments, 'return', tool.returns, 'depend', tool.dependencies
      ),
      map('ignoreNullFields', 'false')
    ) AS interface
  FROM fields
)
SELECT
  p.text AS `input persona`,
  -- to_json takes no text of its own, so the brackets of a list of one are taken off
  regexp_replace(to_json(array(i.interface)), '^\\[|\\]$', '') AS `synthesized text`,
  'tool development' AS description
FROM interfaces AS i
JOIN {personas} AS p ON p.persona_id = i.persona_id
