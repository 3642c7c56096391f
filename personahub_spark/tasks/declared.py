"""Tasks as YAML files: the keys that a file may have, and the messages for a file that breaks the rules.

The package's own files are in ``library/``; users put files of the same form in a folder of their own.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any, Literal, Self

import jsonschema
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from personahub_spark.errors import SettingsError
from personahub_spark.tasks.checks import CHECKS, IMPLICIT
from personahub_spark.tasks.draws import DRAWS

NAME = r"^[a-z][a-z0-9_]*$"
FORM = "form"
"""``by: form`` chooses words by the form of the answer: ``json`` if the endpoint enforces schemas, else ``text``."""
FORMS = ("json", "text")
COLUMNS = {
    "synthesis_id", "pattern", "examples", "sample", "subject_id", "persona_id", "persona", "lang", "hop", "passed",
    "duplicate_of", "same_template_as", "same_topic_as", "persona_closeness", "recipe", "prompt_version", "model",
    "model_returned", "model_terms", "cost_microusd", "call_key", "run_id",
    "second_persona_id", "second_persona",
    *IMPLICIT,
}  # fmt: skip
"""Columns that every task's view has (see ``views``): a field, option or check may not have such a name."""
KINDS = ("string", "integer", "number", "boolean", "array", "object")
TURNS = "turns"
"""The one field of a conversation's row: its turns, each with role, content, call_key and model."""

Kept = Literal["lines", "code", "arguments"]
"""How a field is kept that is not one line of text or a list of lines: as text with line breaks, as code with its
indentation, or as the arguments of a function (see ``arguments``)."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Option(_Part):
    """One choice that settings make: among ``values``, a language, or a text."""

    about: str | None = None
    values: tuple[str, ...] | None = Field(default=None, min_length=1)
    language_of: str | None = Field(default=None, description="what the answer's language is, where it is the same")
    default: str | None = None
    needed_with: dict[str, str] | None = Field(default=None, description="given with these options, and only there")
    required: bool = Field(default=False, description="whether settings must give it")

    @model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        if self.values is not None and self.default not in self.values:
            raise ValueError(f"default must be one of {', '.join(self.values)}")
        if self.values is not None and self.language_of is not None:
            raise ValueError("values and language_of exclude each other")
        return self


class Word(_Part):
    """The text for a placeholder, chosen by an option's value or by the form of the answer."""

    by: str
    values: dict[str, str] = Field(alias="is")


class Plain(_Part):
    """The form of an answer from an endpoint that enforces no schema."""

    prefix: str | None = Field(default=None, description="of the one text field: what the answer begins with")
    rest: str | None = Field(default=None, description="the field of what follows without a heading of its own")
    headings: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="other words for a field's heading, in any language; the last one counts"
    )


class Example(BaseModel):
    """An input of each name, and the output for them."""

    model_config = ConfigDict(extra="allow", frozen=True)

    output: dict[str, Any]


class Sampling(_Part):
    """Default sampling of an answer; settings override it."""

    temperature: float = Field(default=0.7, ge=0, le=2)
    top_p: float = Field(default=0.95, gt=0, le=1)
    max_tokens: int = Field(default=600, ge=16)


class Conversation(_Part):
    """Makes a task a conversation: an answer is one message of its user, and another model replies to each."""

    exchanges: str = Field(description="the option whose values are numbers of messages; each gets a reply")
    next: str = Field(description="how the user's side is shown a reply, $reply, and asked for the next message")
    system: str = Field(min_length=1, description="what the one who replies is told; may have texts of the subject")
    sampling: Sampling = Sampling()


class Draw(_Part):
    """A draw of ``draws.DRAWS`` with its parameters; only made with these values of options."""

    only_with: dict[str, str] = Field(default_factory=dict)
    parameters: dict[str, Any] = Field(default_factory=dict)


class Check(_Part):
    """A check of ``checks.CHECKS`` with its parameters."""

    name: str
    parameters: dict[str, Any] = Field(default_factory=dict)


