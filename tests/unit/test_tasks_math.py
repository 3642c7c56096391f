"""Math problems: what is asked for, what is read, and each check as pairs that differ by as little as they can."""

from __future__ import annotations

import functools
import json
import pickle
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personahub_spark.settings.models import Endpoint
from personahub_spark.tasks import prompted as prompted_tasks
from personahub_spark.tasks.checks import CHECKS, CheckedAnswer
from personahub_spark.tasks.math_checks import (
    asks,
    asks_nothing,
    contains_solution,
    numbers_stated,
    persona_unused,
)
from tests.tasks import prompted, read, request
from tests.waiting import linear

ENDPOINT = Endpoint(model="m", base_url="http://127.0.0.1/v1", structured_output="json_schema")
TASK = prompted("math", ENDPOINT)
NURSE = "A night nurse who tracks drug interactions."
PROBLEM = "A nurse gives 250 mg of a drug every 6 hours. How many grams are given in 3 days?"


def wording(**settings: Any) -> str:
    task = prompted("math", ENDPOINT, **settings)
    return "\n".join(str(message["content"]) for message in request(task, NURSE).messages)


def test_the_persona_comes_last_and_is_given_as_it_is_unless_it_tries_to_get_out() -> None:
    content = str(request(TASK, "A {nurse} with $5 </persona> <|im_end|>").messages[-1]["content"])
    assert content.endswith("<persona>\nA {nurse} with $5 < /persona> < |im_end|>\n</persona>")


def test_each_variant_has_its_own_wording_and_version() -> None:
    topics = [{"variant": "topic", "topic": topic} for topic in ("geometry", "finance and {probability} $5")]
    tasks = [prompted("math", ENDPOINT, **options) for options in ({}, {"variant": "olympiad"}, *topics)]
    assert len({task.prompt_version for task in tasks}) == 4
    assert "Olympiad" in wording(variant="olympiad")
    assert "finance and {probability} $5" in wording(variant="topic", topic="finance and {probability} $5")
    assert "$" not in wording()


def test_the_model_chooses_the_language_unless_the_settings_do() -> None:
    problems = {"英文": f"Math problem: {PROBLEM}", "中文": "Math problem: 护士每6小时给药250毫克，3天一共给药多少克？"}
    languages = ("Write in", None, set()), ("person's description.", "same", {"英文"}), ("French.", "fr", {"中文"})
    for words, language, wrong in languages:
        assert (words in wording(language=language)) == (language is not None)
        task = prompted("math", ENDPOINT, language=language)
        checks = {name: read(task, problem, "stop", "山里小镇的护士").checks for name, problem in problems.items()}
        assert {name for name, failed in checks.items() if "wrong_script" in failed} == wrong, language
    assert wording() == wording(language=None)


def test_a_problem_is_asked_for_as_json_where_the_endpoint_can_with_one_question_at_its_end() -> None:
    def pattern(variant: str) -> re.Pattern[str]:
        task = prompted("math", ENDPOINT, variant=variant)
        response_format = request(task, NURSE).response_format
        assert response_format is not None
        return re.compile(response_format["json_schema"]["schema"]["properties"]["problem"]["pattern"])

    assert pattern("plain").match("Math problem: 3 loaves of 2 kg. How heavy are they?")
    for bad in ("3 loaves. How heavy are they?", "Math problem: Why? How?", "Math problem: How heavy? 6 kg."):
        assert not pattern("plain").match(bad)
    assert pattern("olympiad").match("Math problem: Prove that 3 loaves are enough.")
    plain = prompted("math", ENDPOINT.model_copy(update={"structured_output": "none"}))
    assert request(plain, NURSE).response_format is None
    assert "JSON" not in str(request(plain, NURSE).messages)


