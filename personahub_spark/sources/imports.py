"""Read existing personas: rows of released files as personas, with their source and the texts written for them.

Reads the released shapes (paper section 1: ``persona``; ``input persona`` with ``synthesized text`` and
``description``; elite personas with their domains; FinePersonas with labels), and any other row with a persona.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyspark.sql import Window
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, MapType, StringType, StructField, StructType

from personahub_spark.errors import SettingsError
from personahub_spark.settings.sources import ImportSettings
from personahub_spark.settings.whole import Settings
from personahub_spark.sources import formats, inputs
from personahub_spark.sources.formats import File
from personahub_spark.sources.inputs import FileRows, Judged, Listing, Shape
from personahub_spark.tasks.checks import CHECKS
from personahub_spark.tasks.contract import Reading, Subject
from personahub_spark.tasks.declared import Declaration, library
from personahub_spark.tasks.prompted import AnswerReader
from personahub_spark.text import clean, content_id, has_words

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

VERSION = "import-3"
"""Goes up when the same row would give another persona, text or key."""

COLUMNS = {
    "persona": "persona|input persona", "text": "synthesized text", "task": "description", "licence": "licence|license",
    "lang": "lang|language",
}  # fmt: skip
"""Our field -> theirs, as in ``documents.MAPPINGS``; ``source`` is read only if the settings name its column."""

NOT_CHECKED = "not_checked"
"""The check that an imported text fails when some checks of its task cannot be made, or its task has none."""

_OF_PROMPTS = "missing_prefix"  # says how an answer was asked for; whoever released a text may have cut its prefix off
_LABEL = "label: "  # before a label's name, which may equal a field's
_LONGEST = 20_000
"""The most characters: a persona has two sentences, so a text a hundred times as long is no persona."""

_strings = MapType(StringType(), StringType(), False)
_ROW = StructType(
    [
        *[StructField(name, StringType()) for name in ("source_key", "persona_id", "persona")],
        *[StructField(name, StringType()) for name in ("source", "licence", "lang")],
        StructField("labels", _strings),
        *[StructField(name, StringType()) for name in ("synthesis_id", "task", "text")],
        StructField("output", StringType()),
        StructField("checks", ArrayType(StringType(), False)),
    ]
)


def list_files(settings: ImportSettings, *, setting: str = "imports", ahead: bool = False) -> Listing:
    """The files of ``settings.paths``, as ``inputs.list_files`` does; ``setting`` is their name in messages."""
    shape, unknown = dataclasses.replace(_shape(settings, {}), setting=setting), settings.unknown_files
    return inputs.list_files(settings.paths, settings.format, shape, unknown=unknown, ahead=ahead)


def check_inputs(settings: Settings) -> None:
    """SettingsError if the paths on this machine hold nothing to import, or an entry names a task that is none."""
    tasks = library(settings.tasks) if settings.imports else {}
    for number, entry in enumerate(settings.imports):
        setting = f"imports.{number}"
        for word, task in entry.tasks.items():
            if task not in tasks:
                raise SettingsError(f"{setting}.tasks.{word} names the task {task}; tasks are {', '.join(tasks)}")
        inputs.refuse_empty(entry.paths, list_files(entry, setting=setting, ahead=True), setting=setting)


def import_id(file: File, settings: ImportSettings) -> str:
    """The id of an import of ``file``: it changes with the file and with the settings that decide how it is read."""
    reading = settings.model_dump(mode="json", exclude={"paths", "format", "unknown_files", "filters"})
    return _hash(VERSION, file.path, file.kind, file.size_bytes, file.modified_at.isoformat(), reading)


def read(
    spark: SparkSession,
    files: Sequence[File],
    settings: ImportSettings,
    *,
    readers: Mapping[str, TextReader],
    stage: Callable[[DataFrame], DataFrame],
) -> FileRows:
    """The rows of ``files``, as ``inputs.read`` gives them.

    ``source_key`` is the hash of source, licence and persona; ``persona_id``, ``persona``, ``source``, ``licence``,
    ``lang``; ``labels``: other fields to keep, by their own names. If a text comes with the persona: ``synthesis_id``,
    ``task``, ``output`` (JSON: its parts), ``text`` and failed ``checks``.
    """
    return inputs.read(spark, files, _shape(settings, readers), stage=stage)


def numbered(rows: DataFrame, withdrawn: Mapping[str, Sequence[str]]) -> DataFrame:
    """Adds ``withdrawn``, and ``nth_persona``, ``nth_key`` and ``nth_synthesis``: the row's number among those with the
    same persona, source_key or synthesis_id.

    ``rows``: readable ones. ``withdrawn``: sources and licences that must not be imported, by column name. Rows are
    numbered by file and line, withdrawn ones apart; null for a row without the id.
    """
    named = [F.col(name).isin(list(values)) for name, values in withdrawn.items() if values]
    rows = rows.withColumn(
        "withdrawn", F.coalesce(functools.reduce(lambda a, b: a | b, named, F.lit(False)), F.lit(False))
    )
    for name, key in (("nth_persona", []), ("nth_key", ["source_key"]), ("nth_synthesis", ["synthesis_id"])):
        nth = F.row_number().over(Window.partitionBy("persona_id", *key, "withdrawn").orderBy("file", "line"))
        rows = rows.withColumn(name, F.when(F.col((["persona_id", *key])[-1]).isNotNull(), nth))
    return rows


@dataclass(frozen=True)
class TextReader:
    """Reads imported texts as answers to their task, with those of its checks that need no text but the persona."""

    answers: AnswerReader
    is_checked: bool
    """Whether these are all its checks."""

    def read(self, text: str, persona: str) -> Reading:
        """An imported text as an output of the task, with the checks that it fails.

        A text that cannot be read is kept as it came, with the failure of ``AnswerReader.read`` as its check.
        """
        (reading,) = self.answers.read(text, "stop", Subject("", {"persona": persona}))
        if reading.failure is not None:
            return _as_it_came(text, reading.failure)
        checks = reading.checks if self.is_checked else (*reading.checks, NOT_CHECKED)
        return dataclasses.replace(reading, text=reading.text or text, checks=checks)


def text_readers(tasks: Iterable[Declaration]) -> dict[str, TextReader]:
    """How to read texts of ``tasks``, by task.

    Left out are tasks whose rows are more than one text can be: conversations, what answers to an option that has no
    default, and what was drawn for the prompt.
    """
    readers = {}
    for task in tasks:
        try:
            options = task.chosen({})
        except SettingsError:
            continue
        made = tuple(check for check in task.checks if CHECKS[check.name].texts(check.parameters) <= {"persona"})
        kept = tuple(check for check in made if check.name != _OF_PROMPTS)
        answers = AnswerReader(task.model_copy(update={"checks": kept}), options)
        if task.conversation is None and not answers.drawing:
            readers[task.name] = TextReader(answers, is_checked=len(made) == len(task.checks))
    return readers


def judge_line(raw: bytes, settings: ImportSettings, readers: Mapping[str, TextReader]) -> Judged:
    """One JSON line as a persona.

    Reasons: not_utf8, malformed_json, not_an_object, and those of :func:`judge_record`.
    """
    return inputs.judge_line(raw, _columns(settings), lambda values: judge_record(values, settings, readers))


def judge_record(values: Mapping[str, Any], settings: ImportSettings, readers: Mapping[str, TextReader]) -> Judged:
    """The values and labels of a row as a persona, its text read by that of ``readers`` which has the name of its task.

    The string "None" counts as null.

    Reasons: missing_persona, not_utf8, persona_not_a_string, empty_persona (no letter), persona_too_long;
    malformed_json for values that are nested too deeply.
    """
    try:
        return _judge_record(values, settings, readers)
    except RecursionError:
        return Judged({}, "malformed_json")


def _judge_record(values: Mapping[str, Any], settings: ImportSettings, readers: Mapping[str, TextReader]) -> Judged:
    persona = values.get("persona")
    if persona is None or persona == "None":
        return Judged({}, "missing_persona")
    if isinstance(persona, bytes):
        return Judged({}, "not_utf8")
    if not isinstance(persona, str):
        return Judged({}, "persona_not_a_string")
    if len(persona) > _LONGEST:
        return Judged({}, "persona_too_long")
    persona = clean(persona.removeprefix("\ufeff")).strip()
    if not has_words(persona):
        return Judged({}, "empty_persona")
    source = _as_string(values.get("source")) or settings.source
    licence = _as_string(values.get("licence")) or settings.licence
    persona_id = content_id(persona)
    fields: dict[str, Any] = {
        "source_key": _hash(source, licence, persona_id),
        "persona_id": persona_id,
        "persona": persona,
        "source": source,
        "licence": licence,
        "lang": _as_string(values.get("lang")) or settings.lang,
        "labels": [
            (name, label) for name in settings.labels if (label := _as_string(values.get(_LABEL + name))) is not None
        ],
    }
    text = values.get("text")
    if isinstance(text, str) and text.strip() and text != "None":
        text = clean(text)
        task = task_of(values.get("task"), settings.tasks)
        reading = readers[task].read(text, persona) if task in readers else _as_it_came(text, NOT_CHECKED)
        fields |= {
            "synthesis_id": _hash(source, licence, persona_id, task, text),
            "task": task,
            "text": reading.text,
            "output": json.dumps(reading.output, ensure_ascii=False),
            "checks": list(reading.checks),
        }
    return Judged(fields)


def task_of(description: Any, tasks: Mapping[str, str]) -> str:
    """The task that a description means (see ``ImportSettings.tasks``), or the description itself."""
    words = (_as_string(description) or "unknown")[:100].lower()
    return next((task for word, task in tasks.items() if word in words), words)


def _as_it_came(text: str, check: str) -> Reading:
    return Reading(text, output={"text": text}, checks=(check,))


def _shape(settings: ImportSettings, readers: Mapping[str, TextReader]) -> Shape:
    return Shape(
        "imports",
        _ROW,
        columns=_columns(settings),
        main="persona",
        judge=lambda values: judge_record(values, settings, readers),
        kinds=("jsonl", "parquet"),
    )


def _columns(settings: ImportSettings) -> dict[str, str]:
    """Our field or label -> its path in their rows."""
    columns = COLUMNS | {str(name): path for name, path in settings.columns.items()}
    return columns | {_LABEL + name: name for name in settings.labels}


def _as_string(value: Any) -> str | None:
    """``value`` as a string, nested values and bytes as JSON; None for an empty value, blanks and the string "None"."""
    if isinstance(value, dict | list | bytes):
        value = formats.as_json(value) if value else None
    elif isinstance(value, bool):
        value = str(value).lower()
    string = inputs.plain(value)
    return None if string == "None" else string


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps([VERSION, *parts], sort_keys=True).encode()).hexdigest()