class Declaration(_Part):
    """A task as its file declares it."""

    name: str = Field(pattern=NAME)
    about: str
    paper: str | None = None
    answer: str = Field(default="text", pattern=NAME, description="what one answer is called")
    view: str | None = Field(
        default=None, pattern=NAME, description="name of the view of its rows; a judge has no rows of its own"
    )
    inputs: tuple[str, ...] = Field(default=("persona",), min_length=1)
    from_rows: dict[str, Literal["text", "output"]] = Field(
        default_factory=dict,
        description="inputs that a stored row of another task gives: its text, or its whole output",
    )
    options: dict[str, Option] = Field(default_factory=dict)
    system: str = Field(min_length=1)
    user: str = Field(min_length=1)
    words: dict[str, Word] = Field(default_factory=dict)
    example: str | None = None
    examples: tuple[Example, ...] = ()
    output: dict[str, dict[str, Any]] = Field(min_length=1)
    output_with: dict[str, dict[str, str]] = Field(
        default_factory=dict, description="fields that an answer has with these options, and only there"
    )
    kept: dict[str, Kept] = Field(default_factory=dict, description="fields that are more than texts of one line")
    text: tuple[str, ...] = Field(min_length=1, description="the fields that dedup, agreement and export look at")
    counts_equal_texts: bool = Field(
        default=False, description="whether rows with the same text count each, as answers of a survey do"
    )
    plain: Plain = Plain()
    draw: dict[str, Draw] = Field(default_factory=dict, description="what code adds to a subject, by name of the draw")
    conversation: Conversation | None = None
    checks: tuple[Check, ...] = ()
    sampling: Sampling = Sampling()

    @field_validator("checks", mode="before")
    @classmethod
    def _named(cls, checks: object) -> object:
        if not isinstance(checks, list):
            return checks
        return [{"name": one} if isinstance(one, str) else _with_parameters(one) for one in checks]

    @field_validator("checks")
    @classmethod
    def _exist(cls, checks: tuple[Check, ...]) -> tuple[Check, ...]:
        for check in checks:
            if check.name in IMPLICIT:
                raise ValueError(f"every task has the check {check.name}; leave it out")
            if check.name not in CHECKS:
                near = difflib.get_close_matches(check.name, CHECKS, n=1)
                hint = f"did you mean {near[0]}?" if near else f"checks are: {', '.join(CHECKS)}"
                raise ValueError(f"there is no check {check.name!r}; {hint}")
            CHECKS[check.name].refuse_wrong(check.parameters)
        twice = [check.name for check in checks if sum(other.name == check.name for other in checks) > 1]
        if twice:
            raise ValueError(f"{twice[0]} stands there twice")
        return checks

    @field_validator("draw")
    @classmethod
    def _can_be_drawn(cls, draws: dict[str, Draw]) -> dict[str, Draw]:
        for name, draw in draws.items():
            if name not in DRAWS:
                near = difflib.get_close_matches(name, DRAWS, n=1)
                hint = f"did you mean {near[0]}?" if near else f"draws are: {', '.join(DRAWS)}"
                raise ValueError(f"there is no draw {name!r}; {hint}")
            DRAWS[name].refuse_wrong(draw.parameters)
        return draws

    @field_validator("text", mode="before")
    @classmethod
    def _one_or_several(cls, given: object) -> object:
        return [given] if isinstance(given, str) else given

    @field_validator("output")
    @classmethod
    def _is_a_schema(cls, output: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, schema in output.items():
            if not re.fullmatch(NAME, name):
                raise ValueError(f"{name!r} is no name of a field; use small letters, digits and _")
            try:
                jsonschema.Draft202012Validator.check_schema(schema)
            except jsonschema.SchemaError as error:
                raise ValueError(f"{name} is no JSON schema: {error.message}") from None
            if schema.get("type") not in KINDS:
                raise ValueError(f"{name} needs a type: {', '.join(KINDS)}")
            for pattern in _patterns(schema):
                if not re.search(r"(?s)^\^.*\$([a-z_]+|\{[a-z_]+\})?$", pattern):
                    raise ValueError(
                        f"{name} has the pattern {pattern!r}, which servers ignore unless ^ and $$ enclose it"
                    )
        return output

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        _check_columns(self)
        of_no_row = [name for name in self.from_rows if name not in self.inputs or name == "persona"]
        if of_no_row:
            raise ValueError(f"from_rows names {of_no_row[0]}, which is no input beside the persona")
        _check_options(self)
        _check_wording(self)
        named_fields = {
            "text": [*self.text],
            "plain.headings": [*self.plain.headings],
            "plain.rest": [self.plain.rest] if self.plain.rest is not None else [],
            "output_with": [*self.output_with],
            "kept": [*self.kept],
        }
        for where, named in named_fields.items():
            unknown = [name for name in named if name not in self.output]
            if unknown:
                raise ValueError(f"{where} names {unknown[0]}, which is no field of output ({', '.join(self.output)})")
        for name in self.text:
            field = self.output[name]
            if field["type"] != "string" and field.get("items", {}).get("type") != "string":
                raise ValueError(f"text names {name}, which is neither a string nor a list of strings")
        if self.plain.rest is not None and self.output[self.plain.rest]["type"] != "string":
            raise ValueError(f"plain.rest names {self.plain.rest}, which is no string")
        _check_kept(self)
        _check_conversation(self)
        always = [name for name in self.output if name not in self.output_with]
        if not set(always) & set(self.text):
            raise ValueError("text names no field that an answer has with all options")
        if self.plain.prefix is not None and not _is_one_text(self, always):
            raise ValueError("plain.prefix is for an output of one text field; several are told by headings")
        return self

    def fields_with(self, options: Mapping[str, str | None]) -> dict[str, dict[str, Any]]:
        """The schemas of an answer's fields with ``options``, by name."""
        return {
            name: schema
            for name, schema in self.output.items()
            if all(options.get(option) == value for option, value in self.output_with.get(name, {}).items())
        }

    def is_one_text(self, options: Mapping[str, str | None]) -> bool:
        """Whether an answer is one text and nothing else."""
        return _is_one_text(self, [*self.fields_with(options)])

    def with_texts(self, wording: str, options: Mapping[str, str | None]) -> str:
        """``wording`` with the text of each word that has texts of the subject in its place, by ``options``."""
        words = {name: word.values[str(options[word.by])] for name, word in self.words.items() if self._has_texts(word)}
        if not words:
            return wording

        def put(found: re.Match[str]) -> str:
            return words.get(found["named"] or found["braced"] or "", found[0])

        return re.sub(r"\n{3,}", "\n\n", Template.pattern.sub(put, wording)).strip()

    def needed(self, options: Mapping[str, str | None]) -> tuple[str, ...]:
        """The inputs that questions have with ``options``."""
        wordings = [self.user, *([self.conversation.system] if self.conversation is not None else [])]
        there = {name for text in wordings for name in Template(self.with_texts(text, options)).get_identifiers()}
        return tuple(name for name in self.inputs if name in there)

    def _has_texts(self, word: Word) -> bool:
        return any({*self.inputs} & {*Template(text).get_identifiers()} for text in word.values.values())

    @property
    def fields(self) -> dict[str, str]:
        """The types of a row's output fields, by name: those that the model writes, then those of draws."""
        if self.conversation is not None:
            return {TURNS: TURNS}
        written = {name: str(schema["type"]) for name, schema in self.output.items()}
        return written | {field: kind for name in self.draw for field, kind in DRAWS[name].fields.items()}

    @property
    def drawn_texts(self) -> list[str]:
        """Names of the placeholders that draws fill."""
        return [text for name in self.draw for text in DRAWS[name].texts]

    @functools.cached_property
    def placeholders(self) -> dict[str, set[str]]:
        """The words in dollar signs of each wording, by key."""
        wordings = {"system": self.system, "user": self.user}
        if self.conversation is not None:
            wordings |= {
                "conversation.next": self.conversation.next,
                "conversation.system": self.conversation.system,
            }
        wordings |= {f"words.{name}.is.{value}": text for name, word in self.words.items()
                     for value, text in word.values.items()}  # fmt: skip
        wordings |= {f"output.{name}": pattern for name, schema in self.output.items() for pattern in _patterns(schema)}
        return {key: set(Template(text).get_identifiers()) for key, text in wordings.items()}

    def chosen(self, options: Mapping[str, str | None]) -> dict[str, str | None]:
        """``options`` with defaults filled in; SettingsError names an option that the task does not have."""
        where = f"task {self.name}"
        for name in options:
            if name not in self.options:
                names = ", ".join(self.options) or "none"
                raise SettingsError(f"{where} has no option {name} (options: {names})")
        chosen = {name: options.get(name, option.default) for name, option in self.options.items()}
        for name, option in self.options.items():
            value = chosen[name]
            if option.values is not None and value not in option.values:
                raise SettingsError(f"{where}: option {name} is {value!r}; it may be {', '.join(option.values)}")
            if option.language_of is not None and not (value is None or re.fullmatch("same|[a-z]{2,3}", value)):
                raise SettingsError(
                    f"{where}: option {name} is {value!r}; it may be same, null, or a language code such as en"
                )
            if option.required and not value:
                raise SettingsError(f"{where}: option {name} must be given ({option.about or 'a text'})")
            if option.needed_with is not None:
                met = all(chosen.get(other) == required for other, required in option.needed_with.items())
                conditions = " and ".join(f"{other} {required}" for other, required in option.needed_with.items())
                if met != bool(value):
                    raise SettingsError(f"{where}: option {name} must be given with {conditions}, and only there")
        return chosen


def library(paths: Iterable[str | Path] = ()) -> dict[str, Declaration]:
    """The package's tasks and those of ``paths`` (files, or folders of .yaml files), by name.

    SettingsError names the file, the key and the fault of the first wrong file, or two tasks with one name.
    """
    declarations: dict[str, Declaration] = {}
    places: dict[str, str] = {}
    for place, text in _files(paths):
        declaration = _declared(place, text)
        named = {"task": declaration.name} | ({"view": declaration.view} if declaration.view is not None else {})
        for what, name in named.items():
            key = f"{what} {name}"
            if key in places:
                raise SettingsError(f"task file {place}: {what} {name} is declared by {places[key]} too; rename one")
            places[key] = place
        declarations[declaration.name] = declaration
    return declarations


def _files(paths: Iterable[str | Path]) -> Iterable[tuple[str, str]]:
    for entry in sorted(resources.files("personahub_spark.tasks.library").iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".yaml"):
            yield entry.name, entry.read_text(encoding="utf-8")
    for path in map(Path, paths):
        files = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
        if not files:
            raise SettingsError(f"tasks: folder {path} holds no .yaml file")
        for file in files:
            try:
                yield str(file), file.read_text(encoding="utf-8")
            except FileNotFoundError:
                raise SettingsError(f"tasks: {file} does not exist; name files or folders of tasks") from None
            except (OSError, ValueError) as error:
                raise SettingsError(f"task file {file} cannot be read ({error})") from None


@functools.lru_cache(maxsize=256)  # a program reads the library several times, and the parser is slow
def _declared(place: str, text: str) -> Declaration:
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark is not None else ""
        raise SettingsError(f"task file {place}: {where}{getattr(error, 'problem', None) or error}") from None
    if not isinstance(raw, dict):
        raise SettingsError(f"task file {place} must hold keys and values, found {type(raw).__name__}")
    try:
        return Declaration.model_validate(raw)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(map(str, problem["loc"]))
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(problem["loc"][-1]), _keys(problem["loc"]), n=1)
            message = f"unknown key{f'; did you mean {near[0]}?' if near else ''}"
        raise SettingsError(f"task file {place}: {f'{key}: ' if key else ''}{message}") from None


