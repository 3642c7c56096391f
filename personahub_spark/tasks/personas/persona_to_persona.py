"""Persona-to-Persona (paper section 2.2): who is in close relationship with a persona?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from personahub_spark.settings.models import Endpoint
from personahub_spark.settings.personas import ExpansionSettings
from personahub_spark.tasks.contract import Reading, Subject, Task
from personahub_spark.tasks.personas.answers import RELATIONS, read_several
from personahub_spark.tasks.wording import as_data, fill, in_language, json_format, json_object

# A model that is held to a schema writes its fields in their order, and describes somebody better after it has named
# their relation to the given person.
_RELATIVE = ("relation", "relation_in_own_words", "who")
_EXAMPLE_GIVEN = "A climbing bridge inspector who taps rivets by ear and is often away from home for weeks."
_RELATIVES = (
    (
        "child",
        "the daughter who waits up for her",
        "A seven-year-old girl who sleeps at her aunt's during the week and draws the bridges her mother walks across.",
    ),
    (
        "supplier",
        "the dyer who sells her warning cloth",
        "An elderly dyer in a back street who mixes orange dye by hand and fears that no apprentice will ever come.",
    ),
    (
        "rival",
        "the drone pilot who bids for her contracts",
        "A freelance drone pilot who films steel for cracks and has to prove that pictures find what a hammer would.",
    ),
    (
        "neighbour",
        "the night cleaner on her floor",
        "A cleaner in her sixties who works at night, looks after two grandchildren by day and longs to retire.",
    ),
)


@dataclass(frozen=True)
class PersonaToPersona(Task):
    """Asks who is close to a persona, for several people and their relations in one call."""

    settings: ExpansionSettings
    endpoint: Endpoint
    name = "persona_to_persona"

    def read(self, answer: str | None, finish_reason: str | None, subject: Subject) -> tuple[Reading, ...]:
        """The personas in an answer with their relations to the subject, then the failures; see
        ``answers.read_several``."""
        persona = subject.texts["persona"]
        shown = [_EXAMPLE_GIVEN, *(who for *_, who in _RELATIVES)]
        return read_several(answer, finish_reason, most=self.settings.relations, parent=persona, examples=shown)

    @cached_property
    def _system(self) -> str:
        structured = self._response_format is not None
        count = self.settings.relations
        shown = [
            json.dumps(dict(zip(_RELATIVE, example, strict=True)), ensure_ascii=False)
            if structured
            else "{} ({}): {}".format(*example)
            for example in _RELATIVES[:count]
        ]
        return fill(
            "persona_to_persona",
            given=_EXAMPLE_GIVEN,
            people="1 person who is" if count == 1 else f"{count} people who are",
            relations=", ".join(RELATIONS),
            examples=f'{{"people": [{", ".join(shown)}]}}' if structured else "\n".join(shown),
            reply="one JSON object of this form" if structured else "such lines, one for each person,",
            language=in_language(self.settings.language, "given person"),
        )

    def _user(self, texts: Mapping[str, str]) -> str:
        count = self.settings.relations
        people = "1 other person" if count == 1 else f"{count} other people"
        return fill("persona", persona=as_data(texts["persona"], "persona"), people=people)

    @cached_property
    def _response_format(self) -> dict[str, Any] | None:
        if self.endpoint.structured_output != "json_schema":
            return None
        relation = {"type": "string", "enum": list(RELATIONS)}
        person = json_object({"relation": relation} | {name: {"type": "string"} for name in _RELATIVE[1:]})
        people = {"type": "array", "items": person, "minItems": 1, "maxItems": self.settings.relations}
        return json_format("people", {"people": people})
