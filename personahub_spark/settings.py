"""Settings: a YAML file plus ``--set a.b=c``, checked before anything starts.

Every key has one place here, a default where a sensible one exists, and a constraint where a bad value would only
show after money was spent. An unknown key is an error that names its nearest neighbour.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import logging
import re
import types
import typing
from decimal import Decimal
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from personahub_spark.errors import SettingsError

log = logging.getLogger(__name__)

Verb = Literal["read", "write", "like", "dislike"]
Granularity = Literal["coarse", "fine"]
Relation = Literal[
    "patient", "carer", "colleague", "manager", "employee", "customer", "supplier", "student", "teacher", "child",
    "parent", "partner", "sibling", "relative", "friend", "neighbour", "rival", "other",
]  # fmt: skip
"""What a related persona is to the one it was found from."""
Rule = Literal[
    "too_short", "too_long", "not_a_person", "undecided", "names_a_person", "points_elsewhere", "first_person",
    "addresses_reader", "copies_source", "contact_data", "placeholder", "repeated_words", "wrong_language", "refusal",
]  # fmt: skip
"""Names of the quality rules of ``filters``, in the order in which a row's flags are listed."""


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StoreSettings(_Group):
    """Where the tables live."""

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


class SparkSettings(_Group):
    """How a session is built when none was submitted."""

    master: str = "local[*]"
    app_name: str = "personahub"
    jars: Literal["cache", "packages", "provided"] = Field(
        default="cache",
        description="cache: resolved once into a local folder; packages: by coordinates, for clusters; "
        "provided: the cluster has them",
    )
    spark_nlp: bool = Field(default=False, description="load the Spark NLP jars too")
    ivy_settings: str | None = Field(default=None, description="an Ivy settings file, for a mirror of your own")
    conf: dict[str, str] = Field(default_factory=dict, description="more Spark settings, as they are")

    @property
    def is_one_process(self) -> bool:
        """Whether Spark is one process of this machine."""
        return is_one_process(self.conf.get("spark.master", self.master))


class Address(_Group):
    """Where a model is served. It travels to executors; the key's value never does, only where to find it."""

    base_url: str = Field(
        pattern=r"^https?://[^/?#@\s]+(/[^?#@\s]*)?$",
        description="address up to and including /v1, without a key, query or fragment",
    )
    api_key_env: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="name of the environment variable that holds the key, on the driver and on executors",
    )
    api_key_file: str | None = Field(
        default=None,
        pattern=r"^/",
        description="absolute path of a file that holds the key and nothing else, wherever calls are made",
    )
    api_key_credential: str | None = Field(
        default=None,
        pattern=r"^(databricks:[\w.@-]+/[\w.@-]+|hadoop:[\w.@-]+)$",
        description="a secret that the driver looks up: databricks:<scope>/<key>, or hadoop:<alias>",
    )
    weight: float = Field(default=1.0, gt=0, description="share of the calls, relative to the model's other addresses")
    requests_per_minute: int | None = Field(default=None, ge=1, description="limit of all tasks together")
    tokens_per_minute: int | None = Field(default=None, ge=1, description="limit of all tasks together")
    service_tier: str | None = Field(default=None, min_length=1, description="sent with each call, such as flex")

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if sum(name is not None for name in (self.api_key_env, self.api_key_file, self.api_key_credential)) > 1:
            raise ValueError("give one of api_key_env, api_key_file and api_key_credential")
        return self


class Endpoint(Address):
    """One model, and how it is asked: at its own address and at ``others``."""

    model: str = Field(min_length=1, description="the model's name as the endpoint knows it")
    structured_output: Literal["json_schema", "none"] = "none"
    transport: Literal["openai", "aiohttp"] = Field(
        default="openai", description="the HTTP client: the openai package, or a leaner one that costs less CPU a call"
    )
    mode: Literal["calls", "batch"] = Field(default="calls", description="batch: by the provider's batch files")
    in_flight: int = Field(default=64, ge=1, le=4096, description="calls at once per Python worker")
    workers: int = Field(default=2, ge=1, description="Spark tasks that call at once")
    timeout_s: float | None = Field(
        default=120.0,
        gt=0,
        description="hard limit of one attempt; null: by the rate of the answers so far, with much to spare, which is "
        "for a model server on this machine",
    )
    deadline_s: float = Field(
        default=600.0,
        gt=0,
        description="hard limit of one request with its retries; of no effect where timeout_s is null",
    )
    max_attempts: int = Field(default=6, ge=1)
    reasks: int = Field(
        default=0, ge=0, le=5, description="times that an answer which breaks its JSON schema is shown its error"
    )
    inputs_per_request: int = Field(default=256, ge=1, le=2048, description="embeddings: inputs in one call")
    others: tuple[Address, ...] = Field(
        default=(), description="further addresses of the same model: they share the calls, and stand in for each other"
    )
    terms: str | None = Field(default=None, description="licence or terms of the model, kept with its rows")

    @property
    def addresses(self) -> tuple[Address, ...]:
        """All addresses of the model, this one first."""
        return (self, *self.others)


