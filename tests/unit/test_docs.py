"""README and docs match the code: files, commands, settings, tables; and the generated pages are up to date."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from personahub_spark.settings.whole import Settings
from personahub_spark.store.store import TABLES
from personahub_spark.tasks.checks import CHECKS
from personahub_spark.tasks.declared import Declaration, library

ROOT = Path(__file__).parent.parent.parent
sys.path.append(str(ROOT / "scripts"))

import make_docs  # noqa: E402

PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
}
NAMES = {table.name for table in TABLES} | set(make_docs.QUERIES) | {"letters"}  # of the task in docs/tasks.md
every_page = pytest.mark.parametrize("page", PAGES)


def blocks(text: str, language: str = "") -> list[str]:
    """Fenced blocks in ``language``; by default those without one, which are commands."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [block for tag, block in fenced if tag == language]


def commands(text: str) -> Iterator[str]:
    """Commands, each in one line: from fenced blocks and from backticks."""
    for block in blocks(text):
        yield from re.sub(r"\\\n\s*", "", block).splitlines()
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def anchors(text: str) -> set[str]:
    """Anchors of the headings, by GitHub's rules."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# --- the generated pages


@pytest.mark.parametrize("page", make_docs.PAGES)
def test_generated_pages_are_fresh(page: str) -> None:
    assert PAGES[page] == make_docs.PAGES[page](), f"{page} differs from the declarations; run: make docs"


def test_the_settings_page_has_every_default() -> None:
    [*pages] = blocks(PAGES["docs/settings.md"], "yaml")
    read = yaml.safe_load("".join(pages))
    assert read.keys() == Settings.model_fields.keys()
    lists = ("models", "imports", "examples", "synthesis", "judgements")  # these show an entry
    plain = {name: value for name, value in read.items() if name not in lists}
    assert Settings.model_validate(plain) == Settings()


# --- names in the pages


def test_the_readme_is_short() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 150


def test_every_page_is_reached_from_the_readme() -> None:
    assert {page for page in PAGES if page != "README.md"} <= set(re.findall(r"\]\((docs/[\w.-]+)", PAGES["README.md"]))


@every_page
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page} links to {target}"
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), f"{page} links to {target}"


@every_page
def test_files_that_are_named_exist(page: str) -> None:
    text = re.sub(r"https?://\S+", "", PAGES[page])
    folders = "jobs|conf|demo|docs|scripts|benchmarks|notebooks|tests|personahub_spark"
    for path in set(re.findall(rf"(?<![\w/.-])(?:{folders})/[\w/.-]*\w/?", text)):
        assert (ROOT / path).exists(), f"{page} names {path}"
    for module in set(re.findall(r"\bpersonahub_spark(?:\.\w+)+", text)) - {"personahub_spark.zip"}:
        assert importlib.util.find_spec(module) is not None, f"{page} names {module}"
    for name in set(re.findall(r"`(\w+\.py)`", text)):
        assert list(ROOT.glob(f"*/{name}")) + list(ROOT.glob(f"personahub_spark/**/{name}")), f"{page} names {name}"


@every_page
def test_commands_have_the_targets_and_options_that_are_used(page: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    common = "".join((ROOT / "personahub_spark" / "program" / name).read_text() for name in ("options.py", "cli.py"))
    for command in commands(PAGES[page]):
        if target := re.match(r"make ([a-z]+)", command):
            assert target[1] in targets, f"{page}: {command}"
        if job := re.search(r"\b((?:jobs|benchmarks|demo|scripts)/\w+\.py)(.*)", command):
            source = (ROOT / job[1]).read_text() + common
            for option in re.findall(r"(?<=\s)--[a-z][a-z-]*", job[2]):
                exists = (
                    f'"{option}"' in source or f'"--{option.removeprefix("--no-")}"' in source or option == "--help"
                )
                assert exists, f"{page}: {job[1]} has no {option}"


def is_setting(keys: list[str], group: type[BaseModel] = Settings) -> bool:
    """Whether ``keys`` are the path of a setting; the entry of a list or mapping may be left out or named."""
    name, *rest = keys
    if name not in group.model_fields:
        return False
    field = group.model_fields[name]
    inner, container = make_docs.group_inside(field.annotation)
    if not rest or inner is None:
        return not rest or isinstance(field.get_default(call_default_factory=True), dict)
    return is_setting(rest, inner) or (container is not None and rest[1:] != [] and is_setting(rest[1:], inner))


@every_page
def test_settings_and_columns_that_are_named_exist(page: str) -> None:
    columns = {(table.name, column) for table in TABLES for column in table.schema.names}
    for command in commands(PAGES[page]):
        for place in re.findall(r"--set '?([a-z_]+(?:\.\w+)+)=", command):
            assert is_setting(place.split(".")), f"{page} sets {place}"
        named = re.fullmatch(r"([a-z_]+)\.([a-z_.0-9]+)(?:: .*)?", command)
        is_ours = named is not None and named[1] in {*Settings.model_fields, *NAMES} - {"spark"}  # Spark's own settings
        if named is not None and is_ours and named[2] not in ("md", "py", "sql"):
            place = (named[1], named[2])
            assert is_setting([named[1], *named[2].split(".")]) or place in columns, f"{page} names {command}"
    for block in blocks(PAGES[page], "yaml"):
        read = yaml.safe_load(block)
        if page != "docs/settings.md" and isinstance(read, dict) and read.keys() <= Settings.model_fields.keys():
            Settings.model_validate(read)


@every_page
def test_tables_that_are_asked_exist(page: str) -> None:
    for command in commands(PAGES[page]):
        if "select" in command:
            assert set(re.findall(r"\b(?:from|join) ([a-z_]+)", command)) <= NAMES, f"{page}: {command}"


def test_every_setting_is_described() -> None:
    def undescribed(group: type[BaseModel]) -> Iterator[str]:
        if "__doc__" not in vars(group) or not group.__doc__:
            yield group.__name__
        for name, field in group.model_fields.items():
            inner, _ = make_docs.group_inside(field.annotation)
            if inner is not None:
                yield from undescribed(inner)
            elif not field.description:
                yield f"{group.__name__}.{name}"

    assert sorted(set(undescribed(Settings))) == []


# --- tasks


def test_the_page_of_tasks_has_every_task_key_and_check() -> None:
    page = PAGES["docs/tasks.md"]
    named = [*library(), *Declaration.model_fields, *CHECKS]
    assert [name for name in named if f"`{name}" not in page] == []


def test_the_task_of_ones_own_can_be_used(tmp_path: Path) -> None:
    [declared] = [block for block in blocks(PAGES["docs/tasks.md"], "yaml") if block.startswith("name:")]
    (tmp_path / "letter.yaml").write_text(declared, encoding="utf-8")
    task = library([tmp_path])["letter"]
    assert task.view == "letters" and task.chosen({"tone": "angry"}) == {"tone": "angry"}


def test_the_readme_shows_the_task_as_it_is() -> None:
    [shown] = [block for block in blocks(PAGES["README.md"], "yaml") if block.startswith("name:")]
    lines = (ROOT / "personahub_spark" / "tasks" / "library" / "math.yaml").read_text(encoding="utf-8").splitlines()
    assert [line for line in shown.splitlines() if line not in lines and line.strip() != "# …"] == []
