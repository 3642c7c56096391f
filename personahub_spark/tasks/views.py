"""The view of a task's rows: its fields with types, its options, and one boolean for each check."""

from __future__ import annotations

from collections.abc import Mapping

from personahub_spark.tasks.arguments import ARGUMENT
from personahub_spark.tasks.checks import IMPLICIT
from personahub_spark.tasks.declared import TURNS, Declaration
from personahub_spark.tasks.turn_checks import TURN

_TYPES = {"string": "string", "integer": "bigint", "number": "double", "boolean": "boolean", "array": "array<string>",
          "object": "string"}  # fmt: skip


def view_query(task: Declaration) -> str:
    """The SELECT of the task's view, its tables as ``{name}``; its first line is a comment: the question it answers.

    A check's column is true if the row fails the check. ``duplicate_of``, ``same_template_as`` and ``same_topic_as``
    are the rows that it is nearly the same as, null for most. ``persona_closeness`` is a number, no verdict: how near
    the text is to its persona, null where one of the two has no vector. Withdrawn rows are left out. Of a conversation,
    model, terms and cost are of all its calls.
    """
    fields = ", ".join(f"`{name}` {_type(kind, task.kept.get(name))}" for name, kind in task.fields.items())
    written = f"(SELECT *, from_json(output, '{fields}') AS fields FROM {{syntheses}} WHERE task = '{task.name}')"
    columns = [f"s.fields.`{name}`" for name in task.fields]
    columns += [f"s.options['{name}'] AS `{name}`" for name in task.options]
    columns += ["s.pattern", "s.examples", "s.sample", "s.subject_id"]
    columns += ["s.persona_id", "p.text AS persona", "p.lang", "p.hop"]
    columns += ["s.second_persona_id", "q.text AS second_persona"]
    checks = [*(check.name for check in task.checks), *IMPLICIT]
    columns += [f"array_contains(s.checks, '{name}') AS `{name}`" for name in checks]
    columns += ["size(s.checks) = 0 AS passed", "d.duplicate_of", "t.duplicate_of AS same_template_as"]
    columns += ["o.duplicate_of AS same_topic_as", "n.closeness AS persona_closeness"]
    columns += ["s.recipe", "s.prompt_version"]
    columns += ["c.model", "c.model_returned", "c.terms AS model_terms", "c.cost_microusd", "s.call_key", "s.run_id"]
    calls = "{llm_calls} AS c ON c.request_key = s.call_key"
    if task.conversation is not None:
        calls = f"({_CALLS_OF_TURNS.format(task=task.name)}) AS c ON c.synthesis_id = s.synthesis_id"
    listed = ",\n  ".join(["s.synthesis_id", *columns])
    return f"""-- Which rows did the task {task.name} give, for whom, and which checks does each fail?
-- {task.about}
SELECT
  {listed}
FROM {written} AS s
JOIN {{personas}} AS p ON p.persona_id = s.persona_id
LEFT JOIN {{personas}} AS q ON q.persona_id = s.second_persona_id
LEFT JOIN {calls}
LEFT JOIN {{synthesis_duplicates}} AS d ON d.synthesis_id = s.synthesis_id AND d.kind = 'text'
LEFT JOIN {{synthesis_duplicates}} AS t ON t.synthesis_id = s.synthesis_id AND t.kind = 'template'
LEFT JOIN {{synthesis_duplicates}} AS o ON o.synthesis_id = s.synthesis_id AND o.kind = 'topic'
LEFT JOIN {{persona_closeness}} AS n ON n.synthesis_id = s.synthesis_id
LEFT ANTI JOIN {{withdrawn}} AS w ON w.kind = 'synthesis' AND w.item = s.synthesis_id
"""


_CALLS_OF_TURNS = """
  SELECT
    t.synthesis_id,
    array_join(array_sort(collect_set(c.model)), ', ') AS model,
    array_join(array_sort(collect_set(c.model_returned)), ', ') AS model_returned,
    array_join(array_sort(collect_set(c.terms)), ', ') AS terms,
    CASE WHEN count(*) = count(c.cost_microusd) THEN sum(c.cost_microusd) END AS cost_microusd
  FROM (SELECT synthesis_id, explode(turn_calls) AS call_key FROM {{syntheses}} WHERE task = '{task}') AS t
  LEFT JOIN {{llm_calls}} AS c ON c.request_key = t.call_key
  GROUP BY t.synthesis_id
"""


def _type(kind: str, kept: str | None) -> str:
    if kind == TURNS:
        return _array_of(TURN)
    return _array_of(ARGUMENT) if kept == "arguments" else _TYPES[kind]


def _array_of(types: Mapping[str, str]) -> str:
    parts = ", ".join(f"`{name}`: {kind}" for name, kind in types.items())
    return f"array<struct<{parts}>>"
