"""Whether a cap on money holds for any form of usage that an endpoint reports.

For each form of usage, many questions go to a fake endpoint that counts what it bills, under a cap for a tenth of them,
by calls and by batch files. Prints the questions sent and answered, the dollars that were billed, that the rows have as
their cost and that the run counted as spent, and the tokens used and counted against token limits. Exit code 1 if more
was billed than the cap allows, fewer tokens were counted than used, or the known costs of rows do not add up to what
was billed.

    python benchmarks/money_cap.py
    python benchmarks/money_cap.py --calls 1000 --forms empty reasoning_beside --modes calls
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import Any

from personahub_spark.llm.batches import Journal, run_batches
from personahub_spark.llm.client import outcomes
from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.llm.fake.usage_forms import FORMS, READABLE
from personahub_spark.llm.gate import Gate
from personahub_spark.llm.limits import Budget
from personahub_spark.llm.wire import Outcome, Request
from personahub_spark.settings.models import Endpoint, Price

# High prices: a call costs cents.
PRICE = Price(input=Decimal(1000), cached_input=Decimal(250), output=Decimal(4000))
RULE = {"reply": "an answer of seven words in all", "cached_tokens": 4, "reasoning_tokens": 9}
COST_OF_CALL = Decimal("0.073")
MAX_TOKENS = 24
MILLION = Decimal(1_000_000)


@dataclass(frozen=True)
class Measured:
    sent: int
    answered: int
    billed: Decimal
    of_rows: Decimal | None  # None: the cost of some answer is unknown
    spent: Decimal
    tokens_used: int
    tokens_counted: int | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1000, help="questions a form (default: %(default)s)")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS), help="default: all")
    parser.add_argument("--modes", nargs="+", choices=["calls", "batch"], default=["calls", "batch"])
    parser.add_argument("--transport", choices=["openai", "aiohttp"], default="aiohttp")
    chosen = parser.parse_args()
    logging.getLogger("personahub_spark").setLevel(logging.ERROR)  # each time that the cap is reached
    cap = (COST_OF_CALL * chosen.calls / 10).quantize(Decimal("0.01"), ROUND_CEILING)
    print(f"{chosen.calls} questions a form, a cap of ${cap}; all would cost ${COST_OF_CALL * chosen.calls:.2f}")
    print(
        f"{'form':18}{'mode':7}{'sent':>6}{'answered':>10}{'billed $':>10}{'of rows $':>11}{'spent $':>9}"
        f"{'tokens used':>13}{'counted':>9}"
    )
    faults = 0
    with FakeEndpoint() as fake:
        for form in chosen.forms:
            for mode in chosen.modes:
                for streams in (False, True) if form == "plain" and mode == "calls" else (False,):
                    fake.reset()
                    fake.set_script([{**RULE, "usage": form, **({"fault": "stream"} if streams else {})}])
                    where = Endpoint(model="m", base_url=fake.url, in_flight=16, transport=chosen.transport)
                    measured = (_by_calls if mode == "calls" else _by_batches)(fake, where, chosen.calls, cap)
                    rows = "unknown" if measured.of_rows is None else f"{measured.of_rows:.6f}"
                    fault = _fault(measured, cap, is_readable=form in READABLE)
                    faults += fault is not None
                    print(
                        f"{form + (' streamed' if streams else ''):18}{mode:7}{measured.sent:>6}{measured.answered:>10}"
                        f"{measured.billed:>10.4f}{rows:>11}{measured.spent:>9.4f}{measured.tokens_used:>13}"
                        f"{'-' if measured.tokens_counted is None else measured.tokens_counted:>9}  {fault or ''}",
                        flush=True,
                    )
    sys.exit(1 if faults else 0)


def _by_calls(fake: FakeEndpoint, where: Endpoint, calls: int, cap: Decimal) -> Measured:
    gate = Gate(where, PRICE, max_cost_usd=cap)
    with gate:
        answers = [
            outcome for outcome in outcomes(_requests(calls), where, PRICE, gate=gate.place) if outcome is not None
        ]
    return _measured(fake.counts(), answers, PRICE, gate.passed.spent_microusd, gate.passed.tokens)


def _by_batches(fake: FakeEndpoint, where: Endpoint, calls: int, cap: Decimal) -> Measured:
    budget = Budget(cap * MILLION, Decimal(0))
    with tempfile.TemporaryDirectory() as folder:
        results = run_batches(
            _requests(calls), where, PRICE, name="cap", journal=Journal(str(Path(folder) / "journal")), key=None,
            flush=lambda: None, poll_s=0.05, budget=budget, max_lines=20,
        )  # fmt: skip
        answers = [outcome for outcome in results if outcome is not None]
    return _measured(fake.batch_counts(), answers, PRICE.of_batches, budget.spent, None)


def _measured(
    counts: dict[str, int], answers: list[Outcome], price: Price, spent: Decimal, counted: int | None
) -> Measured:
    assert price.cached_input is not None
    costs = [outcome.cost_microusd for outcome in answers if outcome.status == "answered"]
    known_costs = [cost for cost in costs if cost is not None]
    cached = counts["cached_tokens"]
    billed = (counts["input_tokens"] - cached) * price.input + cached * price.cached_input
    return Measured(
        sent=counts["billed"],
        answered=len(costs),
        billed=(billed + counts["output_tokens"] * price.output) / MILLION,
        of_rows=sum(known_costs, Decimal(0)) / MILLION if len(known_costs) == len(costs) else None,
        spent=spent / MILLION,
        tokens_used=counts["input_tokens"] + counts["output_tokens"],
        tokens_counted=counted,
    )


def _fault(measured: Measured, cap: Decimal, *, is_readable: bool) -> str | None:
    if measured.billed > cap:
        return "MORE BILLED THAN THE CAP ALLOWS"
    if measured.spent < measured.billed:
        return "SPENT MORE THAN IT COUNTED"
    if measured.tokens_counted is not None and measured.tokens_counted < measured.tokens_used:
        return "TOKENS NOT COUNTED"
    if is_readable and measured.of_rows != measured.billed:
        return "ROWS DO NOT ADD UP TO WHAT WAS BILLED"
    if not is_readable and measured.of_rows is not None:
        return "A ROW HAS A COST THAT CANNOT BE KNOWN"
    return None


def _requests(calls: int) -> Iterator[Request]:
    for number in range(calls):
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": f"Who would read text number {number} of this collection, and for what?"}
        ]
        yield Request("m", messages, {"max_tokens": MAX_TOKENS})


if __name__ == "__main__":
    main()
