"""Remove personas from the hub that mean the same as another one, each with the kept one as its witness."""

from personahub_spark.hub import removals
from personahub_spark.program.cli import main

STEP = removals.DEDUP_SEMANTIC


if __name__ == "__main__":
    main(STEP, doc=__doc__)