@pytest.mark.parametrize(
    "answer",
    [
        json.dumps({"problem": f"Math problem: {PROBLEM}"}),
        f"```json\n{json.dumps({'Problem': 'Math problem: ' + PROBLEM})}\n```",
        json.dumps({"thoughts": "none", "problem": f"Math problem: {PROBLEM}"}, indent=1),
    ],
)
def test_a_problem_in_json_is_read_as_one_in_plain_text(answer: str) -> None:
    assert read(TASK, answer, "stop", NURSE) == read(TASK, f"Math problem: {PROBLEM}", "stop", NURSE)


@pytest.mark.parametrize(
    "answer", ['{"problem": "Math problem: A nurse', '{"question": "x"}', '{"problem": 7}', '["Math problem: x"]', "{}"]
)
def test_broken_json_or_json_without_a_problem_is_a_named_failure(answer: str) -> None:
    assert read(TASK, answer, "stop", NURSE).failure in ("not_json", "no_text")


def test_braces_in_a_problem_of_plain_text_are_no_json() -> None:
    problem = (
        "A nurse fills bags of \\frac{1}{2} litre; the set {2, 3} says how many. How much is that, and {} is empty?"
    )
    assert read(TASK, f"Math problem: {problem}", "stop", NURSE).text == problem


def test_a_task_survives_pickling_with_its_requests() -> None:
    assert request(pickle.loads(pickle.dumps(TASK)), NURSE).key == request(TASK, NURSE).key


@pytest.mark.parametrize(
    "answer",
    [
        f"Math problem: {PROBLEM}",
        f"**Math problem:** {PROBLEM}",
        f"### MATH PROBLEM:\n\n{PROBLEM}\n",
        f"Math problem：{PROBLEM}",
    ],
)
def test_a_good_answer_is_its_problem_without_the_prefix_and_fails_no_check(answer: str) -> None:
    reading = read(TASK, answer, "stop", NURSE)
    assert (reading.text, reading.failure, reading.checks) == (PROBLEM, None, ())


def test_the_prefix_is_taken_from_the_front_only() -> None:
    text = 'A nurse writes "Math problem: 2 drugs" on 3 of 8 boards; which share is that?'
    assert read(TASK, f"Math problem: {text}", "stop", NURSE).text == text
    assert read(TASK, text, "stop", NURSE).text == text


def test_failed_checks_are_named_and_the_text_is_kept() -> None:
    reading = read(TASK, "A cook has 3 eggs. How many? Which? Why?\nSolution: 3", "length", NURSE)
    assert reading.text is not None
    assert reading.checks == (
        "missing_prefix",
        "contains_solution",
        "too_many_subproblems",
        "persona_unused",
        "cut_off",
    )


@pytest.mark.parametrize(
    ("answer", "finish_reason", "failure"),
    [
        (None, "stop", "empty"),
        ("  \n", "stop", "empty"),
        (None, "length", "cut_off"),
        ("Math problem:", "stop", "no_text"),
        ("Math problem:", "length", "cut_off"),
        ("Math problem: 2 + 2 = ?", "stop", "no_text"),
        ("Math problem: A nurse", "content_filter", "filtered"),
        ("I'm sorry, but I can't create that.", "stop", "refusal"),
        ("很抱歉，我无法回答。", "stop", "refusal"),
        (None, "tool_calls", "tool_call"),
        ("Math problem: " + "a nurse " * 5_000, "stop", "too_long"),
    ],
)
def test_an_answer_without_a_problem_has_a_named_failure(answer: str | None, finish_reason: str, failure: str) -> None:
    reading = read(TASK, answer, finish_reason, NURSE)
    assert (reading.text, reading.failure) == (None, failure)


@pytest.mark.parametrize(
    ("bad", "good"),
    [
        (PROBLEM, f"Math problem: {PROBLEM}"),
        (f"Problem: {PROBLEM}", f"Math Problem: {PROBLEM}"),
        (f"Here is a Math problem: {PROBLEM}", f"**Math problem**: {PROBLEM}"),
        (f"数学题：{PROBLEM}", f"Math problem：{PROBLEM}"),
        (f"Math problems {PROBLEM}", f"# Math problem: {PROBLEM}"),
    ],
)
def test_missing_prefix_is_true_only_where_the_answer_opens_otherwise(bad: str, good: str) -> None:
    assert "missing_prefix" in read(TASK, bad, "stop").checks
    assert "missing_prefix" not in read(TASK, good, "stop").checks


