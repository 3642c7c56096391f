"""Tasks that a file declares: one prompt with the subject's texts, one output of declared fields."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from string import Template
from typing import Any

from personahub_spark.llm.finish import may_be_cut
from personahub_spark.settings.models import Endpoint, SamplingSettings
from personahub_spark.tasks.checks import CHECKS, IMPLICIT, CheckedAnswer
from personahub_spark.tasks.contract import Drawn, Reading, Subject, Task, failed
from personahub_spark.tasks.declared import FORM, Declaration
from personahub_spark.tasks.draws import DRAWS, draw
from personahub_spark.tasks.fields import Fields
from personahub_spark.tasks.patterns import VECTOR, Shot, Shots
from personahub_spark.tasks.reading import content, opening, unquoted, visible
from personahub_spark.tasks.wording import as_data, in_language, json_format, json_object

MAX_ANSWER_CHARS = 20_000
_SHOWN = "_examples"  # the examples of one question, among its texts
_GAP, _OPENED, _CLOSED = re.compile(r"\n[^\S\n]*\n\s*"), re.compile(r"<\w+>"), re.compile(r"</\w+>")
_BROKEN_JSON = re.compile(r"""\A[\[{]\s*["\[{}]""")


@dataclass(frozen=True)
class AnswerReader:
    """Reads answers to a declared task with the ``options`` that were chosen (see ``Declaration.chosen``)."""

    declaration: Declaration
    options: Mapping[str, str | None]
    shared_texts: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    """Declared inputs that are the same for all subjects."""
    shots: Shots | None = field(default=None, kw_only=True)
    """The examples that the prompts show; None with the pattern zero_shot."""

    @property
    def checks(self) -> tuple[str, ...]:
        """Names of the checks that an output may fail."""
        return (*(check.name for check in self.declaration.checks), *(IMPLICIT if self.shots is not None else ()))

    def read(self, answer: str | None, finish_reason: str | None, subject: Subject) -> tuple[Reading, ...]:
        """The output in an answer, and the names of the checks that it fails.

        An answer is JSON, or plain text with the task's prefix or with a heading for each field. Failures: those of
        ``reading.opening`` and ``Fields.read``; for a task with one text field not_json, cut_off and no_text.
        """
        text = opening(answer, finish_reason, longest=MAX_ANSWER_CHARS)
        if isinstance(text, Reading):
            return (text,)
        is_cut = may_be_cut(finish_reason)
        if self.declaration.is_one_text(self.options):
            return (self._one_text(text, subject, is_cut=is_cut),)
        output, failure = self._fields.read(text, is_whole=not is_cut)
        if failure is not None:
            return (failed(failure),)
        texts = [output[name] for name in self.declaration.text if output.get(name)]
        main = "\n".join("\n".join(map(str, text)) if isinstance(text, list) else str(text) for text in texts)
        return (self._judged(output, main, main, subject, is_cut=is_cut),)

    def _one_text(self, text: str, subject: Subject, *, is_cut: bool) -> Reading:
        written = self._written(text)
        if written is None:
            return failed("cut_off" if is_cut else "not_json")
        main = unquoted(self._prefix.sub("", written)) if self._prefix is not None else written
        if not any(map(str.isalpha, main)):
            return failed("cut_off" if is_cut else "no_text")
        return self._judged({self._text: main}, main, written, subject, is_cut=is_cut)

    def _judged(self, output: Mapping[str, Any], text: str, written: str, subject: Subject, *, is_cut: bool) -> Reading:
        drawn = self._draws(subject)
        drawn_texts = {name: words for one in drawn.values() for name, words in one.texts.items()}
        texts = {**self.shared_texts, **subject.texts, **drawn_texts}
        shots = self.shots.chosen(subject) if self.shots is not None else ()
        answer = CheckedAnswer(
            output,
            text,
            written,
            {name: words for name, words in texts.items() if name != VECTOR},
            is_cut=is_cut,
            in_other_language=self.options.get("language", "same") not in (None, "same"),
            prefix=self._prefix,
            instructions=self._instructions,
            examples=self._example_texts,
            shots=[words for shot in shots for words in shot.texts],
            drawn={name: one.data for name, one in drawn.items()},
            options=self.options,
        )
        kept = {name: value for one in drawn.values() for name, value in one.fields.items()}
        return Reading(text, None, self._failed(answer), {**output, **kept}, tuple(shot.example_id for shot in shots))

    def _failed(self, answer: CheckedAnswer) -> tuple[str, ...]:
        """Names of the checks that ``answer`` fails."""
        parameters = {check.name: check.parameters for check in self.declaration.checks}
        return tuple(name for name in self.checks if CHECKS[name].fails(answer, **parameters.get(name, {})))

    def _written(self, text: str) -> str | None:
        """The plain text of an answer, or the task's text field if the answer is JSON; None for broken JSON or JSON
        without that field."""
        value = content(text, lambda value: self._value(value) is not None)
        if not isinstance(value, str):
            inner = self._value(value)
            if not isinstance(inner, str):
                return None
            value = content(visible(inner), lambda _: False, is_answer=False)
        if not isinstance(value, str):
            return None
        prefixed = self._prefix is not None and self._prefix.match(value) is not None
        if _BROKEN_JSON.match(self._prefix.sub("", value) if self._prefix is not None else value):
            return None
        # After its prefix a text may be about JSON.
        key = re.compile(rf'"{re.escape(self._text)}"\s*:', re.IGNORECASE)
        return None if not prefixed and key.search(value) else value

    def _value(self, value: object) -> object:
        """The value of the text field in a JSON ``value``; None without one."""
        if not isinstance(value, dict):
            return None
        return next((value[key] for key in value if key.strip().lower() == self._text), None)

    @cached_property
    def _fields(self) -> Fields:
        declared = self.declaration
        fields = declared.fields_with(self.options)
        kept = {name: form for name, form in declared.kept.items() if name in fields}
        return Fields(fields, declared.plain.headings, kept, declared.plain.rest)

    @property
    def _text(self) -> str:
        """The one field of an output of one text."""
        return next(iter(self.declaration.fields_with(self.options)))

    @cached_property
    def _prefix(self) -> re.Pattern[str] | None:
        """Matches the prefix of an answer, in any letter case, bold or not."""
        prefix = self.declaration.plain.prefix
        if prefix is None:
            return None
        words = r"\s+".join(map(re.escape, re.findall(r"\w+", prefix)))
        return re.compile(rf"\A[\W_]*{words}[*_]*\s*[:\uff1a][*_\s]*", re.IGNORECASE)

    @property
    def _instructions(self) -> str:
        """What the prompt says before any data; a text that was not asked for here had no prompt."""
        return ""

    @cached_property
    def _example_texts(self) -> tuple[str, ...]:
        texts: list[str] = []
        for example in self.declaration.examples:
            for value in example.output.values():
                for part in value if isinstance(value, list) else [value]:
                    # Numbers in an object are left out: they are no wording of the example.
                    texts += [str(each) for each in (part.values() if isinstance(part, dict) else [part])
                              if isinstance(each, str)]  # fmt: skip
        return tuple(texts)

    def _draws(self, subject: Subject) -> dict[str, Drawn]:
        """What is drawn for ``subject``, by name of the draw."""
        return {name: draw(name, self.declaration.draw[name].parameters, subject) for name in self.drawing}

    @cached_property
    def drawing(self) -> tuple[str, ...]:
        """Names of the draws that are made with the task's options."""
        return tuple(
            name
            for name, one in self.declaration.draw.items()
            if all(self.options.get(option) == value for option, value in one.only_with.items())
        )


@dataclass(frozen=True)
class PromptedTask(AnswerReader, Task):  # type: ignore[override]  # checks are a property
    """A declared task with the ``options`` that were chosen, for one model."""

    endpoint: Endpoint
    settings: SamplingSettings
    second: str | None = None
    """A hash of the settings that decide who the second persona is; None where there is none."""

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.declaration.name

    @property
    def inputs(self) -> tuple[str, ...]:  # type: ignore[override]
        brought = self.shots.inputs if self.shots is not None else ()
        return (*self._own_inputs, *brought)

    @property
    def _own_inputs(self) -> tuple[str, ...]:
        """Inputs of the declaration that differ from subject to subject."""
        return tuple(name for name in self.declaration.needed(self.options) if name not in self.shared_texts)

    @property
    def _instructions(self) -> str:
        return self._system

    @property
    def _form(self) -> str:
        return "text" if self.endpoint.structured_output != "json_schema" else "json"

    @cached_property
    def _words(self) -> dict[str, str]:
        """The text for each placeholder, except those of the subject's texts."""
        declared = self.declaration
        plain = {name: value or "" for name, value in self.options.items()}
        chosen = {**self.options, FORM: self._form}
        language = declared.options.get("language")
        if language is not None and language.language_of is not None:
            plain["language"] = in_language(self.options["language"], language.language_of)
        words = {
            name: Template(word.values[str(chosen[word.by])]).safe_substitute(plain)
            for name, word in declared.words.items()
        }
        if declared.example is not None:
            shown = [
                Template(declared.example).substitute(
                    {**(example.model_extra or {}), "output": self._shown(example.output)}
                )
                for example in declared.examples
            ]
            words["examples"] = "\n\n".join(shown)
        return {**plain, **words}

    def _shown(self, output: Mapping[str, Any]) -> str:
        """An output as an answer should look."""
        if self._form == "json":
            return json.dumps(output, ensure_ascii=False)
        fields = Fields(self.declaration.output, {}).read(json.dumps(output), is_whole=True)[0]
        lines = []
        for name, value in fields.items():
            heading = f"{name.replace('_', ' ').capitalize()}:"
            lines.append("\n- ".join((heading, *value)) if isinstance(value, list) else f"{heading} {value}")
        return "\n".join(lines)

    @cached_property
    def _system(self) -> str:
        return Template(self.declaration.system).substitute(self._words).strip()

    @cached_property
    def _wording(self) -> str:
        """The template of the user's part of a question."""
        return self.declaration.with_texts(self.declaration.user, self.options)

    def _user(self, texts: Mapping[str, str]) -> str:
        given = {**self.shared_texts, **texts}
        shown = given.pop(_SHOWN, None)
        data = {name: as_data(text, name) for name, text in given.items()}
        words = {**self._words, **dict.fromkeys(self.declaration.drawn_texts, ""), **data}
        if self.shots is None:
            return Template(self._wording).substitute(words).strip()
        constant, about_subject = (Template(part).substitute(words).strip() for part in self._divided)
        examples = shown or self._block(self.shots.fixed if self.shots.are_fixed else ())
        return "\n\n".join(filter(None, (constant, examples, about_subject)))

    def _block(self, shots: Iterable[Shot]) -> str:
        return self.shots.block(shots, self.declaration.inputs) if self.shots is not None else ""

    @cached_property
    def _divided(self) -> tuple[str, str]:
        """The wording of ``user`` before and from the first paragraph that holds a text of the subject, or that stands
        in one tag with it: examples come between, behind all that is the same for all subjects."""
        user, at = self._wording, 0
        of_subject = {*self._own_inputs, *self.declaration.drawn_texts}
        for gap in _GAP.finditer(user):
            before = user[: gap.start()]
            if of_subject & {*Template(before).get_identifiers()}:
                break
            if len(_OPENED.findall(before)) == len(_CLOSED.findall(before)):
                at = gap.end()
        return user[:at], user[at:]

    def _texts(self, subject: Subject) -> dict[str, str]:
        drawn = {name: text for one in self._draws(subject).values() for name, text in one.texts.items()}
        texts = {name: subject.texts[name] for name in self._own_inputs} | drawn
        if self.shots is not None and not self.shots.are_fixed:
            texts[_SHOWN] = self._block(self.shots.chosen(subject))
        return texts

    @property
    def _cuts(self) -> dict[str, Any]:
        draws = {name: [self.declaration.draw[name].parameters, DRAWS[name].version] for name in self.drawing}
        second = {"second": self.second} if self.second is not None else {}
        return ({"draws": draws} if draws else {}) | second | (self.shots.recipe if self.shots is not None else {})

    @cached_property
    def _response_format(self) -> dict[str, Any] | None:
        if self._form != "json":
            return None
        return json_format(self.declaration.answer, {
            name: self._filled(schema) for name, schema in self.declaration.fields_with(self.options).items()
        })  # fmt: skip

    def _filled(self, schema: Any) -> Any:
        """``schema`` with words in its patterns, and its objects closed."""
        if not isinstance(schema, dict):
            return schema
        filled = {
            key: Template(part).safe_substitute(self._words) if key == "pattern" else self._filled(part)
            for key, part in schema.items()
        }
        if filled.get("type") == "object" and "properties" in filled:
            filled |= json_object({name: self._filled(part) for name, part in schema["properties"].items()})
        return filled
