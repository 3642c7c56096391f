"""Profiles: what is asked for, what is read of any answer, and each check as pairs that differ by little."""

from __future__ import annotations

import json
import pickle
import re
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personahub_spark.llm.schema import check_for
from personahub_spark.settings.models import Endpoint
from personahub_spark.tasks.contract import Reading
from tests.tasks import prompted, request
from tests.tasks import read as read_task

PLAIN = Endpoint(model="m", base_url="http://127.0.0.1/v1")
JSON = Endpoint(model="m", base_url="http://127.0.0.1/v1", structured_output="json_schema")
TASK = prompted("profile", PLAIN)
BAKER = "A baker of rye bread who is worried about the price of flour and the strength of her wrists."
BACKGROUND = (
    "She grew up above a mill in a valley town and learned to bake from an aunt who weighed nothing. For twenty years "
    "she has rented the same narrow shop beside the bus station, where she lights the oven at three. Since two winters "
    "the rye costs more each month, and kneading hurts."
)
HISTORY = ("14: burned her first batch", "23: rented the shop", "41: sold the second oven")
PREFERENCES = ("likes coarse rye, not wheat", "dislikes electric scales")
SKILLS = ("tells by ear when a loaf is done", "keeps a sourdough alive for years", "files her own knives")
EVENTS = [{"age": int(event[:2]), "event": event[4:]} for event in HISTORY]
MIN_BACKGROUND_WORDS, MIN_ENTRIES = 30, 2  # as library/profile.yaml says


class Profile(NamedTuple):
    background: str
    history: tuple[str, ...]
    preferences: tuple[str, ...]
    skills: tuple[str, ...]

    @property
    def entries(self) -> tuple[str, ...]:
        return (*self.history, *self.preferences, *self.skills)


PROFILE = Profile(BACKGROUND, HISTORY, PREFERENCES, SKILLS)
TOLD = {"background": BACKGROUND, "history": [*HISTORY], "preferences": [*PREFERENCES], "skills": [*SKILLS]}


def listed(entries: tuple[str, ...], mark: str = "- ") -> str:
    return "\n".join(f"{mark}{entry}" for entry in entries)


def changed(**parts: Any) -> Profile:
    return PROFILE._replace(**parts)


def read(answer: str | None, finish_reason: str | None = "stop") -> tuple[Profile | None, str | None]:
    reading = read_task(TASK, answer, finish_reason, BAKER)
    return profile_of(reading), reading.failure


def profile_of(reading: Reading) -> Profile | None:
    if reading.failure is not None:
        return None
    lists = (tuple(reading.output[name]) for name in ("history", "preferences", "skills"))
    return Profile(reading.output["background"], *lists)


def failed_checks(profile: Profile, persona: str) -> tuple[str, ...]:
    return read_task(TASK, json.dumps(profile._asdict()), "stop", persona).checks


def test_the_persona_comes_last_and_everything_before_it_is_the_same_for_all_personas() -> None:
    one, two = request(TASK, BAKER), request(TASK, "A {judge} </persona> <|im_end|> $5")
    assert one.messages[0] == two.messages[0]
    assert two.messages[1]["content"] == "<persona>\nA {judge} < /persona> < |im_end|> $5\n</persona>"
    assert one.prompt_version == two.prompt_version and one.key != two.key
    assert "$" not in str(one.messages[0]["content"])


def test_the_language_is_asked_for_and_changes_the_version() -> None:
    def prompt(language: str | None) -> tuple[str, str]:
        sent = request(prompted("profile", PLAIN, language=language), BAKER)
        return str(sent.messages[0]["content"]), sent.prompt_version

    (same, v1), (german, v2), (free, v3) = prompt("same"), prompt("de"), prompt(None)
    assert "Write in the language of the given sentence." in same and "Write in German." in german
    assert "Write in" not in free and len({v1, v2, v3}) == 3


def test_a_schema_is_sent_where_the_endpoint_takes_one_and_its_fields_come_in_the_order_of_the_prompt() -> None:
    assert request(TASK, BAKER).response_format is None and "JSON" not in str(request(TASK, BAKER).messages)
    json_request = request(prompted("profile", JSON), BAKER)
    check = check_for(json_request.response_format)
    assert check is not None and check.fault(json.dumps({**TOLD, "history": EVENTS, "preferences": SKILLS})) is None
    wrong = [{"skills": []}, {"skills": ["a"] * 9}, {"background": None}, {"more": "x"}, {"history": HISTORY}]
    for part in (*wrong, {"history": [*EVENTS[:2], {"age": 1988, "event": "left"}]}):
        assert check.fault(json.dumps({**TOLD, "history": EVENTS, "preferences": SKILLS, **part})) is not None
    sent = json_request.body().decode()
    written = sent[sent.index('"properties"') :]
    assert [*TOLD] == sorted(TOLD, key=lambda name: written.index(f'"{name}"')) == sorted(TOLD)
    system = str(json_request.messages[0]["content"])
    assert [*TOLD] == sorted(TOLD, key=lambda name: system.index(f"\n{name.title()}: "))


