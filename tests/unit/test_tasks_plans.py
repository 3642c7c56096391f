"""Planned math problems: the draw is the same for reader and asker, its answer is exact, and a text keeps to it."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from personahub_spark.errors import SettingsError
from personahub_spark.settings.models import Endpoint
from personahub_spark.tasks import plans
from personahub_spark.tasks.amounts import amounts, apart, states_any, states_only
from personahub_spark.tasks.contract import Reading, Subject
from personahub_spark.tasks.declared import library
from personahub_spark.tasks.views import view_query
from tests.tasks import prompted
from tests.unit.test_tasks_declared import broken

ENDPOINT = Endpoint(model="m", base_url="http://127.0.0.1/v1", structured_output="json_schema")
TASK = prompted("math", ENDPOINT, variant="planned")
BAKER = Subject("baker", {"persona": "A baker of rye bread"})


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("12 loaves", ["12"]), ("twelve loaves", ["12"]), ("a dozen loaves", ["12"]), ("half a dozen", ["6"]),
        ("two dozen", ["24"]), ("twenty-five", ["25"]), ("three hundred and fifty", ["350"]),
        ("two thousand three hundred", ["2300"]), ("two hundred thousand", ["200000"]), ("a hundred", ["100"]),
        ("two, three", ["2", "3"]), ("half an hour", ["1/2"]), ("one half", ["1/2"]), ("two and a half", ["5/2"]),
        ("a third of them", ["1/3"]), ("the third day", []), ("two thirds", ["2/3"]), ("a quarter", ["1/4"]),
        ("the first quarter", []), ("twice a week", ["2"]), ("the one who bakes", []), ("one hundred", ["100"]),
        ("1 loaf", ["1"]), ("the 3rd loaf", []), ("size A4", []), ("5kg", ["5"]), ("12-hour shift", ["12"]),
        ("20%", ["1/5"]), ("20 percent", ["1/5"]), ("twenty per cent", ["1/5"]), ("0.2", ["1/5"]), ("２０％", ["1/5"]),
        ("$7.50", ["15/2"]), ("7,50 €", ["15/2"]), ("50 cents", ["1/2"]), ("$3 and 50 cents", ["7/2"]),
        ("3 dollars and 5 cents", ["61/20"]), ("1,250,000", ["1250000"]), ("1,250.50", ["2501/2"]),
        ("1.250,50", ["2501/2"]), ("1\u202f250", ["1250"]), ("1’250", ["1250"]), ("3 1/2", ["7/2"]), ("½", ["1/2"]),
        ("2½ kg", ["5/2"]), ("٣ kg", ["3"]), ("10 m²", ["10"]), ("It takes 12.", ["12"]), ("someone, often, tent", []),
        ("他有3个苹果", ["3"]), ("第3天", []), ("CO2和A4", []), ("ราคา5บาท", ["5"]), ("он купил А4", []),
        ("0.125 kg", ["1/8"]), ("0,125 kg", ["1/8"]), ("9" * 1000, ["9" * 1000]), ("9" * 5000, []),
    ],
)  # fmt: skip
def test_an_amount_is_read_in_digits_of_any_script_and_in_english_words(text: str, values: list[str]) -> None:
    assert amounts(text) == [frozenset({Fraction(value)}) for value in values]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("5 million people", ["5000000"]), ("5-million-dollar", ["5000000"]), ("$5 million", ["5000000"]),
        ("2.5 Million", ["2500000"]), ("½ million", ["500000"]), ("2½ million", ["2500000"]),
        ("5 and a half million", ["5500000"]), ("a million and a half", ["1500000"]), ("a dozen and a half", ["18"]),
        ("3 dozen eggs", ["36"]), ("5 hundred", ["500"]), ("2 hundred thousand", ["200000"]), ("5 billion", ["5e9"]),
        ("a thousand million", ["1e9"]), ("two lakh crore", ["2e12"]), ("3 lakh crore", ["3e12"]),
        ("five lakh", ["500000"]), ("5 crore", ["5e7"]), ("1 lakh 20 thousand", ["120000"]),
        ("5 million 200 thousand", ["5200000"]), ("2,5 Mio. Euro", ["2500000"]), ("5 Millionen", ["5000000"]),
        ("5 Tausend", ["5000"]), ("5 milliards", ["5e9"]), ("3 millones", ["3000000"]), ("5 тыс. рублей", ["5000"]),
        ("5 करोड़", ["5e7"]), ("٥ ملايين", ["5000000"]), ("5 triệu", ["5000000"]), ("5万元", ["50000"]),
        ("1億5千万円", ["150000000"]), ("3万5000円", ["35000"]), ("5만 원", ["50000"]), ("ราคา 5 ล้าน", ["5000000"]),
        # What looks like it and multiplies nothing.
        ("5 million-dollar houses", ["5", "1000000"]), ("5, million", ["5", "1000000"]), ("5 thousandths", ["5"]),
        ("5 millionaires", ["5"]), ("5 thousand, 200 hundred", ["5000", "20000"]), 
        ("3 thousand 5 pieces", ["3000", "5"]),
        ("5 million two", ["5000000", "2"]), ("3 hundred 2 dozen", ["300", "24"]), ("5千米", ["5"]), ("5百分点", ["5"]),
        ("12 and a half of the rest", ["12", "1/2"]), ("5km", ["5"]), ("5 m", ["5"]), ("5 binders", ["5"]),
        ("twenty thousand", ["20000"]), ("a million", ["1000000"]),
    ],
)  # fmt: skip
def test_words_behind_digits_multiply_them(text: str, values: list[str]) -> None:
    assert amounts(text) == [frozenset({Fraction(value)}) for value in values]


@pytest.mark.parametrize("text", ["5k", "$5K", "5 mil", "5 bin"])
def test_what_may_multiply_by_a_thousand_or_be_a_name_means_either(text: str) -> None:
    assert amounts(text) == [frozenset({Fraction(5), Fraction(5000)})]


@pytest.mark.parametrize("seed", range(30))
def test_a_number_in_words_or_half_in_words_is_the_number_in_digits(seed: int) -> None:
    random = Random(seed)
    word, count = random.choice([("two", 2), ("seven", 7), ("twelve", 12), ("nineteen", 19)])
    scale, times = random.choice([("hundred", 100), ("thousand", 10**3), ("million", 10**6), ("billion", 10**9)])
    whole = count * times
    for text in (f"{word} {scale}", f"{count}-{scale}", f"{count}.0 {scale}", f"{whole}"):
        assert states_only(f"They count {text} of them.", [Fraction(whole)]), text
        assert not states_any(f"They count {text} of them.", [Fraction(count), Fraction(times)]), text


def test_an_amount_in_millions_is_neither_of_the_numbers_that_it_is_made_of() -> None:
    town, five, million = "a town of 5 million people", Fraction(5), Fraction(10**6)
    assert states_only(town, [5 * million]) and not states_only(town, [five, million]) and not states_any(town, [five])
    assert states_only("5 pupils, one million books", [five, million])


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("a town of 5 million people", "a town of   people"), ("3万5000円", " 円"),
        ("12 loaves at 3.50 euro", "  loaves at   euro"), ("20% of them", "  of them"), ("50 cents", " "),
        ("twenty-five and the third", "  and the third"), ("the 3rd A4", "the 3rd A4"), ("他有3个", "他有 个"),
        ("2½ m²", "  m²"), ("no number", "no number"), ("", ""),
    ],
)  # fmt: skip
def test_a_text_is_parted_from_its_amounts(text: str, rest: str) -> None:
    assert apart(text) == (amounts(text), rest)


def test_a_point_before_three_digits_may_mean_thousands_or_the_decimal_mark() -> None:
    assert amounts("1.250") == [frozenset({Fraction(1250), Fraction(5, 4)})] == amounts("1,250")
    for text in ("2500 pieces", "2,500 pieces", "2 500 pieces", "2.500 pieces", "two thousand five hundred"):
        assert states_only(text, [Fraction(2500)]) and states_any(text, [Fraction(2500)])
    assert states_only("in 12 300 gram bags", [Fraction(12), Fraction(300)])


def test_steps_are_calculated_exactly_and_only_the_four_operations_are_known() -> None:
    given = {"a": Fraction(1, 10), "b": Fraction(3)}
    assert plans.calculate({"c": "a * b / 100", "d": "(c + 1) - a"}, given) == {
        "c": Fraction(3, 1000), "d": Fraction(903, 1000)
    }  # fmt: skip
    for wrong in ("a ** b", "z + 1", "abs(a)", "a.real", "1.5", "-a", "a if b else a", "__import__('os')", "True"):
        with pytest.raises(ValueError, match="is no number, known name or one of"):
            plans.calculate({"c": wrong}, given)


@pytest.mark.parametrize("structure", plans.STRUCTURES)
def test_a_structure_gives_three_amounts_and_an_exact_answer_that_its_own_words_do_not_tell(structure: str) -> None:
    drawn = [plans.draw(Random(f"{structure} {seed}"), structures=[structure]) for seed in range(60)]
    assert len({one.texts["plan_words"] for one in drawn}) > 50
    for one in drawn:
        plan, words = one.fields["plan"], one.texts["plan_words"]
        numbers = [Fraction(quantity["number"]) for quantity in plan["quantities"]]
        assert plan["structure"] == structure and len(set(numbers)) == 3 == len(one.data.given)
        steps = dict(step.split(" = ")[:2] for step in plan["steps"])
        names = plans.STRUCTURES[structure]["quantities"]
        results = list(plans.calculate(steps, dict(zip(names, numbers, strict=True))).values())
        assert Fraction(one.fields["plan_answer"]) == results[-1] > 0 and {*results} <= {*one.data.results}
        # The wording of the data file adds no number and gives nothing away.
        assert not plans.other_numbers(words, one.data) and not plans.result_told(words, one.data), words
        # Nor does it misread itself: its facts and its question, as they are, keep to the plan.
        sentences = [quantity["fact"] for quantity in plan["quantities"]]
        for quantity, fact in zip(plan["quantities"], sentences, strict=True):
            assert quantity["number"] in fact and "$" not in fact
        sentences.append(plan["asked"]["question"])
        assert not plans.misread(" ".join(sentences), one.data), sentences


def test_a_scene_of_two_may_say_so() -> None:
    plan = plans.draw(Random(1), structures=["two_speeds"])
    facts = " ".join(quantity["fact"] for quantity in plan.fields["plan"]["quantities"])
    for vehicles, is_other in (("Two vehicles start. ", False), ("Three vehicles start. ", True)):
        assert plans.other_numbers(vehicles + facts, plan.data) == is_other


def test_there_are_enough_structures_and_all_are_drawn() -> None:
    drawn = {plans.draw(Random(seed)).fields["plan"]["structure"] for seed in range(400)}
    assert drawn == {*plans.STRUCTURES} and len(drawn) >= 12


def content(subject: Subject) -> str:
    return str(TASK.request(subject).messages[-1]["content"])


def read(problem: str, subject: Subject = BAKER) -> Reading:
    (reading,) = TASK.read(f"Math problem: {problem}", "stop", subject)
    return reading


def test_the_reader_draws_what_the_question_told_and_another_sample_is_another_plan() -> None:
    plan = read("A baker bakes.").output["plan"]
    for quantity in plan["quantities"]:
        assert f"- {quantity['fact']}\n" in content(BAKER)
    assert f"\nQuestion: {plan['asked']['question']}\n" in content(BAKER)
    other = dataclasses.replace(BAKER, sample=1)
    assert read("A baker bakes.", other).output["plan"] != plan and content(other) != content(BAKER)
    assert {*read("A baker bakes.").output} == {"problem", "plan", "plan_answer"}
    plain = prompted("math", ENDPOINT)
    assert plain.request(other).messages == plain.request(BAKER).messages
    assert {*plain.read("Math problem: A baker bakes.", "stop", BAKER)[0].output} == {"problem"}


def test_the_plan_is_part_of_the_recipe_and_of_the_view_but_not_of_the_schema() -> None:
    assert "plan_answer" not in str(TASK.request(BAKER).response_format)
    assert TASK.recipe != dataclasses.replace(TASK, declaration=one_structure(TASK.declaration)).recipe
    query = view_query(TASK.declaration)
    assert "`problem` string, `plan` string, `plan_answer` string" in query and "s.fields.`plan_answer`" in query


def one_structure(declaration: Any) -> Any:
    draw = declaration.draw["math_plan"].model_copy(update={"parameters": {"structures": ["change"]}})
    return declaration.model_copy(update={"draw": {"math_plan": draw}})


CHANGE = dataclasses.replace(TASK, declaration=one_structure(TASK.declaration))


@pytest.fixture(scope="module")
def given() -> dict[str, str]:
    """The three numbers of a baker's plan, its answer and its cost."""
    (reading,) = CHANGE.read("Math problem: A baker bakes.", "stop", BAKER)
    quantities = reading.output["plan"]["quantities"]
    paid, count, price = (quantity["number"] for quantity in quantities)
    cost = plans.exact(Fraction(count) * Fraction(price))
    money = quantities[0]["unit"]
    other = "dollars" if money != "dollars" else "euros"
    numbers = {"paid": paid, "count": count, "price": price, "money": money, "other": other}
    return {**numbers, "back": reading.output["plan_answer"], "cost": cost}


