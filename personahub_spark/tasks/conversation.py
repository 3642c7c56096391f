"""Conversations: a task whose answers are the messages of a user, each of which another model replies to.

Each message is a question of its own. Both sides are asked in the form of a chat in which their own turns are those of
the assistant: so a model sees what it said as its own. Chat templates want turns that alternate and begin and end with
the user's; that is why the one who writes for the user gets the description of the person as the first of them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from string import Template
from typing import Any

from personahub_spark.llm.finish import may_be_cut
from personahub_spark.settings.models import Endpoint, SamplingSettings
from personahub_spark.tasks import turn_checks
from personahub_spark.tasks.checks import CheckedAnswer
from personahub_spark.tasks.contract import Reading, Subject, Task, failed
from personahub_spark.tasks.declared import TURNS, Conversation
from personahub_spark.tasks.prompted import MAX_ANSWER_CHARS, PromptedTask
from personahub_spark.tasks.reading import opening
from personahub_spark.tasks.turn_checks import ASSISTANT, ROLES, TURN, USER
from personahub_spark.tasks.wording import as_data, as_message, version

TRANSCRIPT = "transcript"
"""The text of a subject that has the turns so far, as a JSON list of role and content."""
IS_CUT = "is_cut"
"""The field of a message's reading that says whether it may have been cut off."""


@dataclass(frozen=True)
class ConversationTask(PromptedTask):
    """A declared conversation: ``endpoint`` and ``settings`` are those of the user's messages."""

    assistant: Endpoint = field(kw_only=True)
    """Who replies."""
    assistant_settings: SamplingSettings = field(kw_only=True)

    @property
    def declared(self) -> Conversation:
        """The part of the task's file that makes it a conversation."""
        assert self.declaration.conversation is not None
        return self.declaration.conversation

    @property
    def messages(self) -> int:
        """The number of turns, of both sides."""
        return 2 * int(str(self.options[self.declared.exchanges]))

    def message(self, number: int) -> Message:
        """The question for the ``number``-th turn, from 0; the user has the even ones."""
        return Message(self, number)

    @cached_property
    def prompt_version(self) -> str:
        """The version of both sides' wording."""
        return version(self.name, *(self.message(number).prompt_version for number in (0, 1)))

    @cached_property
    def recipe(self) -> str:
        """A hash of all that decides a conversation but the subject: of both sides, and the number of turns."""
        sides = [self.message(number) for number in (0, 1)]
        parts = [[side.endpoint.model, side.prompt_version, side._sampling] for side in sides]
        return hashlib.sha256(json.dumps([parts, self.messages, self._cuts], sort_keys=True).encode()).hexdigest()[:16]

    def judged(self, turns: Sequence[Mapping[str, Any]], subject: Subject) -> Reading:
        """The whole conversation; ``turns`` have the keys of ``TURN`` and ``is_cut``."""
        first = turns[0]["content"]
        answer = CheckedAnswer(
            {role: turn_checks.of(turns, role) for role in ROLES},
            first,
            first,
            {**self.shared_texts, **subject.texts},
            is_cut=any(turn[IS_CUT] for turn in turns),
            in_other_language=self.options.get("language", "same") not in (None, "same"),
            instructions=self._system,
            options=self.options,
            turns=turns,
        )
        return Reading(first, None, self._failed(answer), {TURNS: [{key: turn[key] for key in TURN} for turn in turns]})

    @property
    def _form(self) -> str:
        return "text"

    @property
    def _response_format(self) -> None:
        return None

    def _replier(self, texts: Mapping[str, str]) -> str:
        """What the one who replies is told."""
        data = {name: as_data(text, name) for name, text in {**self.shared_texts, **texts}.items()}
        wording = self.declaration.with_texts(self.declared.system, self.options)
        return Template(wording).substitute({**self._words, **data}).strip()

    def _reply_shown(self, reply: str) -> str:
        """A reply as the one who writes for the user gets it."""
        return Template(self.declared.next).substitute({**self._words, "reply": as_data(reply, "reply")}).strip()


