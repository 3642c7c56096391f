"""Remove personas from the hub that have nearly the same words as another, each with the kept one as its witness."""

from personahub_spark.hub import removals
from personahub_spark.program.cli import main

STEP = removals.DEDUP_SURFACE


if __name__ == "__main__":
    main(STEP, doc=__doc__)
