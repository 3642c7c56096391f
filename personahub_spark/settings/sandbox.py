"""Settings of the sandbox for programs that models wrote."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from personahub_spark.settings.group import Group


class SandboxSettings(Group):
    """How programs that models wrote are run (see docs/sandbox.md)."""

    level: Literal["A", "B", "none"] | None = Field(
        default=None,
        description="null: the higher one of A and B that works on the machine; none: no sandbox, so only for programs "
        "that are trusted",
    )
    time_s: float = Field(default=10.0, gt=0, le=600, description="seconds that one run of a program may take")
    memory_mb: int = Field(default=512, ge=16, description="memory that a program may use, in MiB")
