"""Show the lineage of personas, relation by relation, with licences and costs: trace_persona.py <id> ...

The view ``persona_lineage`` has the same in SQL; this job reads only few rows, by their keys, also in large tables.
"""

from personahub_spark.program.options import parser

# The package comes first, so that Ctrl-C ends what is imported next.
# isort: split
from pyspark.sql import Row
from pyspark.sql import functions as F

from personahub_spark.hub.lineage import trace
from personahub_spark.program.faults import exit_code
from personahub_spark.program.start import open_context
from personahub_spark.settings.loading import load
from personahub_spark.store.hub_tables import PERSONAS
from personahub_spark.store.store import Store


def main() -> None:
    options = parser(__doc__)
    options.add_argument("persona_id", nargs="+", help="the whole id; jobs/query_tables.py finds ids by text")
    arguments = options.parse_args()
    with exit_code():
        store = open_context(load(arguments.conf, arguments.set)).store
        print("\n".join(lines_about(store, arguments.persona_id)))


def lines_about(store: Store, persona_ids: list[str]) -> list[str]:
    """Lines about each persona and each of its origins; PersonaHubError for an unknown id."""
    rows = trace(store, persona_ids).orderBy("persona_id", "hop", "call_key", "source", "file", "line").collect()
    on_the_way = {person for row in rows for person in row["path"]}
    personas = store.read(PERSONAS).where(F.col("persona_id").isin(sorted(on_the_way.union(persona_ids))))
    texts = {row["persona_id"]: " ".join(row["text"].split()) for row in personas.collect()}
    lines = []
    for persona_id in persona_ids:
        lines.append(f"persona   {persona_id}  {texts[persona_id]}")
        mine = [row for row in rows if row["persona_id"] == persona_id]
        lines += [line for row in mine for line in _origin(row, texts)]
        if not mine:
            lines.append("  nothing that is in use led to it")
    return lines


def _origin(row: Row, texts: dict[str, str]) -> list[str]:
    place = " ".join(part for part in (row["title"] and f"“{row['title']}”", row["url"], _in_file(row)) if part)
    licence = row["licence"] or "no licence stated"
    lines = [f"  source    {row['source'] or 'unknown'}, {licence}: {place or row['doc_id'] or 'no place'}"]
    lines += [f"  {'then' if nth else 'led to':9} {person}  {texts[person]}" for nth, person in enumerate(row["path"])]
    if row["relation"]:
        lines.append(f"  as        {row['relation']}{': ' + row['relation_words'] if row['relation_words'] else ''}")
    elif row["verb"]:
        lines.append(f"  asked     who would {row['verb']} it, {row['granularity']}, part {row['chunk']}")
    if row["call_key"]:
        cost = "cost unknown" if row["cost_microusd"] is None else f"{row['cost_microusd'] / 1_000_000:f} USD"
        model = row["model_returned"] or row["model"] or "model unknown"
        lines.append(f"  call      {row['call_key']}  {model}, prompt {row['prompt_version']}, {cost}")
    return lines


def _in_file(row: Row) -> str | None:
    return f"{row['file']}:{row['line']}" if row["file"] else None


if __name__ == "__main__":
    main()
