"""What every task makes of an answer first: thoughts, marks of chat templates and wrappers off, TeX put right."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personahub_spark.settings.models import Endpoint
from personahub_spark.settings.personas import ExpansionSettings
from personahub_spark.tasks.personas.answers import read_one, read_several
from personahub_spark.tasks.personas.persona_to_persona import PersonaToPersona
from personahub_spark.tasks.tex import Decoder, garbled, mended
from tests.tasks import prompted, read
from tests.tasks import readings as readings_of
from tests.waiting import linear

ENDPOINT = Endpoint(model="m", base_url="http://127.0.0.1/v1")
PERSONA = "A retired nurse who teaches first aid"
GIVEN = "A baker of rye bread"
PROBLEM = "A baker sells 8 loaves of rye bread for 3 coins each. How many coins is that?"
PROFILE = {
    "background": "She was born above a bakery of rye bread and left it at sixteen for the ferry across the bay, where "
    "an old mate taught her to read the tide. Since her brother fell ill she bakes again, alone and at night.",
    "history": ["16: leaves for the ferry", "41: comes back to the ovens"],
    "preferences": ["likes the smell of wet flour", "hates the new slicer"],
    "skills": ["judges dough by its sound", "ties a bowline behind her back"],
}


def one(answer: str | None, finish_reason: str = "stop") -> str | None:
    reading = read_one(answer, finish_reason)
    return reading.text if reading.failure is None else f"!{reading.failure}"


def several(answer: str) -> list[str | None]:
    return [reading.text or f"!{reading.failure}" for reading in read_several(answer, "stop", most=3)]


def problem(answer: str) -> tuple[str | None, tuple[str, ...]]:
    reading = read(prompted("math", ENDPOINT), answer, "stop", GIVEN)
    return (reading.text if reading.failure is None else f"!{reading.failure}"), reading.checks


def profile(answer: str) -> dict[str, Any] | str | None:
    reading = read(prompted("profile", ENDPOINT), answer, "stop", GIVEN)
    return reading.failure if reading.text is None else dict(reading.output)


# --- thoughts and the marks of chat templates

THOUGHTS = [
    "Maybe an angler.\n</think>\n\n{}",
    "Maybe an angler.</think>{}",
    "<think>Maybe an angler.</think>{}",
    "<think>\n\n</think>\n\n{}",
    "<THINK>Maybe an angler.</THINK>\n{}",
    '<think time="3s">Maybe an angler.</think >{}',
    "<thinking>Maybe an angler.</thinking>\n{}",
    "<thought>\nMaybe an angler.\n</thought>\n{}",
    "<Reasoning>Maybe an angler.</Reasoning>{}",
    "<scratchpad>Maybe an angler.</scratchpad>\n\n{}",
    "<reasoning_process>Maybe an angler.</reasoning_process>{}",
    "<seed:think>Maybe an angler.</seed:think>{}",
    "&lt;think&gt;Maybe an angler.&lt;/think&gt;{}",
    "[THINK]Maybe an angler.[/THINK]{}",
    "◁think▷Maybe an angler.◁/think▷{}",
    "<|channel>thought\nMaybe an angler.<channel|>{}",
    "<|begin_of_thought|>Maybe.<|end_of_thought|>\n\n<|begin_of_solution|>\n{}\n<|end_of_solution|>",
    "<|START_THINKING|>Maybe.<|END_THINKING|><|START_RESPONSE|>{}<|END_RESPONSE|>",
    "Here is my thought process:\nMaybe an angler.\n\nHere is my response:\n{}",
    "<|channel|>analysis<|message|>Maybe.<|end|><|start|>assistant<|channel|>final<|message|>{}<|return|>",
    "<|channel|>analysis<|message|>Maybe.<|end|><|start|>assistant<|channel|>commentary<|message|>So.<|end|>"
    "<|start|>assistant<|channel|>final <|constrain|>json<|message|>{}",
    "analysisMaybe an angler.assistantfinal{}",
    "<think>Maybe.</think> Or not. <think>No.</think>\n{}",
    "Okay.\n<think>Maybe an angler.</think>\n{}",
    "<thinking>Maybe. <reflection>No.</reflection> So.</thinking>\n<output>\n{}\n</output>",
    "<think>Maybe an angler.</think>\n<answer>{}</answer>",
    '<think>First: {{"persona": "An angler", "problem": "Math problem: An angler?"}}</think>{}',
    "<thinking_process>Maybe an angler.</thinking_process>{}",
    "<think>Maybe an angler.<\\/think>{}",
    "Reasoning: maybe an angler.\nOr a nurse.\n\n**Final answer:** {}",
    "{}\n<think>Or an angler",
]
THOUGHTS += [
    "<longcat_think>Maybe.</longcat_think>{}",
    "<deepthink>Maybe.</deepthink>\n{}",
    "<self_reflection>Maybe.</self_reflection>{}",
    "<tool_thinking>Maybe.</tool_thinking>{}",
    "<unused94>thought\nMaybe.<unused95>{}",
    "Thinking...\nMaybe.\n...done thinking.\n\n{}",
    '<details type="reasoning"><summary>Thought for 3 seconds</summary>Maybe.</details>{}',
    "<think/>{}",
    "analysis用户想要一个人物。assistantfinal{}",
    "analysis1. Maybe. assistantfinal{}",
    "analysisthe user wants one.assistantfinal{}",
    "analysis The user wants one.assistantfinal {}",
    "assistantanalysisWe think.assistantfinal{}",
    "final<|message|>{}",
    "<|channel|>final\n{}",
    "<|channel|>analysis<|message|>Maybe.<|end|><|start|>assistant<|message|>{}",
]
TURNS = [
    "assistant\n\n{}",
    "model\n{}",
    "{}[UNUSED_TOKEN_145]",
    "{}<end_of_sentence>",
    "{}<reserved_107>",
    "{}<pad><pad>",
    "{}<unk>",
    "{}[PAD]",
    "{} [end of text]",
    "<solution>{}</solution>",
    "{}<|im_end|>",
    "{}<|eot_id|>",
    "{}</s>",
    "{}<|endoftext|>",
    "{}<|end|>\n",
    "{}<end_of_turn>\n",
    "{}<｜end▁of▁sentence｜>",
    "{}[|endofturn|]",
    "{} [/INST]",
    "{}<|im_end",
    "{}<|im_end|>\n<|im_start|>user\nAnd an angler?",
    "{}</s><s>[INST] And an angler?",
    "<|im_start|>assistant\n{}<|im_end|>",
    "<|start_header_id|>assistant<|end_header_id|>\n\n{}<|eot_id|>",
    "<start_of_turn>model\n{}",
    "<|assistant|>\n{}",
    "[/INST] {}",
    "<think>Maybe.</think>\n```json\n{}\n```<|im_end|>",
]
WRAPPERS = [
    "```\n{}\n```",
    "```json\n{}\n```",
    "``` json\n{}\n```",
    "~~~\n{}\n~~~",
    "```json {}```",
    "````\n```\n{}\n```\n````",
    "```json\n{}",
    "```json\n{}```",
    "\n\n  ```text\n{}\n  ```\n",
    "Here it is:\n```json\n{}\n```",
    "Sure! Here it is:\n\n```\n{}\n```\n\nAnything else?",
    "<answer>{}</answer>",
    "<output>\n{}\n</output>\n",
    "<answer>\n{}",
    "{}</answer>",
]


@pytest.mark.parametrize("around", [*THOUGHTS, *TURNS, *WRAPPERS])
def test_what_stands_around_an_answer_is_no_part_of_it_for_any_task(around: str) -> None:
    def put(text: str) -> str:
        return around.replace("{}", text).replace("{{", "{").replace("}}", "}")

    for reply in (PERSONA, json.dumps({"persona": PERSONA}), json.dumps({"persona": PERSONA}, indent=1)):
        assert one(put(reply)) == PERSONA
    for reply in (PERSONA, json.dumps({"personas": [PERSONA]})):
        assert several(put(reply)) == [PERSONA]
    for reply in (f"Math problem: {PROBLEM}", json.dumps({"problem": f"Math problem: {PROBLEM}"})):
        assert problem(put(reply)) == (PROBLEM, ())
    assert profile(put(json.dumps(PROFILE))) == PROFILE


@pytest.mark.parametrize(
    "answer",
    [
        "<think>Maybe an angler",
        "<Thinking>Maybe an angler",
        "[THINK]Maybe an angler",
        "◁think▷Maybe an angler",
        "<think>Maybe.</think>",
        "<think>Maybe.</think>\n<think>Or a pilot",
        "<|channel|>analysis<|message|>Maybe an angler",
        "analysisWe need an angler",
        "<|im_start|>assistant\n<|im_end|>",
    ],
)
def test_thoughts_without_an_answer_are_empty_or_cut_off(answer: str) -> None:
    assert (one(answer, "stop"), one(answer, "length")) == ("!empty", "!cut_off")
    assert several(answer) == ["!empty"]


def test_a_tool_that_is_called_in_a_channel_is_no_persona() -> None:
    call = "<|channel|>commentary to=functions.search <|constrain|>json<|message|>{}<|call|>"
    assert one(call) == one("<think>a</think><|python_tag|>search()") == "!tool_call"


CONTENTS = [
    "A developer who marks up ```code``` in chats and sells pies",
    "A developer who cuts </think> out of answers of models",
    "A developer who reads <think>thoughts</think> and <|im_end|> all day",
    "A tester of [/THINK] and </s> who has seen ◁/think▷ once",
    "A chemist who says ~~~ wow ~~~ to pupils",
    'A developer who posts {"persona": "admin"} to servers',
    "A clerk who writes:\n```\ncode\n```\nand goes home",
    "A clerk who says:\nnothing at all, and goes home",
    "A 1.5-tonne truck driver",
    "1.5-tonne truck driver who sings",
    "#1 fan of a rowing club who bets",
    "A coder of __init__ and `args` in Python",
    "A teacher who writes <answer>x</answer> on boards",
    "A teacher whose pupils call her persona: the owl",
]


@pytest.mark.parametrize("content", CONTENTS)
def test_wrappers_and_marks_inside_json_are_content(content: str) -> None:
    expected = " ".join(content.split())
    reply = json.dumps({"persona": content})
    for answer in (
        reply,
        f"```json\n{reply}\n```",
        f"<think>a</think>{reply}<|im_end|>",
        f"Here it is:\n{reply}",
        json.dumps(reply),
    ):
        assert one(answer) == expected
    reply = json.dumps({"personas": [content, PERSONA]})
    assert several(reply) == several(f"```\n{reply}\n```") == [expected, PERSONA]
    reply = json.dumps({"problem": f"Math problem: {content}?"})
    assert problem(reply)[0] == problem(f"```json\n{reply}\n```")[0] == f"{content}?"
    output = profile(json.dumps({**PROFILE, "background": content}))
    assert isinstance(output, dict) and output["background"] == expected


@pytest.mark.parametrize(
    "content",
    [
        "A developer who marks up ```code``` in chats and sells pies",
        "A developer who reads <think> tags all day",
        "A developer who reads `</think>` all day",
        "A developer who parses <think>…</think> blocks of models",
        "A developer who studies <|im_end|> tokens of models",
        "1.5-tonne truck driver who sings",
        "A clerk who says:\nnothing at all, and goes home",
        "A clerk who writes:\n```\ncode\n```\nand goes home",
    ],
)
def test_wrappers_and_marks_that_a_plain_persona_speaks_of_are_content(content: str) -> None:
    assert one(content) == " ".join(content.split())


@pytest.mark.parametrize(
    "content",
    [
        "1.5-tonne truck driver who sings",
        "#1 singer of a choir that tours town halls",
        "A tester who pipes ls | grep all day",
        "10:30 baker",
    ],
)
def test_marks_of_a_list_are_not_taken_from_the_middle_of_a_persona(content: str) -> None:
    for answer in (
        f"1. {content}\n2. {PERSONA}",
        f"- {content}\n- {PERSONA}",
        f"{content}\n{PERSONA}",
        json.dumps([content, PERSONA]),
    ):
        assert several(answer) == [content, PERSONA]
        readings = readings_of(PersonaToPersona(ExpansionSettings(), ENDPOINT), answer, "stop", GIVEN)
        assert [reading.text for reading in readings] == [content, PERSONA]


def test_labels_and_boxes_around_a_plain_persona_are_no_part_of_it() -> None:
    for answer in (
        f"Answer: {PERSONA}",
        f"**Final answer:** {PERSONA}",
        rf"\boxed{{\text{{{PERSONA}}}}}",
        rf"\boxed{{{PERSONA}}}",
    ):
        assert one(answer) == PERSONA
    assert one("An answer: a person who knows one, and more") == "An answer: a person who knows one, and more"


def test_json_that_a_plain_text_speaks_of_is_not_the_answer() -> None:
    assert one('A developer who posts {"persona": "admin"} to servers all day') == "!not_json"
    text = 'A baker posts {"problem": "Math problem: none?"} to 8 servers of 3 coins each. How many coins is that?'
    assert problem(f"Math problem: {text}")[0] in (text, "!not_json")
    text = 'A baker sends the order {"loaves": 8, "coins": 3} to a mill. How many coins is that?'
    assert problem(f"Math problem: {text}") == (text, ())


def test_of_json_that_is_broken_no_object_inside_is_the_answer() -> None:
    assert one('{"draft": {"persona": "An angler"}, "persona": "A nur') == "!not_json"
    assert problem('{"draft": {"problem": "Math problem: An angler?"}, "problem": "Math pro')[0] == "!not_json"


def test_json_with_other_text_around_is_read_where_it_is_meant() -> None:
    reply = json.dumps({"persona": PERSONA})
    for answer in (
        f"Result: {reply} as asked.",
        f"I think of a nurse, for the text is about wounds.\n\n{reply}",
        f"JSON {reply}",
    ):
        assert one(answer) == PERSONA
    reply = json.dumps({"problem": f"Math problem: {PROBLEM}"})
    assert problem(f"Here is a problem for the baker:\n{reply}\nEnjoy!") == (PROBLEM, ())


CODE = "```\ncode\n```"
CODE_IN_PYTHON = "```python\nprint(1)\n```"
OBJECT = '{"problem": "cakes", "persona": "x", "n": 4}'


@pytest.mark.parametrize("code", [CODE, CODE_IN_PYTHON, "~~~\ncode\n~~~", "\n```\ncode\n```\n"])
def test_a_fence_inside_a_plain_answer_is_text(code: str) -> None:
    for text in (
        f"The developer who types:\n{code}\nand sells pies",
        f"Eine Entwicklerin, die schreibt:\n{code}\nund Kuchen verkauft",
        f"{code}\nA retired nurse who types this",
        f"Here is what she types:\n{code}\nA retired nurse",
    ):
        assert "pies" not in text or "pies" in str(one(text))
        assert "code" in str(one(text)) or "print" in str(one(text))
        assert one(text) not in ("code", "print(1)")
    for text in (
        f"Consider this program:\n{code}\nWhat is the sum of what it prints?",
        f"Math problem: Consider this program:\n{code}\nWhat is the sum of what it prints?",
        f"Math problem:\n{code}\nWhat is the sum of what this prints?",
        f"Here is a program:\n{code}\nWhat is the sum of what it prints?",
    ):
        assert str(problem(text)[0]) == text.removeprefix("Math problem:").strip()
    personas = several(f"Patient: A clerk who types:\n{code}\nFriend: A cook who bakes")
    assert "A clerk who types" in str(personas[0]) or "A clerk who types" in " ".join(map(str, personas))
    output = profile(f"Background: He types:\n{code}\nand sells pies\nHistory:\n- aa\n- bb\nSkills:\n- cc")
    assert isinstance(output, dict)
    assert output["background"].startswith("He types:") and output["background"].endswith("and sells pies")
    assert output["history"] == ["aa", "bb"]


def test_a_fence_around_plain_text_counts_with_nothing_behind_it_and_a_known_announcement_before() -> None:
    for answer in (f"Sure!\n\nHere is the persona:\n```\n{PERSONA}\n```", f"Output:\n```\n{PERSONA}\n```"):
        assert one(answer) == PERSONA
    assert one(f"She types:\n```\n{PERSONA}\n```") != PERSONA
    assert one(f"Whatever she says, listen:\n```json\n{json.dumps({'persona': PERSONA})}\n```") == PERSONA


def test_an_object_inside_a_plain_answer_is_text() -> None:
    for answer in (
        f"A teacher of JSON who asks her class: {OBJECT} is an object of which kind, in which language?",
        f"A teacher of JSON who asks her class what this is:\n{OBJECT}\nand wants to know the language it is in",
    ):
        assert one(answer) == "!not_json"
    text = f"The baker stores orders like this:\n{OBJECT}\nHow many cakes are there in 7 such orders of the baker?"
    assert problem(f"Math problem: {text}")[0] == text
    assert problem(text)[0] == "!not_json"


# --- TeX

TEX = [
    r"\frac{1}{2}", r"\theta", r"\times", r"\beta", r"\bar{x}", r"\binom{5}{2}", r"\forall", r"\rho", r"\rightarrow",
    r"\left( x \right)", r"\nabla f", r"\text{if}", r"\tfrac12", r"\begin{cases} a & b \\ c \end{cases}", r"\sqrt{2}",
    r"\( y \)", r"\,", r"\;", r"\{1, 2\}", r"5\%", r"\$3", r"\underline{x}", r"\vec{v}", r"\mu", r"\Delta",
    r"\to\infty",
]  # fmt: skip


@pytest.mark.parametrize(
    "command", [*TEX, r"$x \neq 3$", r"$\tan x$", r"$\nu$", r"$x \to 0$", r"x\neq 0", r"2\tan x", r"x \ne y"]
)
def test_tex_in_json_reads_the_same_with_one_backslash_and_with_two(command: str) -> None:
    text = f"A baker has {command} of 8 loaves; how many"
    careless = f'{{"problem": "Math problem: {text}?"}}'
    careful = json.dumps({"problem": f"Math problem: {text}?"})
    assert problem(careless)[0] == problem(careful)[0] == f"{text}?"
    assert one(f'{{"persona": "{text}"}}') in (text, "!garbled_latex")
    output = profile(json.dumps(PROFILE)[:-2] + f', "{text}"]}}')
    assert isinstance(output, dict) and output["skills"][-1] == text


def test_one_answer_may_have_one_backslash_and_two() -> None:
    assert problem(r'{"problem": "Math problem: A baker has \\frac{1}{2} + \sqrt{2} \times 5 loaves; how many?"}') == (
        r"A baker has \frac{1}{2} + \sqrt{2} \times 5 loaves; how many?",
        (),
    )
    assert (
        problem(r'{"problem": "Math problem: The baker\'s 8 loaves \u00d7 3; how many?"}')[0]
        == "The baker's 8 loaves × 3; how many?"
    )


def test_commands_that_all_have_two_backslashes_have_one() -> None:
    expected = r"A baker has \frac{1}{2} of \begin{cases} a \\ b \end{cases}; how many?"
    assert mended(expected.replace("\\", "\\\\")) == mended(expected) == expected
    assert problem(json.dumps({"problem": "Math problem: " + expected.replace("\\", "\\\\")}))[0] == expected


PLAIN_WORDS = [
    "an apple",
    "Now",
    "to go",
    "exists",
    "mid",
    "u",
    "e",
    "i",
    "eq",
    "text",
    "less",
    "o",
    "tag",
    "not",
    "Times",
    "box of pies",
    "ill",
    "lat",
    "anh",
    "costs $5",
]


@given(
    st.lists(st.sampled_from(["\n", "\t", " ", ". ", "\n\t", "\n\n", *PLAIN_WORDS]), max_size=20).map("".join),
    st.sampled_from(["", r"$\frac{1}{2}$ ", r"\theta "]),
)
def test_line_breaks_and_tabs_before_words_come_back_as_they_are(text: str, start: str) -> None:
    assert Decoder().decode(json.dumps(f"{start}. {text}")) == f"{start}. {text}"


PIECES = st.sampled_from(
    [*TEX, "a", "12", " x ", "=", "(", ")", " ", r"\alpha", r"\cdot", r"\pi", r"\le", "rye bread", "é"]
)


@settings(max_examples=300)
@given(st.lists(PIECES, min_size=1, max_size=20).map(" ".join))
def test_any_tex_that_a_careless_model_writes_into_json_comes_back_equal(text: str) -> None:
    assert Decoder().decode(f'"{text}"') == text
    assert Decoder().decode(json.dumps(text)) == text


@given(st.text() | st.lists(PIECES | st.sampled_from(["\n", '"', "\\", "\t"])).map("".join))
def test_json_that_json_can_read_is_never_refused(text: str) -> None:
    Decoder().decode(json.dumps({"a": [text]}))
    assert mended(mended(text)) == mended(text)


@pytest.mark.parametrize(
    ("bad", "good"),
    [
        ("rac{3}{4} of 8", r"\frac{3}{4} of 8"),
        ("3 imes 4", "3 times 4"),
        ("frac{3}{4} of 8", "a fraction {3}"),
        (r"\frac{1}{2", r"\frac{1}{2}"),
        (r"\{1, 2 and \frac{1}{2}}", r"\{1, 2 and \frac{1}{2}"),
        (r"\begin{cases} x", r"\begin{cases} x \end{cases}"),
        (r"\left( x )", r"\left( x \right)"),
        ("$\\theta$ and x\nu = 3", "$\\theta$ and x.\nu = 3"),
        ("a set {1, 2 of \\alpha", "a set {1, 2 of alpha"),
    ],
)
def test_tex_that_lost_something_is_garbled(bad: str, good: str) -> None:
    assert garbled(bad) and not garbled(good)
    assert "garbled_latex" in problem(f"Math problem: A baker has {bad}; how many?")[1]
    assert "garbled_latex" not in problem(f"Math problem: A baker has {good}; how many?")[1]
    assert one(f"A baker who has {bad} of 8") == "!garbled_latex"


def test_no_control_character_comes_out_of_any_reader() -> None:
    reply = r"A baker \foo \b \f \r\n of \bar 8 \r loaves"
    for text in (problem(f'{{"problem": "Math problem: {reply}?"}}')[0], one(f'{{"persona": "{reply}"}}')):
        assert text is not None and not set(text) & set(map(chr, [*range(9), 11, 12, 13, *range(14, 32)]))


@pytest.mark.parametrize(
    "unit",
    ["<think>", "</think>", "<|im_end|>", "<", "```\n", "~~~", '{"a":1}', "\\", "\\\\", "\\ne ", "\n\\", "$\ne",
     "<answer>", "`</think>", "&lt;", '{"persona": "', "<|channel|>final<|message|>", "</s> x", "a:\n", "\\begin{",
     "\x0crac{", "\tan x ", "[/INST]", "x_{"],
)  # fmt: skip
def test_the_longest_answers_are_read_without_hanging(unit: str) -> None:
    task = PersonaToPersona(ExpansionSettings(), ENDPOINT)

    answer = unit * (45_000 // len(unit))
    start = time.process_time()
    for text in (answer, f"x{answer}", json.dumps({"persona": answer})):
        one(text)
        readings_of(task, text, "stop", GIVEN)
        problem(text)
    assert time.process_time() - start < 120  # a few seconds; hours where a pattern backtracks


ONE_BACKSLASH = [
    r"\tr(A)=3, what", r"\tau is a time. For \tau = 3, what is \tau^2", r"$\tr(A) = 3$, what is $\tr(2A)$",
    r"$\rank(A)$ is 3, what", r"What is the \rank of A", r"$\frak{g}$", r"$\fint f$", r"$\trace A$", r"$\tensor T$",
    r"$\thetaX$", r"$\nullity$", r"$a\negthinspace b$", r"$\noalign{}$", r"$x \nin A$", r"x =\nu", r"x_\nu", r"\ne 0",
    r"$\r{a}$", r"\foo 3", r"\bra x", r"\(x\) of \tau", r"where \nu is \(2\)", r"\rbar",
]  # fmt: skip


@pytest.mark.parametrize("text", ONE_BACKSLASH)
def test_commands_that_no_list_knows_are_kept_by_where_they_stand(text: str) -> None:
    assert problem(f'{{"problem": "Math problem: {text}?"}}') == problem(
        json.dumps({"problem": f"Math problem: {text}?"})
    )
    assert problem(f'{{"problem": "Math problem: {text}?"}}')[0] == f"{text}?"
    assert one(f'{{"persona": "A teacher who asks {text} daily"}}') in (
        f"A teacher who asks {text} daily",
        "!garbled_latex",
    )


@pytest.mark.parametrize(
    "text",
    [
        "O preço é 5\ne o outro 7",
        "Mario ha 3\ne 4 pere",
        "x\nmid y",
        "costs $5\ne $6",
        "$5\nto $7",
        "2\nprec = 3",
        r"$\frac{1}{2}$, 5" + "\ne o outro 7",
        "Se $x = 3$\ne $y = 4$",
        "\\[\nf(x) = 3\n\\]",
        "$$\ne^x\n$$ and $\\begin{aligned}\nx &= 1 \\\\\ny &= 2\n\\end{aligned}$",
        "$$\nsin x\n$$",
    ],
)
def test_real_line_breaks_are_kept_also_before_what_may_be_a_command(text: str) -> None:
    assert Decoder().decode(json.dumps(text)) == mended(text) == text
    assert problem(json.dumps({"problem": f"Math problem: {text}?"}))[0] == f"{text}?"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (r"\begin{cases} x \\ y \end{cases}", r"\begin{cases} x \\ y \end{cases}"),
        (r"\begin{cases} x \\\\ y \end{cases}", r"\begin{cases} x \\ y \end{cases}"),
        (r"\begin{cases} x=1\\y=2 \end{cases}", r"\begin{cases} x=1\\y=2 \end{cases}"),
        (r"\begin{cases} x=1\\\\y=2 \end{cases}", r"\begin{cases} x=1\\y=2 \end{cases}"),
        (r"\\begin{cases} x=1\\\\n=2 \\end{cases}", r"\begin{cases} x=1\\n=2 \end{cases}"),
        (r"\\\\begin{cases} x=1\\\\\\\\n=2 \\\\end{cases}", r"\begin{cases} x=1\\n=2 \end{cases}"),
    ],
)
def test_a_line_break_of_tex_stays_one(source: str, expected: str) -> None:
    assert problem(f'{{"problem": "Math problem: {source}?"}}')[0] == f"{expected}?"


@pytest.mark.parametrize(
    "text", ["2\nu", "x =\nu", "a\tb and $x$", "a \x08 b", "a \x0c b", r"a\tb and \(x\)".replace(r"\t", "\t")]
)
def test_a_control_character_that_stays_in_doubt_is_told_and_never_passed(text: str) -> None:
    reading, checks = problem(f"Math problem: How many is {text}?")
    assert "garbled_latex" in checks
    assert reading is not None and not set(reading) & set("\x08\x0c\r")


_PRINTABLE = st.lists(
    st.sampled_from(
        ["\\", "\\\\", '"', "'", "$", "$$", "{", "}", "(", "]", "&", "=", "^", "_", " ", "é", "\u4e2d", "7", ".", ":"]
    )
    | st.sampled_from(
        ["frac", "tr", "n", "u", "t", "rank", "text", "begin{", "to", "b", "f", "u0041", "(", "Name", "left"]
    )
    | st.sampled_from([r"\tr(A)", r"\\n&4", r"\frac{1}{2}", r"C:\temp", r"\"hi\"", r"\nu", r"\fnl", r"\\\\", "[1, 2]"])
).map("".join)


@settings(max_examples=400)
@given(_PRINTABLE)
def test_text_that_json_escapes_is_read_back_as_it_is_by_every_reader(text: str) -> None:
    # Not: commands that all have two backslashes in the text itself. Those were escaped twice.
    text = "A x" + text.replace("\\\\fra", "\\\\ fra").replace("\\\\tex", "\\\\ tex").replace("\\\\beg", "\\\\ beg")
    text = " ".join(f"{text.replace(_TWICE_LEFT, _TWICE_LEFT[:-4])} z".split())
    for put in (lambda reply: json.dumps(reply), lambda reply: json.dumps(reply, ensure_ascii=False)):
        assert problem(put({"problem": f"Math problem: {text}"}))[0] == text
        assert one(put({"persona": text})) in (text, "!garbled_latex")
        assert several(put({"personas": [text]})) in ([text], ["!garbled_latex"])
        output = profile(put({**PROFILE, "background": text}))
        assert isinstance(output, dict) and output["background"] == text


_TWICE_LEFT = "\\\\left"


@pytest.mark.parametrize(
    "around", ["<think>Maybe.</think> {}", "{}<|im_end|>", "{}</s>", "<thinking>\nA</thinking>\n{} <|eot_id|>"]
)
def test_thoughts_before_and_tokens_behind_a_string_of_json_are_no_part_of_it(around: str) -> None:
    assert one(json.dumps({"persona": around.replace("{}", f"{PERSONA}.")})) == f"{PERSONA}."
    assert several(json.dumps({"personas": [around.replace("{}", f"{PERSONA}.")]})) == [f"{PERSONA}."]
    reply = around.replace("{}", f"Math problem: {PROBLEM}")
    assert problem(json.dumps({"problem": reply})) == (PROBLEM, ())


def test_a_closing_tag_amid_a_sentence_is_not_cut_at() -> None:
    for tag in ("</analysis>", "</think>", "</reasoning>"):
        assert one(f"An HTML tutor whose pupils close {tag} tags wrongly every day") == "!unclear_thoughts"
        assert (
            one(f"Maybe an angler.{tag}{PERSONA}")
            == one(f"Maybe\n{tag} a nurse {PERSONA}"[:6] + f"{tag}\n{PERSONA}")
            == PERSONA
        )


def test_what_a_model_says_beside_a_call_of_a_tool_is_no_persona() -> None:
    assert one("Let me look up a person first.", "tool_calls") == "!tool_call"
    assert one(json.dumps({"persona": PERSONA}), "tool_calls") == PERSONA


@pytest.mark.parametrize(
    ("begins", "unit", "ends"),
    [
        ("Thinking: x\n", "---\n", "a"),
        ("Thinking: x\n", "_", "a"),
        ("Thinking: x\n", "answer\n", "a"),
        ("Thinking...", "...done thinking", "a"),
        ("Here is my thought process:", "here is my response", "a"),
        ("", "*", "1"),
        ("", "# ", "a"),
        ("", "> - ", "a"),
        ("a:\n", "```\na:\n", "a"),
        ("$", " $", "a"),
        ("", "\\(", "a"),
        ("", "<think_", "a"),
        ("", "a think", "a"),
        ("", "sure ", ":"),
        ("", "</s>", "a"),
        ("<think>", "<think>a</think>", "a"),
    ],
)
def test_any_part_of_an_answer_is_read_in_linear_time(begins: str, unit: str, ends: str) -> None:
    text = begins + unit * ((49_000 - len(begins)) // len(unit)) + ends
    with linear():
        for answer in (text, text[:19_000] + ends, json.dumps({"relation": text, "persona": PERSONA})):
            one(answer)
            read_several(answer, "stop", most=3, parent=GIVEN)
            problem(answer)
            profile(answer)
        one(text * 4)
