"""Which judge is asked about which texts, from the settings: what is wrong is said before anything starts."""

from __future__ import annotations

from typing import Any

import pytest

from personahub_spark.errors import SettingsError
from personahub_spark.settings.loading import validate
from personahub_spark.settings.whole import Settings
from personahub_spark.synthesis import judging, writing

MODELS = {name: {"model": name, "base_url": "http://127.0.0.1:1/v1"} for name in ("default", "large")}


def settings(*entries: dict[str, Any]) -> Settings:
    return validate({"models": MODELS, "judgements": list(entries)})


def test_an_entry_names_texts_judge_model_and_sampling() -> None:
    plain, strict = judging.judges(
        settings(
            {}, {"task": "npc", "options": {"criterion": "validity"}, "model": "large", "sampling": {"temperature": 1}}
        )
    )
    assert (plain[1].view, strict[1].view) == ("math_problems", "npcs")
    assert plain[2].endpoint.model == "default" and strict[2].endpoint.model == "large"
    assert plain[2].settings.temperature == 0 and strict[2].settings.temperature == 1
    assert plain[2].inputs == ("persona", "text") and plain[2].shared_texts["task_about"].startswith("One math problem")
    assert plain[2].recipe != strict[2].recipe


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"task": "maths"}, r"^judgements\.1\.task: there is no task 'maths' \(tasks: code, "),
        ({"judge": "juge"}, r"^judgements\.1\.judge: there is no task 'juge'"),
        ({"judge": "math"}, r"^judgements\.1\.judge: task math is no judge"),
        ({"task": "judge"}, r"^judgements\.1\.task: task judge has no view, so no texts to judge"),
        ({"options": {"criterion": "beauty"}}, r"^judgements\.1\.judge: task judge: option criterion is 'beauty'"),
        ({"model": "huge"}, r"^models\.huge is not set"),
    ],
)
def test_a_wrong_entry_is_named(entry: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        judging.check(settings({}, entry))


def test_a_judge_writes_no_texts() -> None:
    with pytest.raises(SettingsError, match=r"^synthesis\.0\.task: task judge has no view for its texts; a judge is"):
        writing.check(validate({"models": MODELS, "synthesis": [{"task": "judge"}]}))
