"""Try a task: one entry in the place of the settings' list ``synthesis``, for a few personas, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pyspark.sql import functions as F

from personahub_spark.asking import source
from personahub_spark.errors import SettingsError
from personahub_spark.program.steps import Context
from personahub_spark.settings import loading
from personahub_spark.settings.whole import Settings
from personahub_spark.store.hub_tables import PERSONAS
from personahub_spark.store.record_tables import QUARANTINE, WITHDRAWN
from personahub_spark.store.text_tables import SYNTHESES
from personahub_spark.synthesis import selection
from personahub_spark.synthesis.questions import subject_of
from personahub_spark.synthesis.writing import STEP, tasks_with_shots
from personahub_spark.tasks.declared import TURNS, library

FEW = 5


def changed(
    settings: Settings,
    *,
    task: str | None,
    options: Mapping[str, str],
    texts: Mapping[str, str],
    personas: int | None,
    of: str | None = None,
) -> Settings:
    """``settings`` with one entry, for ``task``: the name of a task, or a task's file, which is added to ``tasks``.

    Without a task the entries of the settings stay. ``personas`` is the number of personas of each entry; None: as the
    settings say, and FEW for a ``task``. ``texts``: files by the name of the text. ``of``: the task whose stored rows
    it is about. SettingsError for a file that cannot be read, and for options without a task.
    """
    raw = settings.model_dump(mode="json")
    if task is None and (options or texts or of):
        raise SettingsError("--option, --text and --of go with --task, which names the task that they are for")
    if task is not None:
        if task.endswith((".yaml", ".yml")):
            file = Path(task).resolve()
            if not {file, file.parent} & {Path(path).resolve() for path in raw["tasks"]}:
                raw["tasks"] = [*raw["tasks"], task]
            task = [*library([task])][-1]
        raw["synthesis"] = [
            {"task": task, "of": of, "options": dict(options), "texts": {n: _read(n, p) for n, p in texts.items()}}
        ]
        personas = personas or FEW
    if personas is not None:
        for entry in raw["synthesis"]:
            entry["personas"] = {**entry.get("personas", {}), "number": personas}
    return loading.validate(raw)


def lines(context: Context) -> Iterator[str]:
    """What stands in the tables for the entries of the settings, text by text, with the checks that each fails."""
    store = context.store
    for entry, task in tasks_with_shots(context):
        options = ", ".join(f"{name} {value}" for name, value in task.options.items() if value)
        yield f"# {task.name}{f' ({options})' if options else ''}, by {task.endpoint.model}"
        withdrawn = store.read(WITHDRAWN).where("kind = 'synthesis'").select(F.col("item").alias("synthesis_id"))
        written = store.read(SYNTHESES).where(F.col("recipe") == task.recipe)
        written = written.join(withdrawn, on="synthesis_id", how="left_anti")
        unread = store.read(QUARANTINE).where(F.col("source") == source(STEP, task))
        rows = store.read(SYNTHESES).select(F.col("synthesis_id").alias("subject_id"), "persona_id")
        unread = unread.withColumn("subject_id", subject_of("line")).join(rows, on="subject_id", how="left")
        unread = unread.withColumn("persona_id", F.coalesce("persona_id", "subject_id"))
        if entry.personas.number is not None:
            first = selection.first(context, entry.personas, entry.personas.number)
            written, unread = (rows.join(first, on="persona_id", how="left_semi") for rows in (written, unread))
        personas = store.read(PERSONAS).select("persona_id", F.col("text").alias("persona"))
        passed = total = 0
        for row in written.join(personas, on="persona_id", how="inner").orderBy("persona_id", "sample").collect():
            passed, total = passed + (not row["checks"]), total + 1
            yield f"\n{row['persona']}\n  {'fails ' + ', '.join(row['checks']) if row['checks'] else 'passes'}"
            output = json.loads(row["output"])
            is_conversation = task.declaration.conversation is not None
            yield from (f"  {line}" for line in (_shown_turns(output[TURNS]) if is_conversation else _shown(output)))
        for row in unread.join(personas, on="persona_id", how="left").orderBy("persona_id").collect():
            total += 1
            yield f"\n{row['persona']}\n  cannot be read: {row['reason']}"
            yield from (f"  | {line}" for line in (row["raw"] or "").splitlines()[:8])
        yield f"\n{passed} of {total} pass\n"


def _shown(output: Mapping[str, object]) -> Iterator[str]:
    for name, value in output.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        first, *others = text.splitlines() or [""]
        yield f"{name}: {first}"
        yield from (f"  {line}" for line in others)


def _shown_turns(turns: Sequence[Mapping[str, str]]) -> Iterator[str]:
    for turn in turns:
        yield from _shown({f"{turn['role']} ({turn['model']})": turn["content"]})


def _read(name: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise SettingsError(f"--text {name}: {path} cannot be read ({error})") from None