def _keys(where: Sequence[int | str]) -> list[str]:
    parts: dict[str, type[BaseModel]] = {
        "options": Option, "words": Word, "plain": Plain, "draw": Draw, "sampling": Sampling
    }  # fmt: skip
    part = parts.get(str(where[0]), Declaration) if len(where) > 1 else Declaration
    return list(part.model_fields)


def _with_parameters(one: object) -> object:
    if isinstance(one, dict) and len(one) == 1:
        ((name, parameters),) = one.items()
        return {"name": name, "parameters": parameters}
    return one


def _check_columns(task: Declaration) -> None:
    drawn = [field for name in task.draw for field in DRAWS[name].fields]
    written = [*task.fields] if task.conversation is not None else [*task.output, *drawn]
    names = [*written, *task.options, *(check.name for check in task.checks)]
    for name in names:
        if name in COLUMNS or names.count(name) > 1:
            raise ValueError(f"{name} is the name of two columns of the task's view; rename the field or option")


def _check_options(task: Declaration) -> None:
    for name, option in task.options.items():
        for other, value in (option.needed_with or {}).items():
            if other not in task.options or value not in (task.options[other].values or ()):
                raise ValueError(f"options.{name}.needed_with names {other} {value}, which no option can be")
        if option.language_of is not None and name != "language":
            raise ValueError(f"options.{name} is a language, so it is called language")
    for name, draw in task.draw.items():
        for other, value in draw.only_with.items():
            if other not in task.options or value not in (task.options[other].values or ()):
                raise ValueError(f"draw.{name}.only_with names {other} {value}, which no option can be")
    for name, word in task.words.items():
        if word.by == FORM:
            choices = set(FORMS)
        elif word.by in task.options and task.options[word.by].values is not None:
            choices = set(task.options[word.by].values or ())
        else:
            raise ValueError(f"words.{name}.by is {word.by}, which is neither {FORM} nor an option with values")
        if set(word.values) != choices:
            raise ValueError(f"words.{name}.is needs a text for each of {', '.join(sorted(choices))}, and for no other")