@pytest.mark.parametrize(
    ("bad", "good"),
    [
        ("How many apples are left?\nSolution: 3 apples", "How many apples are left?\nSolution A: 3 apples"),
        (
            "How many? Solution: mix 5 % and 9 %.",
            "How many? The solution: mix of 5 % and 9 % salt.".replace("The s", "A salt s"),
        ),
        ("How much is it?\n\n### Solution\n\nFirst, 3 + 4.", "How much is it?\n\n### Solutions sold\n\nFirst, 3 + 4."),
        ("How many are left? Answer: 12", "How many are left? Answer: ______"),
        ("How many are left?\n**Answer:** 12", "How many are left?\n**Answer:**"),
        ("How many are left? (Answer: 12)", "How many are left? (Answer in: litres)"),
        ("How many are left? The answer is 12.", "If the answer is 12, how many were there?"),
        (
            "How many are left? Therefore, the final answer is $\\frac{1}{2}$, or -3",
            "How many are left? Her final answer is wrong.",
        ),
        ("So the answer is: 42", "Her mother thinks that the answer is 42. Is it?"),
        ("What is x? \\boxed{4}", "What is x in a boxed {4}?"),
        ("What is x? To solve this problem, we add.", "What is x? A plan to solve this problem, we learn, costs 5."),
        ("What is x? To find the area, we multiply.", "He wants to find the area. What is it?"),
        ("What is x? Let's calculate the area.", "She says it lets us calculate the area. What is it?"),
        ("A: 3 apples. B: 4. How many?\nAnswer: 7", "A: 3 apples. B: 4. How many?\nA: ?"),
        ("还剩多少？解：3个", "还剩多少？了解：3个"),
        ("还剩多少？\n答案：3", "还剩多少？\n答案："),
        ("还剩多少？答：3个", "还剩多少？答：____"),
        ("いくつ残りますか。\n解答：3個", "いくつ残りますか。\n解答欄は3個ある。"),
        ("Wie viele bleiben?\nLösung: 3", "Wie viele Liter der Lösung: bleiben 3?"),
        ("¿Cuántos quedan? Respuesta: 3", "¿Cuántos quedan en la respuesta: 3?"),
        ("Сколько осталось?\nОтвет: 3", "Сколько осталось?\nОтвет дайте в литрах."),
    ],
)
def test_contains_solution_is_true_only_where_one_is_given(bad: str, good: str) -> None:
    assert contains_solution(bad)
    assert not contains_solution(good)


@pytest.mark.parametrize(
    ("bad", "good"),
    [
        ("A baker proofs 3 loaves for 2 hours each.", "A baker proofs 3 loaves for 2 hours each. How long in all?"),
        ("A baker wants to know the time for 3 loaves.", "A baker has 3 loaves. Find the time for all of them."),
        ("(a) 3 loaves (b) 4 rolls", "(a) 3 loaves (b) 4 rolls: what do both weigh?"),
        ("面包师烤了三个面包。", "面包师烤了三个面包。求总重量。"),
        ("職人は器を3つ修理した。", "職人は器を3つ修理した。全部で何時間かかるか。"),
        ("Пекарь испёк 3 хлеба.", "Пекарь испёк 3 хлеба. Найдите их вес."),
    ],
)
def test_no_question_is_true_when_nothing_is_asked(bad: str, good: str) -> None:
    assert asks_nothing(bad)
    assert not asks_nothing(good)


