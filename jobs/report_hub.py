"""Print statistics of the hub: novelty and cost by hop, and the number of personas of kinds rare on the web."""

from personahub_spark.program.faults import exit_code
from personahub_spark.program.options import parser
from personahub_spark.program.start import open_context
from personahub_spark.publication import report
from personahub_spark.settings.loading import load
from personahub_spark.store.store import view_query


def main() -> None:
    arguments = parser(__doc__).parse_args()
    with exit_code():
        context = open_context(load(arguments.conf, arguments.set))
        print(view_query("expansion_hops").splitlines()[0].removeprefix("-- ") + "  (view expansion_hops)")
        context.store.view("expansion_hops").orderBy("hop").show(10, truncate=False)
        print(
            "How many published personas are of kinds that web text rarely yields?  "
            "(English; words: personahub_spark/publication/low_visibility.txt)"
        )
        counts = report.low_visibility(context.store)
        hops = sorted(counts["all"])
        print(f"{'kind':24}" + "".join(f"{f'hop {hop}':>16}" for hop in hops))
        for kind, by_hop in counts.items():
            shares = (f"{by_hop[hop]:,} ({by_hop[hop] / counts['all'][hop]:.1%})" for hop in hops)
            print(f"{kind:24}" + "".join(f"{share:>16}" for share in shares))


if __name__ == "__main__":
    main()
