"""Each reason to reject a line: a line that has it, and the smallest change that removes it."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest

from personahub_spark.settings.sources import DocumentSettings
from personahub_spark.sources.documents import FIELDS, MAPPINGS, judge_line, judge_text, mapping_of
from tests.waiting import linear

PLAIN = MAPPINGS["plain"]


@pytest.mark.parametrize(
    ("reason", "bad", "good"),
    [
        ("not_utf8", b'{"text": "caf\xe9"}', '{"text": "café"}'.encode()),
        ("not_utf8", b'{"text": "a", "url": "\xff"}', b'{"text": "a", "url": "x"}'),
        ("malformed_json", b'{"text": "a"', b'{"text": "a"}'),
        ("malformed_json", b"{'text': 'a'}", b'{"text": "a"}'),
        ("malformed_json", b'{"text": "a"} x', b'{"text": "a"} '),
        ("malformed_json", b'{"text": "a\x00"}', rb'{"text": "a\u0000"}'),
        ("malformed_json", b'{"text": "a"}\x00', b'{"text": "a"}\r\n'),
        ("malformed_json", b'{"text": "a", "x": ' + b"9" * 5000 + b"}", b'{"text": "a", "x": ' + b"9" * 4000 + b"}"),
        ("malformed_json", b'{"text": "a", "x": ' + b"[" * 100_000 + b"}", b'{"text": "a", "x": [[[[]]]]}'),
        ("malformed_json", b'{"x":' * 100_000 + b"1" + b"}" * 100_000, b'{"text": "a", "x": {"x": {"x": 1}}}'),
        ("not_an_object", b'["text"]', b'{"text": "a"}'),
        ("not_an_object", b'"text"', b'{"text": "a"}'),
        ("not_an_object", b"NaN", b'{"text": "a", "x": NaN}'),
        ("missing_text", b'{"Text": "a"}', b'{"text": "a"}'),
        ("missing_text", b'{"text": null}', b'{"text": "null"}'),
        ("missing_text", b'{"text": "a", "text": null}', b'{"text": null, "text": "a"}'),
        ("text_not_a_string", b'{"text": 5}', b'{"text": "five"}'),
        ("text_not_a_string", b'{"text": NaN}', b'{"text": "NaN"}'),
        ("text_not_a_string", b'{"text": ["a"]}', b'{"text": "[a]"}'),
        ("text_not_a_string", b'{"text": {"text": "a"}}', b'{"text": "{a}"}'),
        ("only_markup", b'{"text": "<p><br/></p>"}', b'{"text": "<p>a<br/></p>"}'),
        ("only_markup", b'{"text": "<script>run()</script> 12"}', b'{"text": "<em>run</em> 12"}'),
        ("empty_text", b'{"text": ""}', b'{"text": "a"}'),
        ("empty_text", rb'{"text": " \n\u0000\ud800 "}', rb'{"text": " \n\u0000\ud800a "}'),
        ("empty_text", '{"text": "12 + 3 = 15 …"}'.encode(), '{"text": "12 + 3 = 15 元"}'.encode()),
        ("empty_text", '{"text": "🙂"}'.encode(), '{"text": "🙂 ครู"}'.encode()),
    ],
)
def test_each_reason_has_a_row_and_its_neighbour_has_none(reason: str, bad: bytes, good: bytes) -> None:
    judged = judge_line(bad, PLAIN)
    assert (judged.reason, judged.fields) == (reason, {})
    judged = judge_line(good, PLAIN)
    assert judged.reason is None
    assert judged.fields["text"]


def test_a_byte_order_mark_is_no_part_of_the_line() -> None:
    assert judge_line(b'\xef\xbb\xbf{"text": "a"}', PLAIN).fields["text"] == "a"
    assert (
        judge_line(rb'{"text": "\ufeffa b"}', PLAIN).fields["text"] == "a b"
    )  # a byte order mark that was copied with the text


def test_bytes_that_are_no_text_are_told_apart_from_other_values() -> None:
    assert judge_text({"text": b"\xff"}).reason == "not_utf8"
    assert judge_text({"text": 5}).reason == "text_not_a_string"
    assert judge_text({"text": "a", "url": b"\xff", "licence": float("nan")}).fields["url"] is None
    assert judge_text({"text": "a", "licence": float("nan")}).fields["licence"] is None


@pytest.mark.parametrize(
    "text",
    [
        "一位在北方教书的老师。",
        "東京の駅で働くピアニスト",
        "ครูสอนภาษาไทยในโรงเรียน",
        "مدرس رياضيات في القاهرة",
        "👩🏽‍🚀 pilot",
    ],
)
def test_a_text_of_any_script_stays_as_it_is(text: str) -> None:
    for ascii_only in (True, False):
        line = json.dumps({"text": f"  {text}\n\n{text}\t"}, ensure_ascii=ascii_only).encode()
        assert judge_line(line, PLAIN).fields["text"] == f"{text}\n\n{text}"


def test_what_cannot_be_stored_leaves_the_text_and_the_fields() -> None:
    judged = judge_line(rb'{"text": "a\ud800\u0000b", "title": "\udfffT\u0007", "url": "\u0000"}', PLAIN)
    assert judged.fields["text"] == "ab"
    assert judged.fields["title"] == "T"
    assert judged.fields["url"] is None
    "".join(value or "" for value in judged.fields.values()).encode()


def test_a_ten_megabyte_line_is_read_whole_and_quickly() -> None:
    text = "word " * 2_000_000
    with linear():
        assert judge_line(json.dumps({"text": text}).encode(), PLAIN).fields["text"] == text.strip()
        broken = judge_line(b'{"text": "' + b"<p " * 3_000_000, PLAIN)
        assert broken.reason == "malformed_json"
        assert judge_text({"text": "<p " * 3_000_000}).reason is None


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("x", "x"),
        (" x ", "x"),
        ("", None),
        (5, "5"),
        (1.5, "1.5"),
        (True, None),
        (None, None),
        (["x"], None),
        ({}, None),
    ],
)
def test_a_field_that_holds_no_plain_value_counts_as_absent(value: Any, kept: str | None) -> None:
    fields = judge_text({"text": "a", **{name: value for name in FIELDS if name != "text"}}).fields
    assert fields == {"text": "a", **{name: kept for name in FIELDS if name != "text"}}


RECORDS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "plain": (
        {"text": "t", "title": "T", "url": "u", "language": "en", "license": "CC0", "source": "s"},
        {"title": "T", "url": "u", "lang": "en", "licence": "CC0", "source": "s"},
    ),
    "redpajama_v2": (
        {"raw_content": "t", "url": "u", "title": "T", "language": "de", "text": "no", "digest": "sha1:0"},
        {"title": "T", "url": "u", "lang": "de"},
    ),
    "fineweb": (
        {"text": "t", "url": "u", "language": "en", "dump": "CC-MAIN-2024-10", "token_count": 3},
        {"url": "u", "lang": "en", "source": "CC-MAIN-2024-10"},
    ),
    "dolma": (
        {"text": "t", "source": "stack", "metadata": {"title": "T", "url": "u", "language": "en", "license": "MIT"}},
        {"title": "T", "url": "u", "lang": "en", "licence": "MIT", "source": "stack"},
    ),
    "c4": ({"text": "t", "url": "u", "timestamp": "2019-04-25T12:57:54Z"}, {"url": "u"}),
}


def test_there_is_a_record_for_every_mapping() -> None:
    offered = get_args(DocumentSettings.model_fields["mapping"].annotation)
    assert set(RECORDS) == set(MAPPINGS) == set(offered)


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_each_mapping_finds_the_fields_of_its_corpus(name: str) -> None:
    record, expected = RECORDS[name]
    fields = judge_line(json.dumps(record).encode(), MAPPINGS[name]).fields
    assert {key: value for key, value in fields.items() if value is not None} == {"text": "t", **expected}


def test_the_first_alternative_that_is_there_counts() -> None:
    def lang(**record: Any) -> str | None:
        return judge_line(json.dumps({"text": "t", **record}).encode(), PLAIN).fields["lang"]

    assert lang(lang="th", language="en") == "th"
    assert lang(lang=None, language="en") == "en"
    assert lang() is None


def test_dots_reach_inside_and_through_nothing() -> None:
    def url(metadata: Any, **record: Any) -> str | None:
        line = json.dumps({"text": "t", "metadata": metadata, **record}).encode()
        return judge_line(line, MAPPINGS["dolma"]).fields["url"]

    assert url({"url": "inside"}, url="outside") == "inside"
    assert url({}, url="outside") == url("words", url="outside") == url(None, url="outside") == "outside"


def test_the_settings_columns_go_over_the_mapping() -> None:
    settings = DocumentSettings(mapping="c4", columns={"text": "body.raw|body", "licence": "rights"})
    mapping = mapping_of(settings)
    assert mapping == {"text": "body.raw|body", "url": "url", "licence": "rights"}
    fields = judge_line(b'{"body": {"raw": "t"}, "rights": "CC BY", "url": "u"}', mapping).fields
    assert (fields["text"], fields["licence"], fields["url"]) == ("t", "CC BY", "u")
    assert judge_line(b'{"body": "t"}', mapping).fields["text"] == "t"
    assert MAPPINGS["c4"] == {"text": "text", "url": "url"}
