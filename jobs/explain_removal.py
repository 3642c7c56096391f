"""Say why a persona is not in the hub: explain_removal.py <persona id>, or explain_removal.py --audit 200."""

from pyspark.sql import DataFrame, Row, Window
from pyspark.sql import functions as F

from personahub_spark.dedup.surface import EXACT_TOKENS, SURFACE, parameters_version
from personahub_spark.errors import PersonaHubError
from personahub_spark.session import exit_code, open_context, parser
from personahub_spark.settings import Settings, load
from personahub_spark.tables import PERSONA_REMOVALS, PERSONAS, QUARANTINE, Store
from personahub_spark.text import token_set


def main() -> None:
    made = parser(__doc__)
    wanted = made.add_mutually_exclusive_group(required=True)
    wanted.add_argument("persona_id", nargs="?", help="its first digits are enough where no other id has them")
    wanted.add_argument("--audit", type=int, metavar="N", help="show N removals of each tier, to be judged by eye")
    arguments = made.parse_args()
    with exit_code():
        settings = load(arguments.conf, arguments.set)
        store = open_context(settings).store
        lines = (
            explain(store, settings, arguments.persona_id) if arguments.persona_id else audit(store, arguments.audit)
        )
        print("\n".join(lines))


def explain(store: Store, settings: Settings, persona_id: str) -> list[str]:
    """Lines about the persona whose id starts so; PersonaHubError when none does, or several do."""
    personas = store.read(PERSONAS).where(F.col("persona_id").startswith(persona_id)).limit(2).collect()
    if len(personas) != 1:
        found = "several ids start" if personas else "no persona has an id that starts"
        raise PersonaHubError(f"{found} with {persona_id!r}; jobs/query_tables.py finds ids by text")
    persona = personas[0]
    lines = [
        line
        for removal in _removals(store).where(F.col("persona_id") == persona["persona_id"]).orderBy("tier").collect()
        for line in _told(removal, settings)
    ]
    if persona["quality_flags"]:
        lines.append(f"flagged     {', '.join(persona['quality_flags'])}: {_line(persona['text'])}")
    aside = (F.col("source") == "dedup_surface") & (F.col("line") == persona["persona_id"])
    lines += [
        f"quarantine  {row['reason']}: {_line(persona['text'])}"
        for row in store.read(QUARANTINE).where(aside).collect()
    ]
    return lines or [f"in the hub  {_line(persona['text'])}"]


def audit(store: Store, count: int) -> list[str]:
    """Lines about ``count`` removals of each tier, those of the smallest ids: ids are hashes, so that is a fair sample.

    Each shows the similarity, the two texts, and the tokens that only one of them has.
    """
    of_tier = Window.partitionBy("tier")
    sample = (
        _removals(store)
        .withColumn("nth", F.row_number().over(of_tier.orderBy("persona_id")))
        .withColumn("all", F.count(F.lit(1)).over(of_tier))
        .where(F.col("nth") <= count)
        .orderBy("tier", "nth")
    )
    lines = []
    for row in sample.collect():
        if row["nth"] == 1:
            lines.append(f"{row['tier']}: {min(count, row['all']):,} of {row['all']:,} removals")
        _, removed, kept = _differences(row)
        lines += [
            f"{row['similarity']:.4f}  removed  {_line(row['text'])}",
            f"        kept     {_line(row['kept_text'])}",
        ]
        if removed or kept:
            lines.append(f"        differ   {' '.join(removed) or 'nothing'} | {' '.join(kept) or 'nothing'}")
    return lines or ["nothing was removed"]


def _removals(store: Store) -> DataFrame:
    removed = store.read(PERSONAS).select("persona_id", "text")
    kept = removed.select(F.col("persona_id").alias("kept_id"), F.col("text").alias("kept_text"))
    return (
        store.read(PERSONA_REMOVALS).join(removed, on="persona_id", how="inner").join(kept, on="kept_id", how="inner")
    )


def _told(removal: Row, settings: Settings) -> list[str]:
    common, removed, kept = _differences(removal)
    by_words = removal["tier"] in (EXACT_TOKENS, SURFACE)
    of_all = f", {len(common)} of {len(common) + len(removed) + len(kept)} tokens" if by_words else ""
    current = by_words and removal["parameters_version"] == parameters_version(settings.dedup.surface)
    parameters = f" {settings.dedup.surface.model_dump_json()}" if current else ""
    return [
        f"removed     {removal['persona_id']}  {_line(removal['text'])}",
        f"kept        {removal['kept_id']}  {_line(removal['kept_text'])}",
        f"tier        {removal['tier']}",
        f"similarity  {removal['similarity']:.6f} ({'Jaccard' if by_words else 'cosine'}{of_all})",
        f"common      {' '.join(common)}",
        f"differ      {' '.join(removed) or 'nothing'} | {' '.join(kept) or 'nothing'}",
        f"parameters  {removal['parameters_version']}{parameters}",
        f"run         {removal['run_id']} at {removal['created_at']:%Y-%m-%d %H:%M:%S}",
    ]


def _differences(removal: Row) -> tuple[list[str], list[str], list[str]]:
    """Tokens of both texts, of the removed one only, of the kept one only."""
    removed, kept = set(token_set(removal["text"])), set(token_set(removal["kept_text"]))
    return sorted(removed & kept), sorted(removed - kept), sorted(kept - removed)


def _line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    main()