class CallSettings(_Group):
    """Bounds of all calls of a run."""

    max_cost_usd: Decimal | None = Field(default=None, ge=0, description="no call starts that could exceed it")
    wave_rows: int = Field(default=200_000, ge=1, description="requests between two commits to the ledger")
    outage_limit_s: float = Field(
        default=3600.0, gt=0, description="an outage of all addresses that is longer puts its requests off"
    )
    check_endpoints: bool = Field(
        default=True, description="look at each address's list of models before Spark starts: one request, no cost"
    )
    replay: str | None = Field(
        default=None, description="folder of a recorded ledger to answer from; nothing is sent, a miss is an error"
    )


class DocumentSettings(_Group):
    """What to ingest, and which field means what."""

    paths: list[str] = Field(default_factory=list, description="files and folders, as they are called: no patterns")
    format: Literal["auto", "jsonl", "parquet", "text"] = Field(
        default="auto", description="auto: by each file's ending"
    )
    unknown_files: Literal["skip", "refuse"] = Field(
        default="skip", description="files of unknown formats in a folder; skip: warn and count them"
    )
    mapping: Literal["plain", "redpajama_v2", "fineweb", "dolma", "c4"] = "plain"
    columns: dict[Literal["text", "url", "title", "lang", "licence", "source"], str] = Field(
        default_factory=dict, description="overrides of the mapping: our column -> their field (dots reach inside)"
    )
    source: str | None = Field(default=None, description="source of rows that name none")
    licence: str | None = Field(default=None, description="licence of rows that name none")
    lang: str | None = Field(default=None, description="language of rows that name none")


class FilterSettings(_Group):
    """Thresholds of the quality rules; ``disabled`` names rules not to apply.

    A persona keeps the flags of the run that found it: other thresholds hold for personas found from then on.
    """

    disabled: list[Rule] = Field(default_factory=list)
    min_words: int = Field(default=3, ge=1)
    max_words: int = Field(default=80, ge=1)
    copied_share: float = Field(default=0.5, gt=0, le=1, description="share of the persona's 5-grams in its source")
    repeated_share: float = Field(default=0.5, gt=0, le=1, description="share of words that repeat earlier words")

    @model_validator(mode="after")
    def _some_length_is_right(self) -> Self:
        if self.min_words > self.max_words:
            raise ValueError(f"min_words {self.min_words} is above max_words {self.max_words}, which flags everything")
        return self


class ImportFilterSettings(_Group):
    """What of ``filters`` is other for one import; null: as there.

    A released persona was chosen by somebody, and may be a paragraph: about half of PersonaHub's elite personas have
    more than 80 words. One that a model writes here is asked for in a sentence, and retells its source when it is that
    long. So imports have a limit of their own: 200 words, about as much as the default embedder reads.
    """

    disabled: list[Rule] | None = Field(
        default=None, description="as first_person, for a data set in which people speak of themselves"
    )
    min_words: int | None = Field(default=None, ge=1)
    max_words: int | None = Field(default=200, ge=1)
    repeated_share: float | None = Field(default=None, gt=0, le=1)

    def over(self, filters: FilterSettings) -> FilterSettings:
        """``filters`` with what is set here."""
        return FilterSettings.model_validate(filters.model_dump() | self.model_dump(exclude_none=True))


