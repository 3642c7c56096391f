"""Settings: faults are reported before anything starts, and every change changes the fingerprint."""

from __future__ import annotations

import copy
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import run_pipeline
import yaml

from personahub_spark.errors import SettingsError
from personahub_spark.settings.loading import load, load_prices, validate
from personahub_spark.settings.personas import FilterSettings
from personahub_spark.settings.whole import Settings

CONF = Path(__file__).parents[2] / "conf"
ENDPOINT = {"model": "m", "base_url": "http://127.0.0.1:1/v1"}


def refusal(raw: dict[str, Any]) -> str:
    with pytest.raises(SettingsError) as caught:
        validate(raw)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    file = tmp_path / "conf.yaml"
    file.write_text(yaml.safe_dump({"models": {"default": ENDPOINT}, "synthesis": [{"model": "a"}, {"model": "b"}]}))
    return file


def test_every_group_has_defaults_that_hold() -> None:
    settings = validate({})
    assert settings.store.state_root == "warehouse/_state"
    assert settings.pipeline.steps is None
    assert settings.dedup.surface.threshold == Decimal("0.9")


@pytest.mark.parametrize(
    ("raw", "where", "hint"),
    [
        ({"persona": {}}, "persona", "did you mean personas?"),
        ({"personas": {"temprature": 1}}, "personas.temprature", "did you mean temperature?"),
        ({"dedup": {"surface": {"treshold": 1}}}, "dedup.surface.treshold", "did you mean threshold?"),
        ({"models": {"x": {**ENDPOINT, "modell": 1}}}, "models.x.modell", "did you mean model?"),
        ({"models": {"x": {"base_url": "http://h/v1", "modle": "m"}}}, "models.x.modle", "did you mean model?"),
        ({"models": {"x": {**ENDPOINT, "others": [{"wight": 1}]}}}, "models.x.others.0.wight", "did you mean weight?"),
        ({"synthesis": [{}, {"patern": "zero_shot"}]}, "synthesis.1.patern", "did you mean pattern?"),
        ({"pipeline": {"zzzzqqqq": 1}}, "pipeline.zzzzqqqq", "known here: quarantine_warn_share, steps"),
    ],
)
def test_an_unknown_key_names_its_place_and_its_nearest_neighbour(raw: dict[str, Any], where: str, hint: str) -> None:
    assert refusal(raw) == f"unknown setting {where}; {hint}"


@pytest.mark.parametrize(
    ("raw", "where", "value"),
    [
        ({"personas": {"temperature": 3}}, "personas.temperature", "3"),
        ({"personas": {"temperature": "warm"}}, "personas.temperature", "'warm'"),
        ({"personas": {"verbs": ["hate"]}}, "personas.verbs.0", "'hate'"),
        ({"personas": {"language": "English"}}, "personas.language", "'English'"),
        ({"personas": []}, "personas", "[]"),
        ({"filters": {"min_words": 0}}, "filters.min_words", "0"),
        ({"filters": {"disabled": "too_short"}}, "filters.disabled", "'too_short'"),
        ({"dedup": {"surface": {"threshold": "1.1"}}}, "dedup.surface.threshold", "'1.1'"),
        ({"dedup": {"surface": {"recall": 1.0}}}, "dedup.surface.recall", "1.0"),
        ({"synthesis": [{"personas": {"fraction": 0}}]}, "synthesis.0.personas.fraction", "0"),
        ({"synthesis": {"task": "math"}}, "synthesis", ""),
        ({"store": {"database": "a;b"}}, "store.database", "'a;b'"),
        ({"spark": {"conf": {"spark.x": [1]}}}, "spark.conf.spark.x", ""),
        ({"documents": {"columns": {"txt": "body"}}}, "documents.columns.txt", "'txt'"),
        ({"models": {"x": {**ENDPOINT, "base_url": "h:8000/v1"}}}, "models.x.base_url", ""),
        ({"models": {"x": {**ENDPOINT, "in_flight": 0}}}, "models.x.in_flight", ""),
        ({"filters": {"disabled": ["to_short"]}}, "filters.disabled.0", "'to_short'"),
        ({"models": {"x": {"model": "m"}}}, "models.x.base_url", ""),
    ],
)
def test_a_bad_value_is_named_with_what_was_found(raw: dict[str, Any], where: str, value: str) -> None:
    message = refusal(raw)
    assert message.startswith(f"bad setting {where}")
    assert message.endswith(f"(found {value})") if value else "(found" not in message


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"store": {"root": None}}, "store.state must name a folder when store.root is null"),
        (
            {"personas": {"verbs": ["read", "like"]}},
            "max_personas_per_document is 1, but 2 verbs with 1 personas each are 2 for the first part",
        ),
        ({"personas": {"verbs": ["read", "read"]}}, "verbs names one twice"),
        ({"pipeline": {"steps": ["synthesize", "synthesize"]}}, "steps names synthesize twice"),
        ({"embedding": {"max_tokens": 513}}, "max_tokens is 513, and models of Spark NLP read 512 at most"),
        ({"synthesis": [{"accept": {"rows": 1, "best_of": 5}}]}, "best_of 5 needs max_tries 5 or more, found 4"),
        ({"filters": {"min_words": 81}}, "min_words 81 is above max_words 80, which flags everything"),
        (
            {"dedup": {"surface": {"threshold": "0.3", "num_hashes": 16}}},
            "bad setting dedup.surface: 16 hashes find a pair at 0.3 with a chance of 0.996677 at most, below the "
            "recall 0.99999; raise num_hashes, or lower recall",
        ),
    ],
)
def test_settings_that_need_each_other_are_refused_apart(raw: dict[str, Any], expected: str) -> None:
    assert expected in refusal(raw)


