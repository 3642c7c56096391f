"""Show what the tiers of dedup do at several thresholds: how many personas stay, and how far apart those are.

Reads personas and persona_embeddings and changes no table. It compares every pair of personas, so the figures depend on
tiers and thresholds only, not on an index. Personas that surface dedup removed before embed_personas ran have no
vector: to include them, run embed_personas first.
"""

import csv
from decimal import Decimal
from pathlib import Path

from personahub_spark.errors import PersonaHubError
from personahub_spark.hub.ablation import THRESHOLDS, TIERS, Outcome, ablate
from personahub_spark.program.faults import exit_code
from personahub_spark.program.options import parser
from personahub_spark.program.start import open_context
from personahub_spark.settings.loading import load


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--thresholds", type=Decimal, nargs="+", default=THRESHOLDS, help="from 0.5 to 1")
    options.add_argument("--tiers", nargs="+", default=TIERS, choices=TIERS, help="both: surface, then semantic")
    options.add_argument("--rows", type=int, default=20_000, help="personas to compare (default: %(default)s)")
    options.add_argument("--csv", type=Path, metavar="FILE", help="write the table there, too")
    arguments = options.parse_args()
    with exit_code():
        if arguments.csv is not None and not arguments.csv.parent.is_dir():  # checked now, not after the study
            raise PersonaHubError(f"--csv: there is no folder {arguments.csv.parent}; make it, or name another file")
        context = open_context(load(arguments.conf, arguments.set))
        outcomes = ablate(context, thresholds=arguments.thresholds, tiers=arguments.tiers, rows=arguments.rows)
        print(f"{'tier':10}{'threshold':>10}{'retained':>12}{'share':>9}{'mean distance':>15}")
        for one in outcomes:
            threshold = "" if one.threshold is None else one.threshold
            distance = "" if one.mean_distance is None else f"{one.mean_distance:.4f}"
            print(f"{one.tier:10}{threshold!s:>10}{one.retained:>12,}{one.share:>9.4f}{distance:>15}")
        if arguments.csv is not None:
            with arguments.csv.open("w", encoding="utf-8", newline="") as opened:
                csv.writer(opened).writerows([Outcome._fields, *outcomes])


if __name__ == "__main__":
    main()