class ImportSettings(_Group):
    """Personas that exist already, in files of one data set."""

    paths: list[str] = Field(min_length=1, description="files and folders, as they are called: no patterns")
    format: Literal["auto", "jsonl", "parquet"] = Field(default="auto", description="auto: by each file's ending")
    unknown_files: Literal["skip", "refuse"] = Field(
        default="skip", description="files of unknown formats in a folder; skip: warn and count them"
    )
    source: str = Field(min_length=1, description="name of the data set, as it would be withdrawn by")
    licence: str | None = Field(default=None, description="licence of rows that name none")
    lang: str | None = Field(default=None, description="language of rows that name none")
    columns: dict[Literal["persona", "text", "task", "licence", "lang", "source"], str] = Field(
        default_factory=dict,
        description="our column -> their field, where it is not the usual one (dots reach inside, | gives a choice)",
    )
    labels: list[str] = Field(
        default_factory=lambda: [
            *(f"{kind} domain (top {share} percent)" for share in ("1", "0.1") for kind in ("general", "specific")),
            "labels",
        ],
        description="their fields to keep beside the persona; all others are left out",
    )
    filters: ImportFilterSettings = ImportFilterSettings()


class SamplingSettings(_Group):
    """How an answer is drawn, and how long it may get."""

    temperature: float = Field(default=0.7, ge=0, le=2)
    top_p: float = Field(default=0.95, gt=0, le=1)
    max_tokens: int = Field(default=600, ge=16)


class PersonaSettings(SamplingSettings):
    """Text-to-Persona (paper section 2.1)."""

    model: str = "default"
    verbs: list[Verb] = Field(default=["read"], min_length=1, description="each one is a question of its own")
    granularity: Granularity = "fine"
    language: str | None = Field(
        default="en",
        pattern=r"^(same|[a-z]{2,3})$",
        description="language of the answer: a code, 'same' for the text's, null for the model's choice",
    )
    max_document_tokens: int = Field(
        default=1500, ge=50, description="a longer text is cut at sentence ends into parts that are asked about apart"
    )
    personas_per_question: int = Field(default=1, ge=1, le=12, description="personas to ask for in one call")
    max_personas_per_document: int | None = Field(
        default=1,
        ge=1,
        description="of all verbs and parts; parts are taken evenly from the whole text; null: no limit",
    )
    max_tokens: int = Field(default=160, ge=16)

    @model_validator(mode="after")
    def _each_verb_is_asked(self) -> Self:
        if len(set(self.verbs)) < len(self.verbs):
            raise ValueError("verbs names one twice")
        least = len(self.verbs) * self.personas_per_question
        if self.max_personas_per_document is not None and self.max_personas_per_document < least:
            raise ValueError(
                f"max_personas_per_document is {self.max_personas_per_document}, but {len(self.verbs)} verbs with "
                f"{self.personas_per_question} personas each are {least} for the first part of a document alone"
            )
        return self

    def parts(self, verb: Verb) -> int | None:
        """How many parts of a document to ask about with ``verb``; None: all."""
        if self.max_personas_per_document is None:
            return None
        questions = self.max_personas_per_document // self.personas_per_question
        more = self.verbs.index(verb) < questions % len(self.verbs)
        return questions // len(self.verbs) + more


class ExpansionSettings(SamplingSettings):
    """Persona-to-Persona (paper section 2.2): who is in close relationship with a persona?

    Every published persona of hop h is asked about, and those found are of hop h + 1.
    """

    model: str = "default"
    hops: int = Field(default=2, ge=1, le=6, description="relations away from a text to go at most")
    relations: int = Field(default=3, ge=1, le=12, description="personas to ask for in one call")
    fraction: float = Field(
        default=1.0, gt=0, le=1, description="share of each hop's personas to ask about, by their id"
    )
    count: int | None = Field(default=None, ge=1, description="personas of each hop to ask about at most; null: all")
    prefer: Literal["any", "novelty"] = Field(
        default="any",
        description="with count, whom to ask about first: anyone, by id; or those whose siblings, found by the same "
        "call, were the most often new",
    )
    min_novelty: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="part of what a hop finds that must be new for the next to be asked; likewise in the branch of "
        "each persona of hop 0",
    )
    language: str | None = Field(
        default="en",
        pattern=r"^(same|[a-z]{2,3})$",
        description="language of the answer: a code, 'same' for the persona's, null for the model's choice",
    )


class ProfileSettings(SamplingSettings):
    """Profiles: a longer description of each persona of the hub, beside its sentence."""

    model: str = "default"
    fraction: float = Field(default=1.0, gt=0, le=1, description="share of the hub, chosen by persona id")
    language: str | None = Field(
        default="same",
        pattern=r"^(same|[a-z]{2,3})$",
        description="language of the answer: 'same' for the persona's, a code, null for the model's choice",
    )
    max_tokens: int = Field(default=900, ge=16)


