"""Checks before Spark starts, which takes long, and before any money is spent."""

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
from personahub_spark.llm.client import key_of, outcomes
from personahub_spark.llm.gate import NotAdmitted
from personahub_spark.llm.wire import Request
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
    """Check what ``steps`` need: models, their keys and servers, inputs, a writable store.

    PersonaHubError names the first thing that is missing. A model that cannot be asked at any of its addresses is only
    a warning if answers are stored already, because there may be nothing left to ask: call the returned function with
    the endpoint before its first question, and it checks again. It is also only a warning if Spark runs on other
    machines: this machine does not know what they have and reach.
    """
    endpoints = {name: settings.endpoint(name) for step in steps for name in step.asks(settings)}
    here = _is_here(settings)
    if here:
        for step in steps:
            step.check(settings)
        if steps and not dry_run:
            for place in filter(None, (settings.store.root, settings.store.state_root)):
                _check_writable(place)
    if dry_run or settings.calls.replay is not None:
        return lambda _: None
    keys = {name: _keys(name, endpoint, here=here) for name, endpoint in endpoints.items()}
    if not settings.calls.check_endpoints:
        return lambda _: None
    reports = _look(endpoints, keys)
    shut = {name for name, report in reports.items() if report.is_shut}
    if shut and here and not _may_have_answers(settings):
        raise PersonaHubError(next(reports[name].faults[0] for name in endpoints if name in shut))
    for report in reports.values():
        for fault in report.faults:
            log.warning(fault)

    def look_again(endpoint: Endpoint) -> None:
        again = {name: each for name, each in endpoints.items() if name in shut and each == endpoint}
        for report in _look(again, keys).values():
            if report.is_shut:
                raise PersonaHubError(report.faults[0])

    return look_again if here else lambda _: None


def ask_one_word(settings: Settings, steps: Collection[Step]) -> list[str]:
    """Ask each model of ``steps`` one short question outside the ledger; what each answered, a line each.

    PersonaHubError for the first that gives no answer, with its reason. Embedders are asked for one vector.
    """
    endpoints = {name: settings.endpoint(name) for step in steps for name in step.asks(settings)}
    lines = []
    for name, endpoint in endpoints.items():
        embeds = settings.embedding.by == "endpoint" and name == settings.embedding.model
        request = (
            Request.embedding(endpoint.model, "one")
            if embeds
            else Request(
                model=endpoint.model,
                messages=[{"role": "user", "content": "Say one word."}],
                sampling={"temperature": 0.0, "max_tokens": 16},
            )
        )
        outcome = next(outcome for outcome in outcomes([request], endpoint, None) if outcome is not None)
        if outcome.status != "answered":
            raise PersonaHubError(
                f"models.{name} ({endpoint.model} at {outcome.endpoint}) does not answer: {outcome.error_message}"
            )
        answer = "a vector" if embeds else repr(" ".join((outcome.text or "").split())[:60])
        lines.append(f"models.{name}: {outcome.model_returned or endpoint.model} answers {answer}")
    return lines


def _is_here(settings: Settings) -> bool:
    """Whether Spark's tasks and files are on this machine."""
    elsewhere = "PYSPARK_GATEWAY_PORT" in os.environ or "HADOOP_CONF_DIR" in os.environ
    return not elsewhere and settings.spark.is_one_process and "spark.hadoop.fs.defaultFS" not in settings.spark.conf


def _keys(name: str, endpoint: Endpoint, *, here: bool) -> list[str | None]:
    """The key of each address; None if it cannot be read without Spark."""
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
    """The faults at the addresses of a model; ``is_shut``: none of them can be asked."""

    faults: list[str]
    is_shut: bool


def _look(endpoints: Mapping[str, Endpoint], keys: Mapping[str, Sequence[str | None]]) -> dict[str, _Report]:
    """The reports on the addresses of each model, all checked at the same time."""
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="look") as threads:
        looks = {
            name: [
                (address, threads.submit(probe.look, endpoint, address, key=key))
                for address, key in zip(endpoint.addresses, keys[name], strict=True)
                if key is not None or not _wants_key(address)  # without its key the answer would mean nothing
            ]
            for name, endpoint in endpoints.items()
        }
        faults_by_model = {
            name: [(address, fault) for address, look in each if (fault := look.result()) is not None]
            for name, each in looks.items()
        }
    reports = {}
    for name, faults in faults_by_model.items():
        messages = [
            f"models.{name} at {address.base_url}: {fault.message}{_ADVICE[fault.kind]}" for address, fault in faults
        ]
        refusing = sum(fault.kind != "row" for _, fault in faults)
        reports[name] = _Report(messages, refusing == len(endpoints[name].addresses))
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
    """PersonaHubError if no file can be written in the folder ``place``; leaves nothing there."""
    path = _local(place)
    if path is None:
        return
    # No folder is made for this check: two programs that start at once could remove each other's.
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
    """``place`` as a path of this machine; None for another file system."""
    path = files.local_path(files.absolute(place))
    return None if path is None else Path(path)