def test_settings_that_go_together_are_taken() -> None:
    validate({"filters": {"min_words": 80}, "dedup": {"surface": {"threshold": "0.3", "num_hashes": 33}}})
    assert validate({"embedding": {"by": "endpoint", "max_tokens": 513}}).embedding.max_tokens == 513
    validate({"store": {"root": None, "state": "/s"}, "synthesis": [{"options": {"variant": "topic", "topic": "x"}}]})


def test_state_lies_under_the_root_unless_named() -> None:
    assert validate({"store": {"root": "s3a://b/x/"}}).store.state_root == "s3a://b/x/_state"
    assert validate({"store": {"root": "s3a://b/x", "state": "/shared"}}).store.state_root == "/shared"


@pytest.mark.parametrize(
    "field",
    [
        {"api_key_env": "sk-proj-hush"},
        {"api_key_file": "sk-proj-hush"},
        {"api_key_credential": "sk-proj-hush"},
        {"base_url": "https://sk-proj-hush@host/v1"},
        {"base_url": "https://host/v1?key=AIza-hush"},
        {"in_flight": "sk-proj-hush"},
        {"others": [{"base_url": "http://h/v1", "api_key_file": "sk-proj-hush"}]},
    ],
    ids=["env", "file", "credential", "url", "query", "number", "other"],
)
def test_a_key_put_where_its_name_belongs_is_not_repeated(field: dict[str, str]) -> None:
    message = refusal({"models": {"x": {**ENDPOINT, **field}}})
    assert f"models.x.{next(iter(field))}" in message
    assert "hush" not in message


@pytest.mark.parametrize(
    "raw",
    [
        {"models": "sk-hush"},
        {"models": {"x": "sk-hush"}},
        {"models": {"x": ["sk-hush"]}},
        {"models": {"x": {**ENDPOINT, "others": "sk-hush"}}},
        {"spark": {"conf": {"spark.hadoop.fs.s3a.secret.key": ["hush"]}}},
    ],
    ids=["models", "model", "list", "others", "spark"],
)
def test_a_key_put_where_a_group_belongs_is_not_repeated(raw: dict[str, Any]) -> None:
    message = refusal(raw)
    assert message.startswith(f"bad setting {next(iter(raw))}")
    assert "hush" not in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("models:\n  x: sk-hush: y", "line 2: mapping values are not allowed here"),
        ("models:\n  x: 'sk-hush", "line 2: found unexpected end of stream"),
        ("models:\n  x: [sk-hush", "line 2: expected ',' or ']', but got '<stream end>'"),
        ("models: {x: *sk-hush}", "line 1: found undefined alias …"),
        ("models: {x: !sk-hush y}", "line 1: could not determine a constructor for the tag …"),
        ("models: {x: !!int sk-hush}", "a value has the form or tag of a number or date and is none"),
        ("models:\n- &hush 1\n- &hush 2", "line 3: second occurrence"),
    ],
)
def test_a_file_that_is_no_yaml_is_told_by_line_and_fault_and_not_repeated(
    tmp_path: Path, content: str, message: str
) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(content)
    for read in (load, load_prices):
        with pytest.raises(SettingsError) as caught:
            read(file)
        assert str(caught.value).endswith(f"{file} cannot be read: {message}")
    _, _, value = content.replace("\n", " ").partition("models:")
    with pytest.raises(SettingsError) as caught:
        file.write_text("")
        load(file, [f"models={value}"])
    assert "hush" not in str(caught.value)


