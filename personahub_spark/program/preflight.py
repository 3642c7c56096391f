"""What can be found wrong before Spark starts, which takes long, and before anything is spent."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from personahub_spark import files
from personahub_spark.errors import PersonaHubError
from personahub_spark.llm import probe
from personahub_spark.llm.client import key_of
from personahub_spark.llm.gate import NotAdmitted
from personahub_spark.program.steps import Step
from personahub_spark.settings.models import Address, Endpoint
from personahub_spark.settings.whole import Settings
from personahub_spark.store.record_tables import LLM_CALLS

log = logging.getLogger(__name__)

SWITCH = "calls.check_endpoints: false leaves this look at the list of models out"
_ADVICE = {
    "run": f"; {SWITCH}",
    "retry": f"; start the server or mend base_url ({SWITCH})",
    "row": " It is asked all the same, for many servers take models that they do not list",
}
_AT_ONCE = 16
_WRITTEN = 64 * 1024


def check(settings: Settings, steps: Collection[Step], *, dry_run: bool = False) -> Callable[[Endpoint], None]:
    """Look at what ``steps`` need: models, their keys and servers, inputs, a store that can be written.

    PersonaHubError says what the first of them lacks. A model that cannot be asked at any of its addresses is only a
    warning where answers are stored already, for there may be nothing left to ask: call what comes back with the
    endpoint before its first question, and it looks again. It is a warning, too, where Spark runs on other machines:
    what they have and reach is not known here.
    """
    asked = {name: settings.endpoint(name) for step in steps for name in step.asks(settings)}
    here = _is_here(settings)
    if here:
        for step in steps:
            step.check(settings)
        if steps and not dry_run:
            for place in filter(None, (settings.store.root, settings.store.state_root)):
                _check_writable(place)
    if dry_run or settings.calls.replay is not None:
        return lambda _: None
    keys = {name: _keys(name, endpoint, here=here) for name, endpoint in asked.items()}
    if not settings.calls.check_endpoints:
        return lambda _: None
    reports = _look(asked, keys)
    shut = {name for name, report in reports.items() if report.is_shut}
    if shut and here and not _may_have_answers(settings):
        raise PersonaHubError(next(reports[name].faults[0] for name in asked if name in shut))
    for report in reports.values():
        for said in report.faults:
            log.warning(said)

    def look_again(endpoint: Endpoint) -> None:
        again = {name: each for name, each in asked.items() if name in shut and each == endpoint}
        for report in _look(again, keys).values():
            if report.is_shut:
                raise PersonaHubError(report.faults[0])

    return look_again if here else lambda _: None


def _is_here(settings: Settings) -> bool:
    """Whether Spark's tasks and files are this machine's."""
    elsewhere = "PYSPARK_GATEWAY_PORT" in os.environ or "HADOOP_CONF_DIR" in os.environ
    return not elsewhere and settings.spark.is_one_process and "spark.hadoop.fs.defaultFS" not in settings.spark.conf


def _keys(name: str, endpoint: Endpoint, *, here: bool) -> list[str | None]:
    """The key of each address, as far as it can be had without Spark."""
    keys: list[str | None] = []
    for address in endpoint.addresses:
        try:
            keys.append(None if address.api_key_credential is not None else key_of(address))
        except NotAdmitted as refusal:
            if here:
                raise PersonaHubError(f"models.{name}: {refusal.failure.message}") from None
            keys.append(None)
    return keys


class _Report(NamedTuple):
    """What is wrong at the addresses of a model; ``is_shut``: none of them can be asked."""

    faults: list[str]
    is_shut: bool


def _look(asked: Mapping[str, Endpoint], keys: Mapping[str, Sequence[str | None]]) -> dict[str, _Report]:
    """What the addresses of each model say, all looked at together."""
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="look") as threads:
        looks = {
            name: [
                (address, threads.submit(probe.look, endpoint, address, key=key))
                for address, key in zip(endpoint.addresses, keys[name], strict=True)
                if key is not None or not _wants_key(address)  # else nobody here knows what the server would say
            ]
            for name, endpoint in asked.items()
        }
        found = {
            name: [(address, fault) for address, look in each if (fault := look.result()) is not None]
            for name, each in looks.items()
        }
    reports = {}
    for name, faults in found.items():
        said = [
            f"models.{name} at {address.base_url}: {fault.message}{_ADVICE[fault.kind]}" for address, fault in faults
        ]
        refusing = sum(fault.kind != "row" for _, fault in faults)
        reports[name] = _Report(said, refusing == len(asked[name].addresses))
    return reports


def _wants_key(address: Address) -> bool:
    return any((address.api_key_env, address.api_key_file, address.api_key_credential))


def _may_have_answers(settings: Settings) -> bool:
    root = _local(settings.store.root) if settings.store.root is not None else None
    if root is None:
        return True
    rows = (root / LLM_CALLS.name).glob("*.parquet")
    in_log = Path(settings.store.state_root, "plans").glob("*/shards/*/*.parquet")
    return any(rows) or any(in_log)


def _check_writable(place: str) -> None:
    """PersonaHubError where no file can be written in the folder ``place``; leaves nothing there."""
    path = _local(place)
    if path is None:
        return
    # No folder is made for this: two that start at once would take it from each other.
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(_WRITTEN))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise PersonaHubError(
            f"a disk is full or cannot be written ({path}: {error.strerror or error}); free some space, or name "
            "another place: store.root and store.state in the settings"
        ) from None


def _local(place: str) -> Path | None:
    """``place`` on this machine's file system; None where it is elsewhere."""
    path = files.local_path(files.absolute(place))
    return None if path is None else Path(path)
