"""Settings of models: their addresses, calls and prices."""

from __future__ import annotations

import hashlib
from decimal import Decimal
from typing import Literal, Self

from pydantic import Field, model_validator

from personahub_spark.settings.group import Group


class Address(Group):
    """Where a model is served. Executors receive the name of the key's variable or file, never the key."""

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
    requests_per_minute: int | None = Field(
        default=None, ge=1, description="limit that all tasks together keep to; null: none"
    )
    tokens_per_minute: int | None = Field(
        default=None, ge=1, description="limit that all tasks together keep to, tokens in and out; null: none"
    )
    service_tier: str | None = Field(
        default=None, min_length=1, description="service tier to request with each call, such as flex"
    )

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if sum(name is not None for name in (self.api_key_env, self.api_key_file, self.api_key_credential)) > 1:
            raise ValueError("give one of api_key_env, api_key_file and api_key_credential")
        return self

    @property
    def key_variable(self) -> str | None:
        """The environment variable that holds the key on machines that make calls; for a credential, a made-up name."""
        if self.api_key_credential is None:
            return self.api_key_env
        return f"PERSONAHUB_KEY_{hashlib.sha256(self.api_key_credential.encode()).hexdigest()[:16]}"


class Endpoint(Address):
    """One model: its address, ``others`` with the same model, and how to call them."""

    model: str = Field(min_length=1, description="the model's name at the endpoint")
    structured_output: Literal["json_schema", "none"] = Field(
        default="none", description="json_schema: the endpoint enforces a schema; none: answers come as plain text"
    )
    transport: Literal["openai", "aiohttp"] = Field(
        default="openai",
        description="the HTTP client: the openai package, or a leaner one that needs less CPU for a call",
    )
    mode: Literal["calls", "batch"] = Field(
        default="calls", description="calls: one by one; batch: by the provider's batch files"
    )
    in_flight: int = Field(default=64, ge=1, le=4096, description="calls at once per Python worker")
    workers: int = Field(default=2, ge=1, description="Spark tasks that call at once")
    timeout_s: float | None = Field(
        default=120.0,
        gt=0,
        description="seconds that one attempt may take; null: estimated generously from the rate of the answers so "
        "far, for a model server on this machine",
    )
    deadline_s: float = Field(
        default=600.0,
        gt=0,
        description="seconds that one request may take with its retries; has no effect if timeout_s is null",
    )
    max_attempts: int = Field(default=6, ge=1, description="the most times that one run sends a request")
    reasks: int = Field(
        default=0,
        ge=0,
        le=5,
        description="if an answer breaks its schema: the most times to ask again, with the error in the prompt",
    )
    inputs_per_request: int = Field(default=256, ge=1, le=2048, description="embeddings: inputs in one call")
    others: tuple[Address, ...] = Field(
        default=(), description="further addresses of the same model: they share the calls, and replace one that fails"
    )
    terms: str | None = Field(default=None, description="licence or terms of the model, kept with its rows")

    @property
    def addresses(self) -> tuple[Address, ...]:
        """All addresses of the model, this one first."""
        return (self, *self.others)


class CallSettings(Group):
    """Limits of all calls of a run."""

    max_cost_usd: Decimal | None = Field(
        default=None,
        ge=0,
        description="US dollars that one run may cost: no call starts that could exceed them; null: no cap",
    )
    wave_rows: int = Field(default=200_000, ge=1, description="requests between two commits to the ledger")
    outage_limit_s: float = Field(
        default=3600.0, gt=0, description="seconds; if all addresses are out for longer, their requests are put off"
    )
    check_endpoints: bool = Field(
        default=True, description="read each address's list of models before Spark starts: one request, no cost"
    )
    replay: str | None = Field(
        default=None,
        description="folder of a recorded ledger to answer from; nothing is sent, a missing answer is an error",
    )


TEMPERATURE = "0: the likeliest answer; higher: more varied ones"
TOP_P = "share of the likeliest tokens to choose from"
MAX_TOKENS = "tokens of an answer; a longer one is cut off there"


class SamplingSettings(Group):
    """How an answer is sampled, and its maximum length."""

    temperature: float = Field(default=0.7, ge=0, le=2, description=TEMPERATURE)
    top_p: float = Field(default=0.95, gt=0, le=1, description=TOP_P)
    max_tokens: int = Field(default=600, ge=16, description=MAX_TOKENS)


class Price(Group):
    """US dollars per million tokens."""

    input: Decimal = Field(ge=0)
    cached_input: Decimal | None = Field(default=None, ge=0, description="null: the price of input")
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