def test_an_override_without_a_value_is_not_repeated_where_models_are(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("")
    with pytest.raises(SettingsError, match=r"--set needs a.b=value, found one that begins with models"):
        load(file, ["models.default.api_key_env:sk-hush"])


def test_a_pipeline_has_every_step_that_is_not_on_request_or_those_that_are_named() -> None:
    usual = ["create_tables", "ingest_documents", "extract_personas", "dedup_surface", "synthesize", "dedup_texts"]
    assert [step.name for step in run_pipeline.chosen(validate({}))] == usual
    named = validate({"pipeline": {"steps": ["synthesize", "expand_personas"]}})
    assert [step.name for step in run_pipeline.chosen(named)] == ["synthesize", "expand_personas"]
    with pytest.raises(SettingsError, match=r"steps\.1: there is no step 'synthesise'; did you mean synthesize\?"):
        run_pipeline.chosen(validate({"pipeline": {"steps": ["withdraw", "synthesise"]}}))
    with pytest.raises(SettingsError, match=r"no step 'fly'; steps are: create_tables, ingest_documents"):
        run_pipeline.chosen(validate({"pipeline": {"steps": ["fly"]}}))


def test_the_models_that_a_step_asks_are_looked_up_by_step() -> None:
    chosen = {"personas": {"model": "a"}, "synthesis": [{"model": "a"}, {}]}
    settings = validate({"models": {"a": ENDPOINT}, **chosen})
    asks = {name: list(step.asks(settings)) for name, step in run_pipeline.STEPS.items()}
    assert asks.pop("synthesize") == ["a", "default"]
    assert {name for name, models in asks.items() if models == ["a"]} == {"extract_personas", "infer_example_personas"}
    assert asks.pop("expand_personas") == ["default"] and asks["ingest_documents"] == []
    with pytest.raises(SettingsError, match=re.escape("models.default is not set (models here: a)")):
        settings.endpoint("default")


def test_a_missing_endpoint_names_the_known_ones() -> None:
    settings = validate({"models": {"b": ENDPOINT, "a": ENDPOINT}})
    assert settings.endpoint("a").model == "m"
    with pytest.raises(SettingsError, match=re.escape("models.c is not set (models here: a, b)")):
        settings.endpoint("c")
    with pytest.raises(SettingsError, match=re.escape("models.c is not set (models here: none)")):
        validate({}).endpoint("c")


def test_an_address_has_one_key() -> None:
    one = {"api_key_file": "/run/key"}
    assert validate({"models": {"x": {**ENDPOINT, **one}}}).endpoint("x").api_key_file == "/run/key"
    two = {"base_url": "http://h/v1", **one, "api_key_env": "KEY"}
    for place in ({"model": "m", **two}, {**ENDPOINT, "others": [two]}):
        assert "give one of api_key_env, api_key_file and api_key_credential" in refusal({"models": {"x": place}})


def test_the_addresses_of_a_model_are_its_own_and_the_others() -> None:
    model = validate({"models": {"x": {**ENDPOINT, "others": [{"base_url": "http://h/v2", "weight": 3}]}}}).endpoint(
        "x"
    )
    assert [(address.base_url, address.weight) for address in model.addresses] == [
        (ENDPOINT["base_url"], 1),
        ("http://h/v2", 3),
    ]
    assert hash(model) == hash(model.model_copy())


# --- files and overrides


def test_an_empty_file_is_all_defaults_with_the_prices_of_the_package(tmp_path: Path) -> None:
    file = tmp_path / "empty.yaml"
    file.write_text("")
    assert load(file).prices is None
    assert load_prices(None)["gpt-4o-mini"].output == Decimal("0.6")
    own = tmp_path / "own.yaml"
    own.write_text("mine: {input: 1, output: 2}")
    file.write_text(f"prices: {own}")
    assert load_prices(load(file).prices).keys() == {"mine"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"- a\n- b", "must hold keys and values, found list"),
        (b"a: [1", "cannot be read"),
        (b"\xff\xfe\xff", "cannot be read"),
    ],
)
def test_a_file_that_holds_no_settings_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "x.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingsError, match=message) as caught:
        load(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_overrides_reach_nested_keys_and_lists_and_are_read_as_yaml(conf: Path) -> None:
    settings = load(
        conf,
        [
            "spark.spark_nlp=true",
            "pipeline.steps=[synthesize]",
            "dedup.surface.threshold=0.5",
            "synthesis.1.model=c",
            "synthesis.0={model: d}",
            "models.default.base_url=http://h/v1?no".removesuffix("?no"),
            "models.second={model: n, base_url: 'http://h/v1'}",
            "documents.source=a=b",
            "documents.lang=",
            "personas.temperature=0.1",
            "personas.temperature=0.2",
        ],
    )
    assert settings.spark.spark_nlp is True
    assert settings.pipeline.steps == ["synthesize"]
    assert settings.dedup.surface.threshold == Decimal("0.5")
    assert [entry.model for entry in settings.synthesis] == ["d", "c"]
    assert settings.models["default"].base_url == "http://h/v1"
    assert settings.endpoint("second").model == "n"
    assert settings.documents.source == "a=b"
    assert settings.documents.lang is None
    assert settings.personas.temperature == 0.2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("personas.temperature", "--set needs a.b=value, found 'personas.temperature'"),
        ("=1", "--set needs a.b=value, found '=1'"),
        ("personas..verbs=[read]", "--set needs a.b=value"),
        ("synthesis.2.model=x", "--set synthesis.2.model: '2' is no position in a list of 2"),
        ("synthesis.last=x", "--set synthesis.last: 'last' is no position in a list of 2"),
        ("models.default.model.name=x", "--set models.default.model.name: model holds a value, not keys"),
        ("filters.disabled=[a", "--set filters.disabled: "),
        ("personas.verv=[read]", "unknown setting personas.verv; did you mean verbs?"),
    ],
)
def test_a_bad_override_is_named(conf: Path, override: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(conf, [override])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["local.yaml", "cluster.yaml"])
def test_the_shipped_files_state_only_what_differs_from_the_defaults(name: str) -> None:
    raw = yaml.safe_load((CONF / name).read_text())
    settings = validate(raw)
    for path in leaves(raw):
        shorter: Any = copy.deepcopy(raw)
        node = shorter
        for part in path[:-1]:
            node = node[part]
        del node[path[-1]]
        try:
            same = validate(shorter) == settings
        except SettingsError:  # settings without a default
            same = False
        assert not same or path[-1] == "task", f"{name} states the default of {path}"


