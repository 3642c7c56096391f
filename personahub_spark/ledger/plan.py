"""The requests of a step, stored in a folder, so that an interrupted run can be resumed."""

from __future__ import annotations

import json
import uuid
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from personahub_spark import files
from personahub_spark.ledger.estimate import estimate, unanswered
from personahub_spark.program.steps import Context
from personahub_spark.settings.models import Endpoint
from personahub_spark.store.record_tables import LLM_CALLS
from personahub_spark.store.store import stored_parquet


class Plan:
    """What ``step`` asks of ``endpoint``: ``requests/wave=N`` (as given), ``plan.json`` (written when they are whole),
    ``waves/`` (those done), ``shards/wN`` and ``commits`` (see ``wal``)."""

    def __init__(self, context: Context, endpoint: Endpoint, step: str, name: str) -> None:
        self.context = context
        self.endpoint = endpoint
        self.step = step
        self.name = name
        self.folder = f"{context.store.state_root}/plans/{name}"

    def exists(self) -> bool:
        """Whether it is stored completely."""
        return "plan.json" in files.names(self.folder)

    def write(self, requests: DataFrame, rows: int) -> None:
        """Evaluate ``requests`` and store them, in waves of about ``calls.wave_rows``."""
        files.delete(self.folder)
        # In batch mode the module ``llm.batches`` cuts the requests.
        waves = 1 if self.endpoint.mode == "batch" else max(1, -(-rows // self.context.calls.wave_rows))
        share = F.conv(F.substring("request_key", 1, 8), 16, 10).cast("double") / float(1 << 32)
        split = requests.withColumn("wave", F.floor(share * waves).cast("int"))
        if waves > 1:
            split = split.repartition(waves, "wave")
        split.write.partitionBy("wave").parquet(f"{self.folder}/requests")
        # Tables remember transaction numbers by name forever, and a plan's folder may be deleted and made again.
        note = {"waves": waves, "columns": requests.schema.jsonValue(), "transactions": uuid.uuid4().hex}
        self._note({**note, "missing": max(rows, 1)})
        estimated = estimate(
            self.context, unanswered(self.requests(), self.context.store.read(LLM_CALLS)), self.endpoint
        )
        if estimated.requests and not self.context.calls.replay:
            self.context.progress.say(f"{self.step}: {estimated.text}")
        self._note({**note, "missing": estimated.requests})

    def recount(self) -> None:
        """Count again the requests without an outcome in an interrupted plan, without reading finished waves."""
        noted = self._noted()
        written = set(files.names(f"{self.folder}/requests", folders=True))
        places = [f"{self.folder}/requests/wave={n}" for n in self.waves_left() if f"wave={n}" in written]
        missing = 0
        if places and noted["missing"]:
            left = stored_parquet(self.context.spark, StructType.fromJson(noted["columns"]), *places)
            missing = unanswered(left, self.context.store.read(LLM_CALLS)).count()
        self._note({**noted, "missing": missing})

    def requests(self) -> DataFrame:
        """The requests as they were given."""
        columns = StructType.fromJson(self._noted()["columns"])
        return stored_parquet(self.context.spark, columns, f"{self.folder}/requests")

    @property
    def rows_missing(self) -> int:
        """Requests without an outcome when the plan was stored or resumed."""
        return int(self._noted()["missing"])

    @property
    def transactions(self) -> str:
        """The name under which tables remember the numbers of this plan's transactions."""
        return str(self._noted()["transactions"])

    def waves(self) -> range:
        """All waves of a plan that is complete."""
        return range(self._noted()["waves"])

    def waves_left(self) -> list[int]:
        """Waves with requests that may have no outcome."""
        done = {int(name[1:7]) for name in files.names(f"{self.folder}/waves")}
        return [wave for wave in self.waves() if wave not in done]

    def finish(self, wave: int) -> None:
        """Note that every request of ``wave`` has its outcome in the ledger."""
        files.write_whole(f"{self.folder}/waves", f"w{wave:06d}", b"")

    def shards(self, wave: int) -> str:
        """The folder of the log's shards of ``wave``."""
        return f"{self.folder}/shards/w{wave:06d}"

    def waves_in_log(self) -> list[int]:
        """Waves with shards."""
        return [int(name[1:]) for name in files.names(f"{self.folder}/shards", folders=True)]

    def missing(self, wave: int) -> DataFrame:
        """The distinct requests of ``wave`` without an outcome: request_key, request."""
        if f"wave={wave}" not in files.names(f"{self.folder}/requests", folders=True):
            return self.requests().limit(0).select("request_key", "request")
        columns = StructType.fromJson(self._noted()["columns"])
        stored = stored_parquet(self.context.spark, columns, f"{self.folder}/requests/wave={wave}")
        return unanswered(stored, self.of_wave(self.context.store.read(LLM_CALLS), wave))

    def of_wave(self, calls: DataFrame, wave: int) -> DataFrame:
        """Those of ``calls`` in the key range of ``wave``; files hold ranges of keys, so few of them are read."""
        waves = self._noted()["waves"]
        first, beyond = (-(-(number << 32) // waves) for number in (wave, wave + 1))
        if wave > 0:
            calls = calls.where(F.col("request_key") >= f"{first:08x}")
        if wave < waves - 1:
            calls = calls.where(F.col("request_key") < f"{beyond:08x}")
        return calls

    def _noted(self) -> dict[str, Any]:
        noted: dict[str, Any] = json.loads(files.read_whole(self.folder, "plan.json"))
        return noted

    def _note(self, content: dict[str, Any]) -> None:
        files.write_whole(self.folder, "plan.json", json.dumps(content).encode())
