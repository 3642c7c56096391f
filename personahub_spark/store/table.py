"""The declaration of a table."""

from __future__ import annotations

from dataclasses import dataclass, field

from pyspark.sql.types import (
    ArrayType,
    DataType,
    DecimalType,
    IntegerType,
    LongType,
    StringType,
    StructField,
    StructType,
    TimestampType,
)

COST = DecimalType(24, 6)
"""Micro-dollars, exact to a millionth of one."""


@dataclass(frozen=True)
class Table:
    """A declared table: its columns without the two that every row gets (``run_id``, ``created_at``)."""

    name: str
    comment: str
    columns: tuple[StructField, ...]
    key: tuple[str, ...]
    checks: dict[str, str] = field(default_factory=dict, hash=False)

    @property
    def schema(self) -> StructType:
        """All columns, in order."""
        return StructType([*self.columns, *STAMPS])


def column(name: str, kind: DataType, comment: str, *, nullable: bool = True) -> StructField:
    return StructField(name, kind, nullable, {"comment": comment})


TEXT, LONG, INTEGER = StringType(), LongType(), IntegerType()
NAMES = ArrayType(StringType(), containsNull=False)

STAMPS = (
    column("run_id", TEXT, "run that wrote the row", nullable=False),
    column(
        "created_at", TimestampType(), "start of the step that wrote the row: one value for each step", nullable=False
    ),
)
