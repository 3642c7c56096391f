"""Programs a second in the sandbox, and how each hostile program of the tests ends at each level.

python benchmarks/sandbox.py --programs 200
python benchmarks/sandbox.py --no-hostile --modules numpy sympy
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median, quantiles

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from hostile_programs import HOSTILE, surroundings

from personahub_spark.errors import PersonaHubError
from personahub_spark.synthesis.sandbox import Sandbox

PROGRAM = """
from fractions import Fraction
price = Fraction(5, 4)
total = sum(price * n for n in range(1, 40)) - Fraction(1, 3)
print(float(total))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=200, help="benign ones to time (default: %(default)s)")
    parser.add_argument("--modules", nargs="*", default=["numpy"], help="modules to load in advance (default: numpy)")
    parser.add_argument("--no-hostile", action="store_true", help="time benign programs only")
    arguments = parser.parse_args()
    modules = [name for name in arguments.modules if name]
    print(f"user {os.geteuid()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, modules {modules}\n")
    levels = [level for level in ("A", "B", "none") if _timed(level, modules, arguments.programs)]
    if not arguments.no_hostile:
        _hostile([level for level in levels if level != "none"], modules)


def _timed(level: str, modules: Sequence[str], programs: int) -> bool:
    began = time.monotonic()
    try:
        sandbox = Sandbox(level=level, modules=modules)
    except PersonaHubError as error:
        print(f"level {level}: {error}")
        return False
    with sandbox, Sandbox(level=level, modules=modules) as second:
        opened = time.monotonic() - began
        taken = []
        for _ in range(programs):
            began = time.monotonic()
            outcome = sandbox.run(PROGRAM)
            taken.append(1000 * (time.monotonic() - began))
            if outcome.status != "ok":
                raise SystemExit(f"{outcome}")
        began = time.monotonic()
        with ThreadPoolExecutor(2) as threads:
            for each in (sandbox, second):
                threads.submit(lambda chosen=each: [chosen.run(PROGRAM) for _ in range(programs)])
        both = 2 * programs / (time.monotonic() - began)
    rate = 1000 * programs / sum(taken)
    print(
        f"level {level}: {rate:.0f} programs/s one by one, {both:.0f} in two sandboxes, which opened in "
        f"{opened:.1f} s; ms a run: {median(taken):.1f} median, {quantiles(taken, n=20)[-1]:.1f} at 95 %"
    )
    return True


def _hostile(levels: Sequence[str], modules: Sequence[str]) -> None:
    print(f"\n| program | {' | '.join(levels)} |\n|---|{'---|' * len(levels)}")
    ends: dict[str, list[str]] = {program.name: [] for program in HOSTILE}
    wrong = 0
    for level in levels:
        limits = {"memory_mb": 256, "output_chars": 5000}
        with (
            Sandbox(level=level, modules=modules, time_s=1.0, **limits) as quick,
            Sandbox(level=level, modules=modules, time_s=600.0, **limits) as patient,
        ):
            for program in HOSTILE:
                with tempfile.TemporaryDirectory() as folder, surroundings(Path(folder)) as names:
                    outcome = (quick if program.endless else patient).run(names + program.source)
                escaped = "ESCAPED" in outcome.output or outcome.status not in program.ends
                wrong += escaped
                ends[program.name].append(outcome.status + (", ESCAPED" if escaped else ""))
    for name, statuses in ends.items():
        print(f"| {name} | {' | '.join(statuses)} |")
    print(f"\n{len(HOSTILE)} hostile programs, {wrong} not contained")


if __name__ == "__main__":
    main()