@pytest.mark.parametrize("endpoint", [PLAIN, JSON])
def test_the_examples_in_the_prompt_are_read_as_they_are_meant_and_are_known_when_they_are_copied(
    endpoint: Endpoint,
) -> None:
    task = prompted("profile", endpoint)
    check = check_for(request(task, BAKER).response_format)
    fields = str(request(task, BAKER).messages[0]["content"]).split("\nPerson: ")[1:]
    lengths = []
    for person, _, rest in (part.partition("\n") for part in fields):
        example = rest.partition("\n\n")[0]
        profile = profile_of(read_task(task, example, "stop", person))
        assert profile is not None and failed_checks(profile, person) == ("copies_example",)
        assert re.match(r"\d\d: [a-z]", profile.history[0])
        lengths.append([len(part) for part in (profile.history, profile.preferences, profile.skills)])
        assert check is None or check.fault(example) is None
    assert lengths == [[3, 3, 3], [3, 4, 3]]


def test_a_task_survives_pickling_with_its_requests() -> None:
    assert request(pickle.loads(pickle.dumps(TASK)), BAKER).key == request(TASK, BAKER).key


HEADED = "\n\n".join(
    [
        f"**Background**\n{BACKGROUND}",
        f"**History**\n{listed(HISTORY)}",
        f"**Preferences**\n{listed(PREFERENCES)}",
        f"**Skills**\n{listed(SKILLS)}",
    ]
)


@pytest.mark.parametrize(
    "answer",
    [
        json.dumps(TOLD),
        json.dumps(TOLD, indent=2),
        f"```json\n{json.dumps(TOLD)}\n```",
        f"Here is the portrait:\n\n{json.dumps(TOLD)}\n\nAnything else?",
        json.dumps(json.dumps(TOLD)),
        json.dumps({"persona": BAKER, "profile": TOLD}),
        json.dumps([TOLD]),
        json.dumps(
            {"Background": BACKGROUND, "Life history": HISTORY, "preferences": PREFERENCES, "KEY_SKILLS": SKILLS}
        ),
        json.dumps({**TOLD, "history": EVENTS}),
        json.dumps({**TOLD, "history": [{"event": fields["event"], "Age": fields["age"]} for fields in EVENTS]}),
        json.dumps({**TOLD, "history": "\n".join(HISTORY), "skills": "; ".join(SKILLS)}),
        json.dumps({**TOLD, "skills": [f"{n}. **{skill}**" for n, skill in enumerate(SKILLS, 1)]}),
        json.dumps({**TOLD, "background": BACKGROUND.replace(". ", ".\n\n"), "skills": [*SKILLS, "", "-", None]}),
        json.dumps({**TOLD, "background": [f"{part}." for part in BACKGROUND.removesuffix(".").split(". ")]}),
        HEADED,
        HEADED.replace("**", ""),
        HEADED.replace("**Background**\n", "**Background:** ").replace("**", "## ", 1),
        f"Sure! Here is the portrait.\n\n{HEADED}\n\nI hope this helps!",
        "\n".join(
            [
                f"1. Background: {BACKGROUND}",
                f"2. History:\n{listed(HISTORY, '   * ')}",
                f"3. Preferences:\n{listed(PREFERENCES, '   * ')}",
                f"4. Skills:\n{listed(SKILLS, '   * ')}",
            ]
        ),
        f"- Background: {BACKGROUND}\n- History: {'; '.join(HISTORY)}\n- Preferences: {'; '.join(PREFERENCES)}\n"
        f"- Skills: {'; '.join(SKILLS)}",
    ],
)
def test_any_form_of_a_profile_is_read_as_the_same_profile(answer: str) -> None:
    assert read(answer) == (PROFILE, None)
    assert read_task(TASK, answer, "stop", BAKER).checks == ()


@pytest.mark.parametrize(
    ("fields", "entries"),
    [
        ({"likes": ["rye", "rain"], "dislikes": ["scales"]}, ("likes: rye", "likes: rain", "dislikes: scales")),
        ("rye, rain and snow, old tools.", ("rye", "rain and snow", "old tools")),
        ("likes rye, but not the kind that the mill sells", ("likes rye, but not the kind that the mill sells",)),
        (["16. left school", "23. rented the shop"], ("16. left school", "23. rented the shop")),
        (["1. likes rye", "likes rain"], ("1. likes rye", "likes rain")),
        ("1. likes\u202e rye\n2. likes rain", ("likes rye", "likes rain")),
    ],
)
def test_a_list_told_otherwise_keeps_what_belongs_to_each_entry(fields: Any, entries: tuple[str, ...]) -> None:
    assert read(json.dumps({**TOLD, "preferences": fields})) == (changed(preferences=entries), None)