def _is_one_text(task: Declaration, fields: Sequence[str]) -> bool:
    return len(fields) == 1 and task.output[fields[0]]["type"] == "string" and fields[0] not in task.kept


def _check_kept(task: Declaration) -> None:
    for name, kept in task.kept.items():
        type_ = "array" if kept == "arguments" else "string"
        if task.output[name]["type"] != type_:
            raise ValueError(f"kept.{name} is {kept}, so the field's type must be {type_}")
    for name, needed in task.output_with.items():
        for option, value in needed.items():
            if option not in task.options or value not in (task.options[option].values or ()):
                raise ValueError(f"output_with.{name} names {option} {value}, which no option can be")


def _check_conversation(task: Declaration) -> None:
    if task.conversation is None:
        return
    option = task.options.get(task.conversation.exchanges)
    if option is None or not all(re.fullmatch("[1-9]", value) for value in option.values or ("",)):
        raise ValueError(
            f"conversation.exchanges names {task.conversation.exchanges}, which is no option whose values are numbers "
            "from 1 to 9"
        )
    if not _is_one_text(task, [*task.output]):
        raise ValueError("an answer of a conversation is one message, so output has one text field and kept has none")
    for name, there in (("draw", task.draw), ("examples", task.examples), ("plain", task.plain != Plain())):
        if there:
            raise ValueError(f"a conversation has no {name}; leave it out")
    if "reply" not in task.placeholders["conversation.next"]:
        raise ValueError("conversation.next lacks the placeholder $reply")