GOOD = (
    "A baker buys {count} bags of rye for {price} {money} each and pays with {paid} {money}. How much change is there?"
)


@pytest.mark.parametrize(
    ("problem", "checks"),
    [
        (GOOD, ()),
        (GOOD.replace("each", "each one"), ()),
        (GOOD.replace("change is there", "change does the baker get for {paid} {money}"), ()),
        (GOOD.replace("each", "each on 2 days"), ("other_numbers",)),
        (GOOD.replace("each", "each on two days"), ("other_numbers",)),
        (GOOD.replace("{count} bags", "some bags"), ("other_numbers",)),
        (GOOD.replace("each", "each, that is {cost} {money},"), ("other_numbers", "result_told")),
        (GOOD.replace("How", "The baker gets {back} {money}. How"), ("other_numbers", "result_told")),
        (GOOD.replace("?", "? The baker waits."), ("plan_misread", "question_not_last")),
        (GOOD.replace("A baker buys", "How is it? A baker buys"), ("question_not_last",)),
        (
            GOOD.replace("How much change is there?", "The baker waits."),
            ("no_question", "plan_misread", "question_not_last"),
        ),
        (GOOD.replace(" each", " in all"), ("plan_misread",)),
        (GOOD.replace("pays with", "finds"), ("plan_misread",)),
        (GOOD.replace("change is there", "has the baker paid"), ("plan_misread",)),
        (GOOD.replace("{paid} {money}", "{paid} {other}"), ("plan_misread",)),
        (GOOD.replace("bags of rye", "pounds of rye"), ()),
        (
            "Ein Bäcker kauft {count} Säcke zu {price} {money} und zahlt mit {paid}. Wie viel bekommt er heraus?",
            ("persona_unused",),
        ),
    ],
)
def test_a_planned_problem_keeps_to_its_plan(problem: str, checks: tuple[str, ...], given: dict[str, str]) -> None:
    (reading,) = CHANGE.read(f"Math problem: {problem.format(**given)}", "stop", BAKER)
    assert reading.checks == checks, reading.text