class EmbeddingSettings(_Group):
    """Vectors of personas, which semantic dedup compares."""

    by: Literal["spark_nlp", "endpoint"] = Field(
        default="spark_nlp", description="spark_nlp: on Spark's own machines (needs spark.spark_nlp); endpoint: asked"
    )
    model: str = Field(
        default="all-minilm-l6-v2",
        min_length=1,
        description="of Spark NLP: a local model, or the name to store vectors under, with folder or pretrained; "
        "of an endpoint: its name under models",
    )
    folder: str | None = Field(
        default=None, description="a model of your own for Spark NLP: model.onnx and assets/vocab.txt (WordPiece)"
    )
    pretrained: str | None = Field(default=None, description="a pretrained E5 model for Spark NLP to download, by name")
    dimensions: int | None = Field(
        default=None, ge=1, description="length to ask an endpoint for; null: the model's own, nothing is asked"
    )
    max_tokens: int = Field(default=256, ge=16, le=512, description="Spark NLP: a longer text is cut")
    max_unread_share: float = Field(
        default=0.2, ge=0, le=1, description="Spark NLP: a text of which the model cannot read more has no vector"
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.folder is not None and self.pretrained is not None:
            raise ValueError("give one of folder and pretrained")
        local = [name for name in ("folder", "pretrained") if getattr(self, name) is not None]
        if self.by == "endpoint" and local:
            raise ValueError(f"{local[0]} is for embedders of Spark NLP; an endpoint's model is set under models")
        if self.by == "spark_nlp" and self.dimensions is not None:
            raise ValueError("dimensions are for endpoints; a model of Spark NLP has its own")
        return self


class SurfaceSettings(_Group):
    """Surface dedup (paper section 2.3: 1-grams, signature 128, similarity 0.9)."""

    engine: Literal["minhash", "exact"] = Field(
        default="minhash", description="minhash: by signatures, as the paper; exact: finds every pair"
    )
    threshold: Decimal = Field(
        default=Decimal("0.9"), ge=Decimal("0.3"), le=Decimal("1"), decimal_places=6, description="Jaccard similarity"
    )
    num_hashes: int = Field(default=128, ge=16, le=512, description="minhash: length of a signature")
    recall: float = Field(
        default=0.99999,
        gt=0.5,
        lt=1,
        description="minhash: wanted chance that a pair at the threshold shares a band; real hashes miss a few more",
    )
    seed: int = Field(default=42, description="minhash: which hash functions")
    one_task_mb: int = Field(
        default=200,
        ge=0,
        description="all rows are compared in one task where that takes less of its Python worker's memory; more of "
        "them by joins. spark.executor.memoryOverhead has to hold this and 130 MB more",
    )

    @model_validator(mode="after")
    def _recall_is_within_reach(self) -> Self:
        # Bands of a single hash find the most pairs; dedup.surface looks for the longest bands that are good enough.
        reach = 1 - (1 - float(self.threshold)) ** self.num_hashes
        if self.engine == "minhash" and reach < self.recall:
            raise ValueError(
                f"{self.num_hashes} hashes find a pair at {self.threshold} with a chance of {reach:.6f} at most, below "
                f"the recall {self.recall}; raise num_hashes, or lower recall"
            )
        return self


class SemanticSettings(_Group):
    """Semantic dedup (paper section 2.3: cosine of the embeddings, 0.9)."""

    threshold: Decimal = Field(
        default=Decimal("0.9"), ge=Decimal("0.5"), le=Decimal("1"), decimal_places=6, description="cosine"
    )
    margin: float = Field(
        default=0.1,
        ge=0,
        le=0.5,
        description="a row is also compared in buckets whose border is as near as this; at sqrt((1 - threshold) / 2) "
        "next to nothing is missed",
    )
    rows_per_bucket: int = Field(default=400, ge=10, description="wanted size of a bucket")
    bucket_cap: int = Field(default=4000, ge=100, description="rows of a bucket in one task; larger ones go in parts")
    sample_rows: int = Field(default=100_000, ge=1000, description="vectors on the driver, to find the buckets from")
    seed: int = 42


class DedupSettings(_Group):
    surface: SurfaceSettings = SurfaceSettings()
    semantic: SemanticSettings = SemanticSettings()


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


Step = Literal[
    "create_tables", "ingest_documents", "import_personas", "withdraw", "extract_personas", "dedup_surface",
    "expand_personas", "embed_personas", "dedup_semantic", "write_profiles", "synthesize",
]  # fmt: skip
ON_REQUEST = ("import_personas", "withdraw", "expand_personas", "embed_personas", "dedup_semantic", "write_profiles")
"""Steps that a pipeline has only where it names them."""


class PipelineSettings(_Group):
    steps: list[Step] = Field(
        default_factory=lambda: [step for step in typing.get_args(Step) if step not in ON_REQUEST]
    )
    quarantine_warn_share: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="a step that puts a larger share of the rows that it looks at into quarantine says so in a warning",
    )

    @model_validator(mode="after")
    def _each_step_is_one_row_of_runs(self) -> Self:
        twice = [step for step in self.steps if self.steps.count(step) > 1]
        if twice:
            raise ValueError(f"steps names {twice[0]} twice; run what is to come again by its own job")
        return self