def test_the_shipped_models_have_prices() -> None:
    for name in ("local.yaml", "cluster.yaml"):
        settings = load(CONF / name)
        assert {endpoint.model for endpoint in settings.models.values()} <= load_prices(settings.prices).keys()


# --- the fingerprint

BASE: dict[str, Any] = {
    "models": {"default": ENDPOINT},
    "synthesis": [
        {"pattern": "persona_few_shot", "personas": {"number": 5, "by": "stratified", "strata": "lang"}},
        {"options": {"variant": "topic", "topic": "geometry"}, "personas": {"number": 5, "by": "diverse"}},
    ],
    "documents": {"columns": {"text": "body"}},
    "imports": [{"paths": ["x"], "source": "set", "columns": {"text": "body"}}],
    "examples": [{"paths": ["x"], "task": "math", "source": "set", "columns": {"text": "body"}}],
    "judgements": [{}],
    "spark": {"conf": {"spark.x": "1"}},
}
CANDIDATES: list[Any] = [
    None, True, False, 0, 1, 2, 17, 100, 0.75, "other", "en", "write", "coarse", "packages", "parquet", "fineweb",
    "json_schema", "olympiad", "synthesize", "http://h/v2", [], ["too_short"], ["synthesize"], {}, {"text": "raw"},
    {"spark.x": "2"}, "/key", "hadoop:key", "aiohttp", "batch", [{"base_url": "http://h/v2"}], "endpoint", 5000,
    "exact", "novelty", "withdraw", "refuse", "few_shot", "nearest", "hash", {"rows": 3}, "none",
]  # fmt: skip


