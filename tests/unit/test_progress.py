"""Progress: one line with share, rate, time left and cost."""

from __future__ import annotations

import io
import logging
import threading
from decimal import Decimal

import pytest

from personahub_spark.program.progress import Progress, Status, line
from tests.waiting import PATIENCE_S


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("status", "elapsed_s", "expected"),
    [
        (Status(0, 10), 5.0, "x [                    ] 0/10 rows"),
        (Status(5, 10), 0.0, "x [##########          ] 5/10 rows"),
        (Status(5, 10), 2.0, "x [##########          ] 5/10 rows · 2.5/s · about 2 s left"),
        (
            Status(1_000, 4_000, "tasks"),
            60.0,
            "x [#####               ] 1,000/4,000 tasks · 16.7/s · about 3 min 00 s left",
        ),
        (Status(1, 101), 72.0, "x [                    ] 1/101 rows · 0.0/s · about 2 h 00 min left"),
        (Status(12, 10), 1.0, "x [####################] 12/10 rows · 12.0/s · about 0 s left"),
        (Status(0, 0), 1.0, "x [####################] 0/0 rows"),
        (Status(0, 10, cost_microusd=Decimal("1234567.8")), 1.0, "x [                    ] 0/10 rows · $1.2346"),
    ],
)
def test_a_line_says_share_rate_time_left_and_cost(status: Status, elapsed_s: float, expected: str) -> None:
    assert line("x", status, elapsed_s) == expected


@pytest.mark.parametrize(
    ("status", "elapsed_s", "quiet_s", "expected"),
    [
        # Timed-out calls are still due; failed ones are not.
        (
            Status(4, 24, "answers", failed=2, timeouts=5, retries=7),
            60.0,
            0.0,
            "x [#####               ] 4/24 answers · 2 failed · 5 timeouts · 7 retries · 0.1/s · about 3 min 00 s left",
        ),
        # Four answers, then none for ten minutes: no estimate of the time left, unless answers were as rare before.
        (Status(4, 24, "answers", timeouts=8), 640.0, 600.0, "x [###                 ] 4/24 answers · 8 timeouts · "
         "no more for 10 min 00 s"),
        (Status(4, 24), 3000.0, 600.0, "x [###                 ] 4/24 rows · 0.0/s · about 4 h 10 min left"),
        (Status(4, 24), 70.0, 59.0, "x [###                 ] 4/24 rows · 0.1/s · about 5 min 50 s left"),
        (Status(0, 24, "answers", timeouts=1), 61.0, 61.0, "x [                    ] 0/24 answers · 1 timeouts · "
         "no more for 1 min 01 s"),
    ],
)  # fmt: skip
def test_a_line_separates_answers_from_failures_and_estimates_no_time_during_a_pause(
    status: Status, elapsed_s: float, quiet_s: float, expected: str
) -> None:
    assert line("x", status, elapsed_s, quiet_s) == expected


def polled_until(times: int) -> tuple[threading.Event, list[Status | None]]:
    return threading.Event(), [None, *[Status(n, times) for n in range(1, times + 1)]]


def test_without_a_terminal_it_logs_lines_and_writes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    stream, (seen, answers) = io.StringIO(), polled_until(2)

    def poll() -> Status | None:
        if len(answers) == 1:
            seen.set()
        return answers.pop(0) if len(answers) > 1 else answers[0]

    progress = Progress(stream, log_every_s=0.01)
    with progress.watch("step", poll):
        assert seen.wait(PATIENCE_S)
    progress.say("done")
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0].startswith("step [##########          ] 1/2 rows")  # None, polled first, is not shown
    assert messages[-1] == "done"
    assert stream.getvalue() == ""


def test_it_logs_no_more_often_than_asked(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Progress(io.StringIO(), log_every_s=PATIENCE_S).watch("step", lambda: Status(1, 2)):
        assert not threading.Event().wait(0.7)
    assert caplog.records == []


def test_on_a_terminal_one_line_is_rewritten_and_gone_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    stream, (seen, answers) = Terminal(), polled_until(2)

    def poll() -> Status | None:
        if len(answers) == 1:
            seen.set()
        return answers.pop(0) if len(answers) > 1 else answers[0]

    progress = Progress(stream)
    with progress.watch("step", poll):
        assert seen.wait(PATIENCE_S)
    shown = stream.getvalue()
    assert "\r\x1b[Kstep [##########          ] 1/2 rows" in shown
    assert "\n" not in shown
    assert shown.endswith("\r\x1b[K")
    progress.say("done")
    assert stream.getvalue() == shown + "\r\x1b[Kdone\n"
    assert caplog.records == []


def test_watching_ends_with_the_block_also_when_it_fails() -> None:
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError), Progress(io.StringIO(), log_every_s=PATIENCE_S).watch("step", lambda: None):
        raise ZeroDivisionError
    assert threading.active_count() == before