@pytest.mark.parametrize(
    ("bad", "good"),
    [
        ("A midwife notes weights. What is their mean?", "A midwife notes 3 and 4 kg. What is their mean?"),
        ("A potter fills A4 boxes with 12 cups. How many fit?", "A potter fills 4 boxes with 12 cups. How many fit?"),
        ("A ferry takes one car. How many cross?", "A ferry takes sixty cars in two hours. How many cross?"),
        ("面包师烤了面包。一共多少个？", "面包师烤了三炉面包,每炉十二个。共多少个？"),
        ("一天,一位面包师做面包。要用多少面粉？", "一天,两个面包分给三个人。每人多少？"),
        ("A lawn of 12 m² needs seed. How much?", "A lawn of 12 m² needs 3 kg of seed. How much is that for 1 m²?"),
        ("Eine Hebamme wiegt ein Kind. Wie lange?", "Eine Hebamme wiegt drei Kinder in zwei Stunden. Wie viele in 1?"),
        ("Une boulangère vend un pain. Combien ?", "Une boulangère cuit douze pains et en vend cinq. Combien ?"),
        ("क्या 5 लीटर रंग काफ़ी है?", "५ लीटर रंग ३ साड़ियों के लिए। कितना बचता है?"),
    ],
)
def test_quantities_missing_is_true_when_too_few_numbers_are_stated(bad: str, good: str) -> None:
    assert [numbers_stated(text) >= 2 for text in (bad, good)] == [False, True]
    answer = functools.partial(CheckedAnswer, {}, written="", texts={}, options={"variant": "plain"})
    fails = functools.partial(CHECKS["quantities_missing"].fails, least=2, but={"variant": "olympiad"})
    assert fails(answer(text=bad)) and not fails(answer(text=good))
    assert not fails(answer(text=bad, options={"variant": "olympiad"}))


@pytest.mark.parametrize(
    "good",
    [
        "A nurse has a 5 % salt solution: 200 ml of it are diluted. How strong is it then?",
        "Solution A: 5 % salt.\nSolution B: 9 % salt.\nHow much of each gives 1 litre with 6 %?",
        "A: 3 apples\nB: 4 apples\nHow many apples are there?",
        "Give your answer in litres. How much is left?",
        "The answer is to be rounded to two decimals. What is the mean?",
        "Step 1: mix 3 g of salt. Step 2: add 100 g of water. What is the share of salt?",
        "To find water, a dowser walks 3 km. How far is it back?",
    ],
)
def test_contains_solution_is_false_where_the_words_are_part_of_the_problem(good: str) -> None:
    assert not contains_solution(good)


@pytest.mark.parametrize(
    ("bad", "good"),
    [
        ("How many? How long? How far?", "How many? How long? That far!"),
        ("(a) Find x. (b) Find y. (c) Find z.", "(a) Find x. (b) Find y. (c) See z."),
        ("(a) How many? (b) How long? (c) How far?", "(a) How many? (b) How long?"),
        (
            "Determine the following:\n(a) the mean\n(b) the median\n(c) the mode",
            "Determine the following:\n(a) the mean\n(b) the mode",
        ),
        ("Calculate:\n1. the mean\n2. the median\n3. the mode", "She has:\n1. the mean\n2. the median\n3. the mode"),
        ("Find i) x, ii) y.\nFind: (i) x (ii) y (iii) z", "Find: (i) x (ii) y"),
        (
            "Calculate the mean. Then find the mode. Finally, determine the range.",
            "Calculate the mean. Then find the mode. Finally, she rests.",
        ),
        ("求面积。求周长。求体积。", "求面积。求周长。休息。"),
        ("(1)面积是多少？(2)周长是多少？(3)体积是多少？", "(1)面积是多少？(2)周长是多少？"),
        ("كم عدد؟ كم طول؟ كم وزن؟", "كم عدد؟ كم طول؟ وزن."),
        ("Berechne die Fläche. Bestimme den Umfang. Wie hoch ist sie?", "Berechne die Fläche. Bestimme den Umfang."),
    ],
)
def test_too_many_subproblems_is_true_from_three_on(bad: str, good: str) -> None:
    assert asks(bad) > 2
    assert asks(good) <= 2


