"""The write-ahead log without Spark: the files of a process that died, and which process may continue."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Collection
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from personahub_spark import files
from personahub_spark.errors import PersonaHubError
from personahub_spark.ledger import spool, wal
from personahub_spark.store import locks
from tests.waiting import PATIENCE_S, eventually

SCHEMA = pa.schema(
    [
        ("request_key", pa.string()),
        ("text", pa.string()),
        ("vector", pa.binary()),
        ("cost_microusd", pa.decimal128(24, 6)),
    ]
)


@pytest.fixture(autouse=True)
def _own_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool.tempfile, "gettempdir", lambda: str(tmp_path))


def row(key: str, **more: Any) -> dict[str, Any]:
    return {"request_key": key, "text": f"answer {key}", "vector": None, "cost_microusd": Decimal("1.500000"), **more}


def writer(folder: Path, *, stage: str = "stage", flush_s: float = 60.0, **tried: Any) -> wal.Writer:
    return wal.Writer(str(folder), 3, SCHEMA, stage=stage, flush_s=flush_s, **tried)


def stored(folder: Path) -> list[dict[str, Any]]:
    return [r for shard in wal.shards(str(folder)) for r in pq.read_table(folder / shard.name).to_pylist()]


def test_a_shard_holds_the_rows_and_its_name_says_how_many_and_what_they_cost(tmp_path: Path) -> None:
    folder = tmp_path / "w0"
    log = writer(folder)
    rows = [row("a"), row("b", vector=b"\x00\x80\xff", cost_microusd=None), row("ç", text="日本語\n\u2028 \x07")]
    for each in rows:
        log.add(each)
    assert wal.shards(str(folder)) == []
    log.close()
    assert stored(folder) == rows
    assert [(s.partition, s.rows, s.failed, s.microusd) for s in wal.shards(str(folder))] == [(3, 3, 0, 3)]
    other = writer(tmp_path / "w1")
    for each in (row("d", status="failed"), row("e", status="answered"), row("f", status="failed")):
        other.add(each)
    other.close()
    assert [(s.rows, s.failed) for s in wal.shards(str(tmp_path / "w1"))] == [(3, 2)]


def test_rows_are_flushed_by_number_and_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wal, "FLUSH_ROWS", 2)
    log = writer(tmp_path / "w0")
    log.add(row("a"))
    assert stored(tmp_path / "w0") == []
    log.add(row("b"))
    assert len(stored(tmp_path / "w0")) == 2
    quick = writer(tmp_path / "w1", flush_s=0.0)
    quick.add(row("c"))
    assert len(stored(tmp_path / "w1")) == 1


def test_an_attempt_that_died_leaves_its_answers_and_the_calls_it_died_of(tmp_path: Path) -> None:
    folder = tmp_path / "w0"
    first = writer(folder)
    for key in ("done", "dropped", "in flight"):
        first.starting(key)
    first.add(row("done", vector=b"\xff\x00", text='quoted " and \\ and é'))
    first.drop("dropped")
    del first  # no close, no flush
    assert stored(folder) == []
    second = writer(folder)
    assert second.finished == {"done"}
    assert (second.suspects, second.killers) == ({"in flight"}, set())
    assert stored(folder) == [row("done", vector=b"\xff\x00", text='quoted " and \\ and é')]
    second.starting("in flight", alone=True)
    del second
    third = writer(folder)
    assert (third.suspects, third.killers) == (set(), {"in flight"})
    fourth = writer(folder)  # the third process died before it could record that
    assert fourth.killers == {"in flight"}
    assert len(stored(folder)) == 1


def test_calls_of_another_stage_are_asked_again_without_suspicion_but_its_answers_count(tmp_path: Path) -> None:
    first = writer(tmp_path / "w0", stage="monday")
    first.starting("a")
    first.starting("b")
    first.add(row("a"))
    del first
    second = writer(tmp_path / "w0", stage="tuesday")
    assert (second.finished, second.suspects, second.killers) == ({"a"}, set(), set())


def test_calls_that_were_ended_with_another_task_are_under_no_suspicion_that_they_were_not_under_before(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "w0"
    writer(folder).starting("a")
    second = writer(folder, nth_try=1)  # another task had failed
    assert (second.suspects, second.killers) == (set(), set())
    second.starting("a")
    second.starting("b")
    third = writer(folder, nth_try=2, died_in=[1])
    assert (third.suspects, third.killers) == ({"a", "b"}, set())
    third.starting("a", alone=True)
    fourth = writer(folder, nth_try=3, died_in=[1])  # in the third try another task failed again
    assert (fourth.suspects, fourth.killers) == ({"a", "b"}, set())
    fourth.starting("a", alone=True)
    fifth = writer(folder, nth_try=4, died_in=[1, 3])
    assert (fifth.suspects, fifth.killers) == ({"b"}, {"a"})


def test_a_line_that_was_cut_off_is_no_row(tmp_path: Path) -> None:
    first = writer(tmp_path / "w0")
    first.add(row("a"))
    (spool,) = tmp_path.rglob("*.jsonl")
    with spool.open("ab") as file:
        file.write(b'{"end": "b", "row": {"request_key": "b", "te')
    assert writer(tmp_path / "w0").finished == {"a"}


def test_suspicion_outlives_a_task_that_ended_whole_with_requests_unfinished(tmp_path: Path) -> None:
    writer(tmp_path / "w0").starting("a")
    second = writer(tmp_path / "w0")
    second.starting("a", alone=True)
    second.close()
    third = writer(tmp_path / "w0", nth_try=1)
    assert third.suspects == {"a"}
    third.drop("a")
    third.close()
    assert not list(tmp_path.rglob("*.jsonl"))


def test_a_full_store_accuses_no_request_and_loses_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = writer(tmp_path / "w0", flush_s=0.0)
    log.starting("a")
    log.starting("b")

    def refuses(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patched:
        patched.setattr(files, "write_whole", refuses)
        with pytest.raises(OSError, match="full"):
            log.add(row("a"))
        log.abandon()
    second = writer(tmp_path / "w0")
    assert (second.finished, second.suspects, second.killers) == ({"a"}, set(), set())
    assert stored(tmp_path / "w0") == [row("a")]


def test_the_spool_is_for_its_owner_only_and_gone_after_a_close(tmp_path: Path) -> None:
    log = writer(tmp_path / "w0")
    log.add(row("a"))
    (spool,) = tmp_path.rglob("*.jsonl")
    assert spool.parent.stat().st_mode & 0o077 == 0
    log.close()
    assert not list(tmp_path.rglob("*.jsonl"))


def test_without_a_local_disk_the_shards_keep_their_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "private_folder", lambda: tmp_path / "no" / "such")
    log = writer(tmp_path / "w0", flush_s=0.0)
    log.starting("a")
    log.add(row("a"))
    assert len(stored(tmp_path / "w0")) == 1


def test_a_spool_begins_where_another_run_has_just_tidied_its_folder_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = spool.Spool.left

    def meanwhile(own: spool.Spool, died_in: Collection[int]) -> Any:
        spool.tidy()
        return left(own, died_in)

    monkeypatch.setattr(spool.Spool, "left", meanwhile)
    writer(tmp_path / "w0").add(row("a"))
    (written,) = tmp_path.rglob("*.jsonl")
    assert written.parent.stat().st_mode & 0o077 == 0 and '"end"' in written.read_text()


ACTS = ["start", "alone", "add", "drop", "flush", "abandon", "die", "fail", "end"]


@example([("a", "start"), ("a", "add"), ("a", "abandon"), ("a", "die")])
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(ACTS))))
def test_whenever_it_dies_every_answer_is_stored_once_and_nothing_in_flight_is_forgotten(
    tmp_path_factory: pytest.TempPathFactory, acts: list[tuple[str, str]]
) -> None:
    """Compared with a model of plain sets; ``acts``: what a task does, and how it ends."""
    folder = tmp_path_factory.mktemp("property") / "w0"
    log = writer(folder)
    answered: set[str] = set()
    flying: dict[str, str] = {}
    tries, died = 0, set[int]()
    for key, act in acts:
        if act in ("start", "alone") and key not in answered and flying.get(key, "suspect") == "suspect":
            log.starting(key, alone=act == "alone")
            flying[key] = act
        elif act in ("add", "drop") and key in flying:
            del flying[key]
            log.add(row(key)) if act == "add" else log.drop(key)
            answered |= {key} if act == "add" else set()
        elif act == "flush":
            log.flush()
        elif act == "abandon":
            log.abandon()
            flying = {key: "suspect" for key, how in flying.items() if how != "start"}
        elif act in ("die", "fail", "end"):  # retried alone, with its stage, or with its stage because of another task
            tries += act != "die"
            died.update({tries - 1} if act == "fail" else ())
            log = writer(folder, nth_try=tries, died_in=died)
            assert log.finished == answered
            if act == "end":
                flying = {key: "suspect" for key, how in flying.items() if how != "start"}
            else:
                flying = {key: "alone" if how == "alone" else "suspect" for key, how in flying.items()}
            assert log.suspects == {key for key, how in flying.items() if how == "suspect"}
            assert log.killers == {key for key, how in flying.items() if how == "alone"}
    log.close()
    assert sorted(r["request_key"] for r in stored(folder)) == sorted(answered)


def test_transactions_come_in_order_and_an_unfinished_one_is_returned_unchanged(tmp_path: Path) -> None:
    commits = wal.Commits(str(tmp_path))
    assert (commits.next(), commits.unfinished()) == (0, None)
    commits.begin(0, 5, ["a.parquet", "b.parquet"])
    assert commits.unfinished() == (0, 5, ["a.parquet", "b.parquet"])
    with pytest.raises(PersonaHubError, match="out of order"):
        commits.begin(1, 6, [])  # the transaction before it may be missing in the table
    commits.done(0)
    assert (wal.Commits(str(tmp_path)).next(), commits.unfinished()) == (1, None)
    for wrong in (0, 2):
        with pytest.raises(PersonaHubError, match="out of order"):
            commits.begin(wrong, 6, [])
    commits.begin(1, 6, [])


HOLDER = """
import sys
from personahub_spark.store.locks import lease
with lease(sys.argv[1], "extract", beat_s=0.05):
    print("inside", flush=True)
    sys.stdin.read()
