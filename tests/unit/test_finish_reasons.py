"""All finish reasons of servers, and how the readers of tasks treat such answers."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personahub_spark.llm.finish import ending, may_be_cut
from personahub_spark.settings.models import Endpoint
from personahub_spark.settings.personas import ExpansionSettings, PersonaSettings
from personahub_spark.tasks.personas.persona_to_persona import PersonaToPersona
from personahub_spark.tasks.personas.text_to_persona import TextToPersona
from tests.tasks import prompted, read
from tests.tasks import readings as readings_of

ENDPOINT = Endpoint(model="m", base_url="http://127.0.0.1/v1")
NURSE = "A night nurse who tracks drug interactions on a paper chart"
PROBLEM = "Math problem: A nurse gives 250 mg of a drug every 6 hours. How many grams are given in 3 days?"

NAMES = {
    "complete": [
        *["stop", "STOP", "Stop", "end_turn", "endTurn", "EOS", "eos_token", "eosFound", "stop_sequence", "COMPLETE"],
        *["stop-sequence", "stopStringFound", "FINISH_REASON_STOP", "FinishReason.STOP", "completed", "endoftext"],
    ],
    "tool_call": ["tool_calls", "TOOL_CALL", "tool_use", "toolUse", "tool-calls", "function_call", "functionCall"],
    "cut_off": [
        *["length", "LENGTH", "max_tokens", "MAX_TOKENS", "maxTokens", "model_length", "max_output_tokens", "limit"],
        *["max_new_tokens", "maxPredictedTokensReached", "contextLengthReached", "model_context_window_exceeded"],
        *["context_length_exceeded", "token_limit", "time_limit", "ERROR_LIMIT", "incomplete", "not_finished"],
        *["MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "pause_turn"],
    ],
    "filtered": [
        *["content_filter", "CONTENT_FILTER", "contentFilter", "content-filter", "content_filtered", "SAFETY"],
        *["IMAGE_SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "sensitive", "ERROR_TOXIC"],
        *["guardrail_intervened", "policy_violation"],
    ],
    "refusal": ["refusal", "REFUSAL", "refused"],
    "fault": [
        *["error", "ERROR", "abort", "aborted", "ABORTED", "cancelled", "canceled", "USER_CANCEL", "timeout"],
        *["insufficient_system_resource", "network_error", "server_error", "rate_limit_exceeded", "modelUnloaded"],
    ],
}
UNKNOWN = ["OTHER", "LANGUAGE", "load", "weird", "non_stop", "unstop", "5", "{}", "?!", "\u505c\u6b62"]


@pytest.mark.parametrize(("name", "meaning"), [(name, meaning) for meaning, names in NAMES.items() for name in names])
def test_a_known_name_means_one_thing_in_any_spelling(name: str, meaning: str) -> None:
    assert ending(name) == meaning
    assert ending(f" {name}\n") == meaning


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_name_does_not_say_that_the_text_is_whole(name: str) -> None:
    assert ending(name) == "cut_off"


@given(st.text(min_size=1))
def test_any_name_means_one_of_six_things_and_few_mean_that_the_text_is_whole(name: str) -> None:
    assert ending(name) in NAMES
    if name.strip().lower() not in ("", "null", "none") and not may_be_cut(name) and ending(name) == "complete":
        assert any(word in name.lower() for word in ("stop", "end", "eos", "complete", "finish", "done", "normal"))


@pytest.mark.parametrize("name", [None, "", " ", "null", "None"])
def test_an_answer_without_a_finish_reason_counts_as_complete(name: str | None) -> None:
    assert ending(name) == "complete"


@pytest.mark.parametrize("name", [*NAMES["cut_off"], *NAMES["fault"], *UNKNOWN])
def test_no_task_accepts_an_answer_that_may_be_cut_off(name: str) -> None:
    (one,) = readings_of(TextToPersona(PersonaSettings(), ENDPOINT), NURSE, name)
    assert (one.text, one.failure) == (None, "cut_off")
    others = f"patient: A retired baker who sleeps badly\ncolleague: {NURSE} since"
    several = readings_of(PersonaToPersona(ExpansionSettings(), ENDPOINT), others, name, "A midwife")
    assert [(reading.text, reading.failure) for reading in several] == [
        ("A retired baker who sleeps badly", None),
        (None, "cut_off"),
    ]
    assert "cut_off" in read(prompted("math", ENDPOINT), PROBLEM, name, NURSE).checks
    half = json.dumps({"background": "She grew up", "skills": ["a", "b"]})[:-3]
    assert read(prompted("profile", ENDPOINT), half, name, NURSE).failure == "cut_off"


@pytest.mark.parametrize("name", NAMES["complete"])
def test_every_task_accepts_a_complete_answer(name: str) -> None:
    (one,) = readings_of(TextToPersona(PersonaSettings(), ENDPOINT), NURSE, name)
    assert (one.text, one.failure) == (NURSE, None)
    assert "cut_off" not in read(prompted("math", ENDPOINT), PROBLEM, name, NURSE).checks


@pytest.mark.parametrize("meaning", ["filtered", "refusal"])
def test_no_task_reads_what_was_filtered_or_refused(meaning: str) -> None:
    for name in NAMES[meaning]:
        (one,) = readings_of(TextToPersona(PersonaSettings(), ENDPOINT), NURSE, name)
        assert (one.text, one.failure) == (None, meaning)


def test_a_tool_call_without_a_text_is_named_so_in_any_spelling() -> None:
    for name in NAMES["tool_call"]:
        (one,) = readings_of(TextToPersona(PersonaSettings(), ENDPOINT), "", name)
        assert one.failure == "tool_call"