def _patterns(schema: object) -> Iterator[str]:
    if isinstance(schema, dict):
        for key, inside in schema.items():
            yield from [inside] if key == "pattern" and isinstance(inside, str) else _patterns(inside)


def _check_wording(task: Declaration) -> None:
    wordings = {"system": task.system, "user": task.user}
    if task.conversation is not None:
        wordings |= {"conversation.next": task.conversation.next, "conversation.system": task.conversation.system}
    for key, text in wordings.items():
        if not Template(text).is_valid():
            raise ValueError(f"{key} has a dollar sign that begins no placeholder; write $$ for the sign")
    texts = {name for name, option in task.options.items() if option.values is None and option.language_of is None}
    generated = {
        name for name, there in (("examples", task.examples), ("language", "language" in task.options)) if there
    }
    shared = {*task.words, *texts, *generated}
    of_subject_words = {name for name, word in task.words.items() if task._has_texts(word)}
    of_subject_words -= {name for name in of_subject_words if task.words[name].by == FORM}
    for key, placeholders in task.placeholders.items():
        allowed = shared - of_subject_words  # of system and conversation.next
        if key == "user":
            allowed = shared | set(task.inputs) | set(task.drawn_texts)
        elif key == "conversation.system":
            allowed = shared | set(task.inputs)
        elif key == "conversation.next":
            allowed = allowed | {"reply"}
        elif key.startswith("output."):
            allowed = set(task.words) - of_subject_words
        elif key.startswith("words."):
            allowed = shared - {*task.words} | (set(task.inputs) if key.split(".")[1] in of_subject_words else set())
        unknown = sorted(placeholders - allowed)
        if unknown:
            of_subject = unknown[0] in (*task.inputs, *task.drawn_texts)
            place = " (texts of the subject belong into user)" if of_subject else ""
            raise ValueError(f"{key} has the placeholder ${unknown[0]}, which nothing fills{place}")
    twice = [name for name in task.drawn_texts if name in shared or name in task.inputs]
    if twice:
        raise ValueError(f"${twice[0]} is filled by a draw; rename the input, option or word of that name")
    unused = [name for name in task.drawn_texts if name not in task.placeholders["user"]]
    if unused:
        raise ValueError(f"user lacks the placeholder ${unused[0]} of its draw")
    placed = task.placeholders["user"] | task.placeholders.get("conversation.system", set())
    for name in of_subject_words & placed:
        placed = placed.union(*(task.placeholders[f"words.{name}.is.{value}"] for value in task.words[name].values))
    missing = [name for name in task.inputs if name not in placed]
    if missing:
        raise ValueError(f"user lacks the placeholder ${missing[0]} of its input")
    if bool(task.examples) != (task.example is not None):
        raise ValueError("example and examples go together: example is the wording of each")
    for nth, example in enumerate(task.examples):
        inputs = example.model_extra or {}
        if set(inputs) != set(task.inputs) or set(example.output) != set(task.output):
            raise ValueError(f"examples.{nth} must have {', '.join(task.inputs)} and an output of all fields")
