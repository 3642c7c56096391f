"""Print what the hub is made of: novelty and cost by hop, and how many personas are of kinds rarely seen on the web."""

from personahub_spark import reports
from personahub_spark.session import exit_code, open_context, parser
from personahub_spark.settings import load
from personahub_spark.tables import view_query


def main() -> None:
    arguments = parser(__doc__).parse_args()
    with exit_code():
        context = open_context(load(arguments.conf, arguments.set))
        print(view_query("expansion_hops").splitlines()[0].removeprefix("-- ") + "  (view expansion_hops)")
        context.store.view("expansion_hops").orderBy("hop").show(10, truncate=False)
        print(
            "How many published personas are of kinds that web text rarely yields?  "
            "(English; words: personahub_spark/low_visibility.txt)"
        )
        counts = reports.low_visibility(context.store)
        hops = sorted(counts["all"])
        print(f"{'kind':24}" + "".join(f"{f'hop {hop}':>16}" for hop in hops))
        for kind, found in counts.items():
            shares = (f"{found[hop]:,} ({found[hop] / counts['all'][hop]:.1%})" for hop in hops)
            print(f"{kind:24}" + "".join(f"{said:>16}" for said in shares))


if __name__ == "__main__":
    main()