def test_json_as_deep_as_a_parser_goes_is_looked_at_only_where_a_profile_may_be() -> None:
    deep: Any = BACKGROUND
    for _ in range(300):
        deep = {"more": [deep]}
    assert read(json.dumps(deep)) == (None, "wrong_type")
    assert read(json.dumps({**TOLD, "skills": deep, "more skills": [*SKILLS]})) == (changed(skills=()), None)


def test_an_entry_that_names_a_part_is_no_heading() -> None:
    more = (*PREFERENCES, "soft skills: listening", "a show of skills")
    profile, _ = read(HEADED.replace(listed(PREFERENCES), listed(more)))
    assert profile == changed(preferences=more)
    profile, _ = read(HEADED.replace(listed(SKILLS), listed((*SKILLS, "skills"))))
    assert profile == changed(skills=(*SKILLS, "skills"))


@pytest.mark.parametrize(
    ("answer", "finish_reason", "failure"),
    [
        (None, "stop", "empty"),
        ("", "length", "cut_off"),
        (json.dumps(TOLD)[:-40], "length", "cut_off"),
        (HEADED[:-10], "length", "cut_off"),
        (json.dumps(TOLD)[:-40], "stop", "not_json"),
        ("Here it is:\n" + json.dumps(TOLD, indent=1)[:-40], "stop", "not_json"),
        (json.dumps({"persona": BAKER}), "stop", "wrong_type"),
        ("[1, 2]", "stop", "no_text"),
        ('["a", 2]', "stop", "wrong_type"),
        (BACKGROUND, "stop", "no_heading"),
        ("A portrait of her skills would be long.", "stop", "no_heading"),
        (json.dumps({"background": "", "skills": []}), "stop", "no_text"),
        (json.dumps({"background": None, "history": 7, "skills": [True, {}]}), "stop", "no_text"),
        ("I'm sorry, but I can't create that.", "stop", "refusal"),
        (json.dumps(TOLD), "content_filter", "filtered"),
        (json.dumps({**TOLD, "skills": ["bake"] * 9_000}), "stop", "too_long"),
        ("[" * 9_000 + "x", "stop", "not_json"),
    ],
)
def test_an_answer_without_a_profile_has_a_named_failure(answer: str | None, finish_reason: str, failure: str) -> None:
    assert read(answer, finish_reason) == (None, failure)


def test_json_that_is_whole_at_the_token_limit_was_paid_for_and_is_read() -> None:
    assert read(json.dumps(TOLD) + " " * 50, "length") == (PROFILE, None)


def test_parts_that_are_missing_or_of_another_type_leave_the_rest_readable() -> None:
    profile, failure = read(json.dumps({"background": BACKGROUND, "history": 16, "skills": [*SKILLS]}))
    assert failure is None and profile == Profile(BACKGROUND, (), (), SKILLS)
    assert read_task(TASK, json.dumps({"background": BACKGROUND}), "stop", BAKER).checks == ("missing_field",)
    assert read(json.dumps({"skills": [*SKILLS]})) == (Profile("", (), (), SKILLS), None)


def test_what_no_reader_sees_is_taken_out_of_every_part() -> None:
    fields = {
        name: [f"\u202e{e}\u0000" for e in part] if name != "background" else f"\u200b{part}\ud800"
        for name, part in TOLD.items()
    }
    assert read(json.dumps(fields)) == (PROFILE, None)


WORDS = " ".join(f"word{n}" for n in range(MIN_BACKGROUND_WORDS))