@pytest.mark.parametrize(
    ("draw", "fault"),
    [
        ({"mathplan": {}}, "there is no draw 'mathplan'; did you mean math_plan?"),
        ({"math_plan": {"parameters": {"structures": ["x"]}}}, "structure 'x' is not one of price_and_fee"),
        ({"math_plan": {"parameters": {"structures": []}}}, "structures must name some of price_and_fee"),
        ({"math_plan": {"parameters": {"hard": True}}}, "got an unexpected keyword argument 'hard'"),
        ({"math_plan": {"only_with": {"kind": "slow"}}}, "draw.math_plan.only_with names kind slow, which no option"),
        ({"math_plan": {}}, "user lacks the placeholder $plan_words of its draw"),
        ({"math_plan": {"only": {}}}, "unknown key; did you mean only_with?"),
    ],
)
def test_a_wrong_draw_in_a_file_is_named(draw: dict[str, Any], fault: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(broken(draw=draw)), encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        library([file])
    assert fault in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"output": {"dish": {"type": "string"}, "plan": {"type": "string"}}}, "plan is the name of two columns"),
        ({"words": {"style": {"by": "form", "is": {"json": "", "text": ""}},
                    "plan_words": {"by": "form", "is": {"json": "", "text": ""}}}}, "$plan_words is filled by a draw"),
        ({"system": "Tell $plan_words $style"}, "$plan_words, which nothing fills (texts of the subject belong into"),
    ],
)  # fmt: skip
def test_a_draw_may_not_have_the_names_of_something_else(changes: dict[str, Any], fault: str, tmp_path: Path) -> None:
    user = "$plan_words for $persona and $guest"
    raw = broken(**{"draw": {"math_plan": {}}, "user": user, "plain": {}, **changes})
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        library([tmp_path])
    assert fault in str(caught.value)