@dataclass(frozen=True)
class Message(Task):
    """The question for one turn of a conversation; the subject has ``TRANSCRIPT`` beside the texts of the task."""

    conversation: ConversationTask
    number: int
    reads_texts = False

    @property
    def role(self) -> str:
        """Whose turn it is."""
        return ROLES[self.number % 2]

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.conversation.name

    @property
    def endpoint(self) -> Endpoint:  # type: ignore[override]
        return self.conversation.endpoint if self.role == USER else self.conversation.assistant

    @property
    def settings(self) -> SamplingSettings:  # type: ignore[override]
        return self.conversation.settings if self.role == USER else self.conversation.assistant_settings

    @property
    def inputs(self) -> tuple[str, ...]:  # type: ignore[override]
        return (*self.conversation.inputs, TRANSCRIPT)

    @property
    def recipe(self) -> str:
        """The conversation's: what goes wrong with one message is kept under it."""
        return self.conversation.recipe

    @cached_property
    def prompt_version(self) -> str:
        """The version of the wording of this side."""
        nothing = dict.fromkeys(self.conversation.inputs, "")
        wording = [self._system, self._user(nothing), self.conversation._reply_shown("")] if self.role == USER else [
            self.conversation._replier(nothing)]  # fmt: skip
        return version(f"{self.name}-{self.role}", *wording)

    def read(self, answer: str | None, finish_reason: str | None, subject: Subject) -> tuple[Reading, ...]:
        """The message in an answer; its output says whether it may have been cut off.

        Failures: those of ``reading.opening``, for all but the first message without refusal and no_text; not_json for
        a message of the user that is JSON without one text.
        """
        text = opening(answer, finish_reason, longest=MAX_ANSWER_CHARS, is_reply=self.number > 0)
        if isinstance(text, Reading):
            return (text,)
        is_cut = may_be_cut(finish_reason)
        # A reply may be code or JSON, and stays as it is; a message of a user is what it says.
        said = text if self.role == ASSISTANT else _said(text)
        if said is None:
            return (failed("cut_off" if is_cut else "not_json"),)
        said = turn_checks.without_own_name(said, self.role).strip()
        if not said:
            return (failed("cut_off" if is_cut else "empty"),)
        return (Reading(said, output={IS_CUT: is_cut}),)

    @property
    def _system(self) -> str:
        return self.conversation._system

    def _user(self, texts: Mapping[str, str]) -> str:
        return self.conversation._user({name: texts[name] for name in self.conversation.inputs})

    @property
    def _response_format(self) -> None:
        return None

    def _messages(self, subject: Subject) -> list[dict[str, str]]:
        turns = json.loads(subject.texts[TRANSCRIPT])
        if self.role == ASSISTANT:
            chat = [{"role": turn["role"], "content": as_message(turn["content"])} for turn in turns]
            return [{"role": "system", "content": self.conversation._replier(subject.texts)}, *chat]
        chat = [
            {"role": ASSISTANT, "content": as_message(turn["content"])}
            if turn["role"] == USER
            else {"role": USER, "content": self.conversation._reply_shown(turn["content"])}
            for turn in turns
        ]
        first = {"role": USER, "content": self._user(subject.texts)}
        return [{"role": "system", "content": self._system}, first, *chat]


# A message may hold code or JSON that its writer shows, and begin with "I have this:", so little is taken for wrapping.
_ANNOUNCED = re.compile(
    r"\A\W{0,4}(?:sure|of course|certainly|okay|ok|alright|here)\b[^\n]{0,120}\b(?:message|prompt|question)\b"
    r"[^\n]{0,60}[:：]\W{0,4}\n+",
    re.IGNORECASE,
)
_OBJECT = re.compile(r'\{\s*".*\}\Z', re.DOTALL)
_TAGGED = re.compile(r"\A<(message|user|persona|second_persona)>(?P<inside>.*)</\1>\Z", re.DOTALL | re.IGNORECASE)
# A closing tag of the prompt, which a model may go on with after its message.
_STRAY = re.compile(r"</(message|user|reply|persona|second_persona)>\Z", re.IGNORECASE)
_QUOTED = re.compile(
    r"\A(?:\"(?P<straight>[^\"]*)\"|“(?P<curly>[^“”]*)”|«(?P<angled>[^«»]*)»|「(?P<corner>[^「」]*)」)\Z"
)


def _said(text: str) -> str | None:
    """The message in ``text``, without an announcement, tags or quotes around it; None for JSON with no one text."""
    text = _ANNOUNCED.sub("", text, count=1).strip()
    if _OBJECT.match(text):
        try:
            value = json.loads(text, strict=False)
        except (ValueError, RecursionError):
            return None
        parts = [part for key, part in value.items() if isinstance(part, str) and key.lower() != "role"]
        return parts[0].strip() if len(parts) == 1 else None
    tagged = _TAGGED.match(text)
    text = tagged["inside"].strip() if tagged else text
    stray = _STRAY.search(text)
    if stray is not None and f"<{stray[1].lower()}>" not in text.lower():
        text = text[: stray.start()].strip()
    quoted = _QUOTED.match(text)
    return next(part for part in quoted.groups() if part is not None).strip() if quoted else text