"""


# The beat of a process that waits for a lease: after three beats without a sign of life it takes the holder for dead.
SLOW_BEAT_S = PATIENCE_S / 3


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """Waiting for a lease polls often, whatever the beat, and runs one of these functions before each poll."""
    acts: list[Callable[[], None]] = []
    sleep = time.sleep

    def nap(seconds: float) -> None:
        while acts:
            acts.pop()()
        sleep(min(seconds, 0.05))

    monkeypatch.setattr(locks.time, "sleep", nap)
    return acts


def holder(folder: Path) -> subprocess.Popen[str]:
    """Start a process that holds the lease until its stdin is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "inside\n"
    return process


def test_a_second_run_of_a_step_gives_way_while_the_first_lives_and_goes_on_when_it_is_dead(
    tmp_path: Path, naps: list[Callable[[], None]]
) -> None:
    with holder(tmp_path) as process:
        with (
            pytest.raises(PersonaHubError, match=f"extract is being run on this store by process {process.pid}"),
            locks.lease(str(tmp_path), "extract", beat_s=SLOW_BEAT_S),
        ):
            pass
        with locks.lease(str(tmp_path), "another step", beat_s=SLOW_BEAT_S):
            pass
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with locks.lease(str(tmp_path), "extract", beat_s=SLOW_BEAT_S):
            pass
        assert files.names(str(tmp_path)) == []


