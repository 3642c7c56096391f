"""The way from each persona back to the persona of hop 0 that it descends from.

A persona may be found many times, by several parents and in circles. It is a row once, though, with the parent that
found it first, and that one was there before it. So the way by first parents has no circle, never changes, and has as
many steps as the persona has hops. It is written down when the persona is, from its parent's way alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, StringType

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


def paths(personas: DataFrame, ancestors: DataFrame) -> DataFrame:
    """Rows of ``persona_ancestors`` for ``personas`` (persona_id, hop, first_origin) of one hop, from 1.

    ``ancestors`` has the rows of the hops before. A persona whose parent's way is not there is left out.
    """
    parents = ancestors.select(
        F.col("persona_id").alias("first_origin"), F.col("root_id").alias("_root"), F.col("path").alias("_path")
    )
    before = F.coalesce("_path", F.array().cast(ArrayType(StringType())))
    return (
        personas.join(parents, on="first_origin", how="left")
        .where(F.size(before) + 1 == F.col("hop"))
        .select(
            "persona_id",
            F.coalesce("_root", "first_origin").alias("root_id"),
            F.concat(before, F.array("first_origin")).alias("path"),
        )
    )
