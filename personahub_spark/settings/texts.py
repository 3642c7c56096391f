"""Settings of texts that are written for personas."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from personahub_spark.settings.models import SamplingSettings


class SynthesisSettings(SamplingSettings):
    """One kind of text to write for every persona of the hub (paper sections 3 and 4)."""

    task: Literal["math"] = "math"
    variant: Literal["plain", "topic", "olympiad"] = "plain"
    topic: str | None = None
    pattern: Literal["zero_shot"] = "zero_shot"
    model: str = "default"
    fraction: float = Field(default=1.0, gt=0, le=1, description="share of the hub, chosen by persona id")
    max_tokens: int = Field(default=2048, ge=16)

    @model_validator(mode="after")
    def _topic_where_asked(self) -> SynthesisSettings:
        if (self.variant == "topic") != (self.topic is not None):
            raise ValueError("topic must be given with variant 'topic', and only there")
        return self