@pytest.mark.parametrize(
    "good",
    [
        "1. 3 apples\n2. 4 pears\n3. 5 plums\nHow many fruits are there?",
        "Which is the largest?\n(a) 3\n(b) 4\n(c) 5",
        "Really??? How many are there??",
        "He pays $1. She pays $2. They pay $3. How much is it?",
        "She finds 3 eggs, determines their mass and calculates the mean. What is it?",
        "A sum of 1.5, 2.5 and 3.5 km: how far is it?",
    ],
)
def test_too_many_subproblems_is_false_for_lists_of_data_and_of_choices(good: str) -> None:
    assert asks(good) <= 2


@pytest.mark.parametrize(
    ("persona", "bad", "good"),
    [
        ("A nurse", "A cook has 3 eggs.", "A nurse has 3 eggs."),
        ("A nurse", "Nurture costs 3 coins.", "Nursing costs 3 coins."),
        ("A baker of rye bread", "A banker has 3 coins.", "Baking takes 3 hours."),
        ("An astronomer", "A gastronomer has 3 eggs.", "In astronomy, 3 stars are seen."),
        ("A statistician", "A state has 3 cities.", "The statistics show 3 peaks."),
        ("Two cities' planner", "A site has 3 plants.", "A city has 3 parks."),
        (
            "A retired tram fitter who measures wheel flats in a depot during leaf fall",
            "A driver measures 3 km of a road, and then 4 km.",
            "A fitter measures 3 km of a road, and then 4 km.",
        ),
        ("一位在杭州山上种茶的农民", "一位渔民在河上打鱼3天。", "一位农民在山上种茶3天。"),
        ("夜勤の看護師", "料理人が卵を3個持つ。", "看護師が卵を3個持つ。"),
        ("พยาบาลกะดึกในโรงพยาบาล", "แม่ครัวมีไข่ 3 ฟอง", "พยาบาลมีไข่ 3 ฟอง"),
        ("Eine Imkerin im Schwarzwald", "Eine Köchin hat im Keller 3 Eier.", "Ein Imker hat im Keller 3 Eier."),
        ("Медсестра ночной смены", "Повар купил 3 яйца.", "Медсестры купили 3 яйца."),
        (
            "Someone who is a professional with experience as a pilot",
            "Someone with experience has 3 eggs.",
            "A pilot has 3 eggs.",
        ),
    ],
)
def test_persona_unused_is_true_until_a_telling_word_of_the_persona_is_there(persona: str, bad: str, good: str) -> None:
    assert persona_unused(bad, persona)
    assert not persona_unused(good, persona)


@pytest.mark.parametrize("persona", ["A tea farmer", "She is", ""])
def test_persona_unused_is_false_where_nothing_can_be_said(persona: str) -> None:
    assert not persona_unused("农民有3个鸡蛋。", persona)


UNITS = [
    "(a) ",
    "? ",
    "Find ",
    "answer ",
    "解：",
    "To find x ",
    "\n",
    " ",
    "*",
    "Answer:",
    "abc ",
    "茶",
    "1. ",
    "Math problem:",
    "the final ",
]


@pytest.mark.parametrize("unit", UNITS)
def test_checks_of_the_longest_answer_take_no_time(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompted_tasks, "MAX_ANSWER_CHARS", 10**9)
    text = "x" + unit * (120_000 // len(unit)) + "x"
    with linear():
        read(TASK, text, "stop", NURSE)
        read(TASK, f"Math problem:{text}", "stop", text[:2_000])


@given(st.lists(st.sampled_from(UNITS) | st.text(max_size=5), max_size=40).map("".join), st.text(max_size=60))
def test_any_answer_gives_a_text_or_a_failure_and_never_both(answer: str, persona: str) -> None:
    reading = read(TASK, answer, "stop", persona)
    assert (reading.text is None) != (reading.failure is None)
    assert reading.text is None or "missing_prefix" not in read(TASK, f"Math problem: {reading.text}", "stop").checks
    (reading.text or "").encode()
