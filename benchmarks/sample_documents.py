"""A small mixed sample of real documents, as JSON lines: some from each file, in the order of the text hashes.

    python benchmarks/sample_documents.py --data FOLDER --out sample.jsonl \\
        webtext/pubmedqa_abstracts.jsonl.gz=30 multilingual/debian_descriptions_10langs.jsonl.gz:de=20

FILE=COUNT takes COUNT rows of a file of JSON lines with ``text``, FILE:LANG=COUNT those in one language. Texts of fewer
than --min-words words are skipped; in languages without blanks, two characters count as a word.
"""

import argparse
import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from personahub_spark.text import content_id


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that the files are in")
    parser.add_argument("--out", type=Path, required=True, help="file to write the sample to")
    parser.add_argument("--min-words", type=int, default=40)
    parser.add_argument("files", nargs="+", metavar="FILE[:LANG]=COUNT")
    arguments = parser.parse_args()
    with arguments.out.open("w", encoding="utf-8") as out:
        for argument in arguments.files:
            name, _, count = argument.rpartition("=")
            name, _, lang = name.partition(":")
            chosen = _sample(arguments.data / name, lang or None, int(count), arguments.min_words)
            if len(chosen) < int(count):
                print(f"{argument}: only {len(chosen)} rows", file=sys.stderr)
                return 1
            out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in chosen)
    return 0


def _sample(path: Path, lang: str | None, count: int, min_words: int) -> list[dict[str, object]]:
    rows = {
        content_id(row["text"]): row
        for row in _rows(path)
        if (lang is None or row.get("lang") == lang)
        and max(len(row["text"].split()), sum(c > "\u2e80" for c in row["text"]) // 2) >= min_words
    }
    return [rows[key] for key in sorted(rows)[:count]]


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


if __name__ == "__main__":
    sys.exit(main())