class Price(_Group):
    """US dollars per million tokens."""

    input: Decimal = Field(ge=0)
    cached_input: Decimal | None = Field(default=None, ge=0, description="null: as input")
    output: Decimal = Field(ge=0)
    batch_share: Decimal = Field(
        default=Decimal("0.5"), ge=0, le=1, description="part of these prices that a call in a batch file costs"
    )

    @property
    def of_batches(self) -> Price:
        """The price of calls in batch files."""
        share = self.batch_share
        return Price(
            input=self.input * share,
            cached_input=None if self.cached_input is None else self.cached_input * share,
            output=self.output * share,
        )


class Settings(_Group):
    """All settings of a run."""

    store: StoreSettings = StoreSettings()
    spark: SparkSettings = SparkSettings()
    models: dict[str, Endpoint] = Field(default_factory=dict)
    calls: CallSettings = CallSettings()
    documents: DocumentSettings = DocumentSettings()
    imports: list[ImportSettings] = Field(default_factory=list)
    personas: PersonaSettings = PersonaSettings()
    expansion: ExpansionSettings = ExpansionSettings()
    filters: FilterSettings = FilterSettings()
    embedding: EmbeddingSettings = EmbeddingSettings()
    dedup: DedupSettings = DedupSettings()
    profiles: ProfileSettings = ProfileSettings()
    synthesis: list[SynthesisSettings] = Field(default_factory=list)
    pipeline: PipelineSettings = PipelineSettings()
    prices: str | None = Field(default=None, description="price file of your own; null: the package's prices.yaml")

    @model_validator(mode="after")
    def _filters_of_imports_fit(self) -> Self:
        for entry in self.imports:
            entry.filters.over(self.filters)
        return self

    def endpoint(self, name: str) -> Endpoint:
        """The endpoint called ``name`` under ``models``; SettingsError when there is none."""
        if name not in self.models:
            known = ", ".join(sorted(self.models)) or "none"
            raise SettingsError(f"models.{name} is not set (models here: {known}); add it to the settings file")
        return self.models[name]

    def models_of(self, step: str) -> list[str]:
        """Names under ``models`` of the endpoints that ``step`` asks."""
        asked = {
            "extract_personas": [self.personas.model],
            "expand_personas": [self.expansion.model],
            "write_profiles": [self.profiles.model],
            "synthesize": [entry.model for entry in self.synthesis],
        }
        if self.embedding.by == "endpoint":
            asked["embed_personas"] = [self.embedding.model]
        return asked.get(step, [])

    def fingerprint(self) -> str:
        """Sixteen hex digits that change when any setting does."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def is_one_process(master: str) -> bool:
    """Whether executors of this Spark master live in the process of its driver; not so those of ``local-cluster``."""
    return re.match(r"local(\[|$)", master) is not None


def load(path: str | Path, overrides: list[str] | None = None) -> Settings:
    """Settings of the YAML file at ``path``, each ``a.b=value`` of ``overrides`` put over it.

    Values of overrides are read as YAML (``--set spark.spark_nlp=true``, ``--set pipeline.steps=[synthesize]``).
    Raises SettingsError with one sentence for the first thing that is wrong.
    """
    file = Path(path)
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise SettingsError(f"settings file {file} does not exist; give one with --conf") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SettingsError(f"settings file {file} cannot be read: {_unreadable(error)}") from None
    if not isinstance(raw, dict):
        raise SettingsError(f"settings file {file} must hold keys and values, found {type(raw).__name__}")
    for override in overrides or []:
        _put(raw, override)
    settings = validate(raw)
    if settings.prices is None and (beside := file.with_name("prices.yaml")).is_file():
        _warn_of_unused(beside)
    return settings


@functools.cache
def _warn_of_unused(prices: Path) -> None:
    log.warning("%s is not used; set prices to it to have it used", prices)


def validate(raw: dict[str, Any]) -> Settings:
    """``raw`` as Settings, or a SettingsError that names the key."""
    try:
        return Settings.model_validate(raw)
    except ValidationError as error:
        raise SettingsError(_explain(error)) from None


def load_prices(path: str | Path | None) -> dict[str, Price]:
    """Prices by model name, of the package where ``path`` is None; an absent file is an error, an absent model is not
    (its cost is unknown)."""
    file = resources.files("personahub_spark") / "prices.yaml" if path is None else Path(path)
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        return {str(name): Price.model_validate(price) for name, price in dict(raw).items()}
    except FileNotFoundError:
        raise SettingsError(f"price file {file} does not exist; set prices to one, its models may be few") from None
    except ValidationError as error:
        raise SettingsError(f"price file {file}: {_explain(error)}") from None
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise SettingsError(f"price file {file} cannot be read: {_unreadable(error)}") from None


def _put(raw: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        found = "one that begins with models" if key.strip().startswith("models") else repr(override)
        raise SettingsError(f"--set wants a.b=value, found {found}")
    node: Any = raw
    for part in parts[:-1]:
        node = _descend(node, part, key)
    try:
        parsed = yaml.safe_load(value)
    except (ValueError, yaml.YAMLError) as error:
        raise SettingsError(f"--set {key}: {_unreadable(error)}") from None
    if isinstance(node, list):
        node[_index(node, parts[-1], key)] = parsed
    else:
        node[parts[-1]] = parsed


def _descend(node: Any, part: str, key: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, part, key)]
    child = node.setdefault(part, {})
    if child is None:
        child = node[part] = {}
    if not isinstance(child, dict | list):
        raise SettingsError(f"--set {key}: {part} holds a value, not keys")
    return child


def _index(node: list[Any], part: str, key: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise SettingsError(f"--set {key}: {part!r} is no position in a list of {len(node)}")
    return int(part)


def _explain(error: ValidationError) -> str:
    problems = error.errors(include_url=False)
    unknown = [problem for problem in problems if problem["type"] == "extra_forbidden"]
    problem = (unknown or problems)[0]  # a misspelt key often makes another one missing: name the cause
    where = ".".join(str(part) for part in problem["loc"]) or "settings"
    if problem["type"] == "extra_forbidden":
        parent, name = problem["loc"][:-1], str(problem["loc"][-1])
        known = _known_keys(Settings, parent)
        missing = [
            str(other["loc"][-1]) for other in problems if other["type"] == "missing" and other["loc"][:-1] == parent
        ]
        near = [near for keys in (missing, known) for near in difflib.get_close_matches(name, keys, n=1, cutoff=0.5)]
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(sorted(known)) or 'nothing'}"
        return f"unknown setting {where}; {hint}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "literal_error":
        choices = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
        near = difflib.get_close_matches(str(problem["input"]), choices, n=1)
        message += f"; did you mean {near[0]}?" if near else ""
    # Keys of models, stores and clusters are pasted into wrong places: what was found there is not repeated.
    secret = (
        problem["loc"][:1] == ("models",) or problem["loc"][:2] == ("spark", "conf") or "@" in str(problem["input"])
    )
    found = "" if secret or isinstance(problem["input"], dict) else f" (found {problem['input']!r})"
    return f"bad setting {where}: {message}{found}"


def _known_keys(group: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    for part in path:
        if isinstance(part, str) and part in group.model_fields:
            inner = _group_inside(group.model_fields[part].annotation)
            if inner is None:
                return []
            group = inner
    return list(group.model_fields)


def _group_inside(annotation: Any) -> type[BaseModel] | None:
    """The settings group that an annotation such as ``dict[str, Endpoint]`` holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (list, tuple, dict, typing.Union, types.UnionType):
        for argument in typing.get_args(annotation):
            found = _group_inside(argument)
            if found is not None:
                return found
    return None


def _unreadable(error: Exception) -> str:
    """What is wrong with a YAML text, and where; nothing of the text itself, which may hold a key."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        # What stands in quotes is of the text, but for single characters and the names of tokens.
        problem = re.sub(r"('.'|'<[^']*>')|'[^']*'", lambda quoted: quoted[1] or "…", error.problem or "not understood")
        return f"line {error.problem_mark.line + 1}: {problem.partition('; ')[0]}"
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 at byte {error.start}"
    if isinstance(error, yaml.YAMLError):
        return str(error).splitlines()[0]
    return "a value has the form or tag of a number or date and is none"