def test_a_lease_of_another_machine_is_taken_over_only_when_it_has_no_pulse(tmp_path: Path) -> None:
    elsewhere = json.dumps({"host": "elsewhere", "pid": 1, "token": "x", "since": "2000-01-01T00:00:00Z"})
    files.write_whole(str(tmp_path), "extract", f"{elsewhere}\n7".encode())
    started = time.monotonic()
    with locks.lease(str(tmp_path), "extract", beat_s=0.1):
        assert time.monotonic() - started >= 0.3


def test_a_process_may_wait_until_the_holder_of_a_lease_is_done(tmp_path: Path, naps: list[Callable[[], None]]) -> None:
    with holder(tmp_path) as process:
        with (
            pytest.raises(PersonaHubError, match="is being run on this store"),
            locks.lease(str(tmp_path), "extract", beat_s=SLOW_BEAT_S, wait_s=0.1),
        ):
            pass
        assert process.stdin is not None
        naps.append(process.stdin.close)  # the holder ends once this process waits
        with locks.lease(str(tmp_path), "extract", beat_s=SLOW_BEAT_S, wait_s=PATIENCE_S):
            assert process.wait(timeout=PATIENCE_S) == 0
        assert not naps


def test_a_process_that_lost_its_lease_raises_at_the_end_and_keeps_the_new_lease(tmp_path: Path) -> None:
    other = json.dumps({"host": "elsewhere", "pid": 1, "token": "x", "since": "2000-01-01T00:00:00Z"})
    with (
        pytest.raises(PersonaHubError, match="extract: another process took over on this store"),
        locks.lease(str(tmp_path), "extract", beat_s=0.05),
    ):
        files.write_whole(str(tmp_path), "extract", f"{other}\n1".encode())
        assert eventually(lambda: "lease-extract" not in {thread.name for thread in threading.enumerate()})
    assert files.read_whole(str(tmp_path), "extract") == f"{other}\n1".encode()