def leaves(node: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    if not isinstance(node, dict | list) or not node:
        return [path]
    pairs = node.items() if isinstance(node, dict) else enumerate(node)
    return [leaf for key, value in pairs for leaf in leaves(value, (*path, key))]


def changed(raw: dict[str, Any], path: tuple[str | int, ...], value: Any) -> Settings | None:
    edited: Any = copy.deepcopy(raw)
    node = edited
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value
    try:
        settings = validate(edited)
    except SettingsError:
        return None
    return settings if settings != validate(raw) else None


def test_any_changed_setting_changes_the_fingerprint_and_the_same_ones_do_not() -> None:
    raw = validate(BASE).model_dump(mode="json")
    before = validate(raw).fingerprint()
    assert re.fullmatch("[0-9a-f]{16}", before)
    assert validate(copy.deepcopy(raw)).fingerprint() == before
    places, moved = set(), set()
    for path in leaves(raw):
        place = ".".join("*" if isinstance(part, int) else part for part in path)
        variants = [other for value in CANDIDATES if (other := changed(raw, path, value)) is not None]
        assert all(variant.fingerprint() != before for variant in variants), place
        places.add(place)
        moved |= {place} if variants else set()
    # These need another setting to change with them.
    assert places - moved == {"embedding.dimensions", "personas.personas_per_question"}


# --- prices


def test_prices_are_exact_and_say_what_cached_input_costs(tmp_path: Path) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text("a: {input: 0.15, cached_input: 0.075, output: 0.6}\nb: {input: 1, output: 2}")
    prices = load_prices(file)
    assert prices["a"].input == Decimal("0.15")
    assert prices["a"].cached_input == Decimal("0.075")
    assert prices["b"].cached_input is None
    assert prices["a"].of_batches.cached_input == Decimal("0.0375")
    assert (prices["b"].of_batches.input, prices["b"].of_batches.cached_input) == (Decimal("0.5"), None)
    file.write_text("a: {input: 1, output: 2, batch_share: 0.75}")
    assert load_prices(file)["a"].of_batches.output == Decimal("1.5")
    file.write_text("")
    assert load_prices(file) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ("a: {input: -1, output: 1}", "bad setting input"),
        ("a: {input: 1}", "bad setting output"),
        ("a: {input: 1, output: 1, outptu: 1}", "unknown setting outptu"),
        ("a: [1", "cannot be read"),
        ("words", "cannot be read"),
    ],
)
def test_a_bad_price_file_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "prices.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SettingsError, match=message) as caught:
        load_prices(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_limits_of_an_import_go_over_the_general_ones_and_must_fit_them() -> None:
    entry = {"paths": ["a"], "source": "s"}

    def limits(**own: Any) -> FilterSettings:
        chosen = validate({"imports": [{**entry, "filters": own}], "filters": {"min_words": 5, "max_words": 60}})
        return chosen.imports[0].filters.over(chosen.filters)

    assert (limits().min_words, limits().max_words, limits().disabled) == (5, 200, [])
    assert (limits(max_words=None).max_words, limits(max_words=9).max_words) == (60, 9)
    assert limits(disabled=["first_person"]).disabled == ["first_person"]
    with pytest.raises(SettingsError, match="min_words 5 is above max_words 4, which flags everything"):
        limits(max_words=4)
    with pytest.raises(SettingsError, match=r"unknown setting imports.0.filters.max_word; did you mean max_words\?"):
        limits(max_word=4)


def test_prices_beside_the_settings_that_are_not_used_are_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "my.yaml").write_text("{}")
    (tmp_path / "prices.yaml").write_text("{}")
    for _ in range(2):
        load(tmp_path / "my.yaml", ["prices=prices.yaml"])
    assert not caplog.records
    for _ in range(2):
        load(tmp_path / "my.yaml")
    assert [record.message for record in caplog.records] == [
        f"{tmp_path}/prices.yaml is not used; set prices to it to have it used"
    ]
