"""Explain why a persona is not in the hub: explain_removal.py <persona id>, or explain_removal.py --audit 200.

The view ``removals`` has the same in SQL, without the words that differ.
"""

from pathlib import Path

from personahub_spark.hub.audit import audit, explain, write_audit
from personahub_spark.program.faults import exit_code
from personahub_spark.program.options import parser
from personahub_spark.program.start import open_context
from personahub_spark.settings.loading import load


def main() -> None:
    options = parser(__doc__)
    choice = options.add_mutually_exclusive_group(required=True)
    choice.add_argument("persona_id", nargs="?", help="its first digits are enough if they are unique")
    choice.add_argument("--audit", type=int, metavar="N", help="show N removals of each tier, to judge by eye")
    options.add_argument(
        "--csv", type=Path, metavar="FILE", help="with --audit: write them to this file, with a column for the verdict"
    )
    arguments = options.parse_args()
    if arguments.csv is not None and arguments.audit is None:
        options.error("--csv goes with --audit")
    with exit_code():
        settings = load(arguments.conf, arguments.set)
        store = open_context(settings).store
        if arguments.csv is not None:
            print(f"{write_audit(store, arguments.audit, arguments.csv):,} removals in {arguments.csv}")
        elif arguments.audit is not None:
            print("\n".join(audit(store, arguments.audit)))
        else:
            print("\n".join(explain(store, settings, arguments.persona_id)))


if __name__ == "__main__":
    main()
