"""All settings of a run together, and those of its store, its session and its steps."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Literal, Self

from pydantic import Field, model_validator

from personahub_spark.errors import SettingsError
from personahub_spark.settings.dedup import DedupSettings, EmbeddingSettings
from personahub_spark.settings.group import Group
from personahub_spark.settings.models import CallSettings, Endpoint
from personahub_spark.settings.personas import ExpansionSettings, FilterSettings, PersonaSettings
from personahub_spark.settings.sandbox import SandboxSettings
from personahub_spark.settings.sources import DocumentSettings, ExampleSettings, ImportSettings
from personahub_spark.settings.texts import JudgementSettings, SynthesisSettings


class StoreSettings(Group):
    """Where the tables are stored."""

    root: str | None = Field(
        default="warehouse",
        description="folder or object-store address of the tables; null: managed tables of the session's catalog",
    )
    database: str = Field(
        default="personahub",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)?$",
        description="database, or catalog.database",
    )
    state: str | None = Field(
        default=None, description="folder for answers on their way to the ledger; null: <root>/_state"
    )

    @model_validator(mode="after")
    def _state_has_a_place(self) -> StoreSettings:
        if self.root is None and self.state is None:
            raise ValueError("store.state must name a folder when store.root is null")
        return self

    @property
    def state_root(self) -> str:
        """Folder of the write-ahead log."""
        return self.state if self.state is not None else f"{(self.root or '').rstrip('/')}/_state"


class SparkSettings(Group):
    """How a session is built when none was submitted."""

    master: str = Field(default="local[*]", description="Spark's master; spark-submit overrides it")
    app_name: str = Field(default="personahub", description="name of the session in Spark's UI and logs")
    jars: Literal["cache", "packages", "provided"] = Field(
        default="cache",
        description="cache: fetched once into a local folder; packages: by coordinates, for clusters; "
        "provided: the cluster has them",
    )
    spark_nlp: bool = Field(default=False, description="load the Spark NLP jars too")
    ivy_settings: str | None = Field(default=None, description="an Ivy settings file, for a mirror of your own")
    conf: dict[str, str] = Field(default_factory=dict, description="more Spark settings, passed on unchanged")

    @property
    def is_one_process(self) -> bool:
        """Whether Spark is one process of this machine."""
        return is_one_process(self.conf.get("spark.master", self.master))


class PipelineSettings(Group):
    """What ``jobs/run_pipeline.py`` runs, and when it warns."""

    steps: list[str] | None = Field(
        default=None, description="steps in their order; null: all except those that run only on request"
    )
    quarantine_warn_share: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="a step that puts a larger share of its rows into quarantine logs a warning",
    )

    @model_validator(mode="after")
    def _no_step_is_named_twice(self) -> Self:
        steps = self.steps or []
        twice = [step for step in steps if steps.count(step) > 1]
        if twice:
            raise ValueError(f"steps names {twice[0]} twice; to run a step again, run its own job")
        return self


class Settings(Group):
    """All settings of a run."""

    store: StoreSettings = StoreSettings()
    spark: SparkSettings = SparkSettings()
    models: dict[str, Endpoint] = Field(
        default_factory=dict, description="models, by the names that steps use for them"
    )
    calls: CallSettings = CallSettings()
    documents: DocumentSettings = DocumentSettings()
    imports: list[ImportSettings] = Field(default_factory=list, description="data sets of personas to import")
    examples: list[ExampleSettings] = Field(
        default_factory=list, description="examples for prompts with the patterns few_shot and persona_few_shot"
    )
    personas: PersonaSettings = PersonaSettings()
    expansion: ExpansionSettings = ExpansionSettings()
    filters: FilterSettings = FilterSettings()
    embedding: EmbeddingSettings = EmbeddingSettings()
    dedup: DedupSettings = DedupSettings()
    tasks: list[str] = Field(default_factory=list, description="files or folders of tasks of your own")
    synthesis: list[SynthesisSettings] = Field(default_factory=list, description="kinds of texts to write")
    judgements: list[JudgementSettings] = Field(default_factory=list, description="texts to judge")
    sandbox: SandboxSettings = SandboxSettings()
    pipeline: PipelineSettings = PipelineSettings()
    prices: str | None = Field(default=None, description="price file of your own; null: the package's prices.yaml")

    @model_validator(mode="after")
    def _filters_of_imports_fit(self) -> Self:
        for entry in self.imports:
            entry.filters.over(self.filters)
        return self

    def endpoint(self, name: str) -> Endpoint:
        """The endpoint called ``name`` under ``models``; SettingsError if there is none."""
        if name not in self.models:
            names = ", ".join(sorted(self.models)) or "none"
            raise SettingsError(f"models.{name} is not set (models here: {names}); add it to the settings file")
        return self.models[name]

    def fingerprint(self) -> str:
        """Sixteen hex digits that change when any setting does."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def is_one_process(master: str) -> bool:
    """Whether executors of this Spark master run in the driver's process; those of ``local-cluster`` do not."""
    return re.match(r"local(\[|$)", master) is not None