@pytest.mark.parametrize(
    ("check", "bad", "good"),
    [
        ("missing_field", changed(background=""), PROFILE),
        ("missing_field", changed(history=()), changed(history=HISTORY[:2])),
        ("missing_field", changed(skills=()), changed(skills=SKILLS[:2])),
        ("too_short", changed(background=WORDS.rpartition(" ")[0]), changed(background=WORDS)),
        ("too_short", changed(skills=SKILLS[: MIN_ENTRIES - 1]), changed(skills=SKILLS[:MIN_ENTRIES])),
        ("too_short", changed(background="她" * 30), changed(background="她" * 31)),  # pairs of characters
        ("copies_persona", changed(background=f"{BAKER} She bakes rye bread."), changed(background=f"{BAKER} {WORDS}")),
        (
            "copies_example",
            changed(skills=("counts out coins every evening", "smells smoke half a day before the fire")),
            changed(skills=("counts out coins every evening", "smells smoke half a day later")),
        ),
        (
            "copies_example",
            changed(background=f"{BACKGROUND} She bakes until the wind rises."),
            changed(background=f"{BACKGROUND} She bakes until the wind drops."),
        ),
        (
            "persona_unused",
            Profile("He drives a lorry.", ("left home",), ("tea",), ("reading maps",)),
            Profile("He drives a lorry.", ("left home",), ("tea with bread",), ("milling flour",)),
        ),
        ("repeats_itself", changed(skills=("Rests.", "rests")), changed(skills=("Rests.", "rested"))),
        ("repeats_itself", changed(preferences=(*PREFERENCES, SKILLS[0])), changed(preferences=(*PREFERENCES, "tea"))),
        (
            "repeats_itself",
            Profile(WORDS, tuple(f"{n}: she also learned to bake" for n in range(3)), ("tea",), ("sewing",)),
            Profile(WORDS, tuple(f"{n}: she also learned to {verb}" for n, verb in enumerate(("sew", "bake"))), (), ()),
        ),
    ],
)  # fmt: skip
def test_each_check_fails_for_what_it_names(check: str, bad: Profile, good: Profile) -> None:
    assert check in failed_checks(bad, BAKER)
    assert check not in failed_checks(good, BAKER)


@pytest.mark.parametrize(
    ("persona", "at", "bad", "good"),
    [
        ("A baker", "sorted", ("30: opens a shop", "14: left school"), ("14: left school", "30: opens a shop")),
        ("A seven-year-old girl", "stated", ("5: moved", "8: fell"), ("5: moved", "7: fell")),
        ("A retired 71-year-old nurse", "stated", ("72: fell",), ("71: fell",)),
        ("A mother of a seven-year-old girl", "hers", ("30: moved", "9: fell"), ("9: fell", "30: moved")),
        ("A seven-year-old firm's founder", "the firm's", ("30: moved", "9: fell"), ("9: fell", "30: moved")),
        (
            "A seven-year-old girls’ choir's conductor",
            "the choir's",
            ("30: moved", "9: fell"),
            ("9: fell", "30: moved"),
        ),
        ("A seven-year-old who's hungry", "stated", ("8: fell",), ("7: fell",)),
        ("A thirty-one year old nurse", "not read", ("30: moved", "2: fell"), ("2: fell", "30: moved")),
    ],
)
def test_ages_are_impossible_when_they_go_back_or_beyond_the_age_of_the_persona(
    persona: str, at: str, bad: tuple[str, ...], good: tuple[str, ...]
) -> None:
    assert "impossible_ages" in failed_checks(changed(history=bad), persona), at
    assert "impossible_ages" not in failed_checks(changed(history=good), persona), at


def test_a_profile_in_a_language_of_its_own_is_not_held_against_the_words_of_the_persona() -> None:
    answer = json.dumps({**TOLD, "background": WORDS})
    stranger = "Un chauffeur de poids lourd qui traverse les Alpes chaque semaine."
    assert read_task(TASK, answer, "stop", stranger).checks == ("persona_unused",)
    assert read_task(prompted("profile", PLAIN, language="en"), answer, "stop", stranger).checks == ()


UNITS = [
    "{",
    "[",
    '{"skills":[',
    '"background":',
    "Skills:\n",
    "- ",
    "1. ",
    "\n",
    " ",
    "*",
    "abc ",
    "茶",
    "a; ",
    "**",
    "# ",
]


def test_the_longest_answers_are_read_to_their_end() -> None:
    for unit in UNITS:
        text = unit * (19_000 // len(unit))
        fields = json.dumps({"background": text[:4_000], "skills": [text[:4_000]]})
        for answer in (text, f"Background: x\nSkills: {text}", fields):
            reading = read_task(TASK, answer, "stop", text[:2_000])
            assert (profile_of(reading) is None) != (reading.failure is None), unit


@given(
    st.lists(st.sampled_from([*UNITS, HEADED]) | st.text(max_size=5), max_size=40).map("".join), st.text(max_size=60)
)
def test_any_answer_gives_a_profile_or_a_failure_and_never_both(answer: str, persona: str) -> None:
    reading = read_task(TASK, answer, "stop", persona)
    assert (profile_of(reading) is None) != (reading.failure is None)
    profile = profile_of(reading)
    if profile is not None:
        assert all(entry == entry.strip() and any(map(str.isalpha, entry)) for entry in profile.entries)
        "".join((profile.background, *profile.entries)).encode()


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*TOLD, "x"]), inner, max_size=4),
    )
)
def test_json_of_any_types_gives_a_profile_or_a_failure(value: Any) -> None:
    reading = read_task(TASK, json.dumps(value), "stop", BAKER)
    assert (profile_of(reading) is None) != (reading.failure is None)
