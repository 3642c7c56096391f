"""What a step leaves behind, and the exit codes that need a session."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
import yaml
from pyspark.sql import SparkSession

from personahub_spark import session
from personahub_spark.errors import PersonaHubError
from personahub_spark.llm.costs import Spend
from personahub_spark.session import Context, StepResult
from personahub_spark.tables import RUNS


def test_a_step_that_changed_something_is_recorded_and_others_are_not(make_context: Callable[..., Context]) -> None:
    context = make_context()
    session.run_step(context, "idle", lambda _: StepResult(2, {"known": 2}, {"personas": 0}))
    with pytest.raises(PersonaHubError, match="lost or counted twice"):
        session.run_step(context, "lossy", lambda _: StepResult(3, {"new": 2}, {"personas": 2}))
    spend = Spend(requests=3, input_tokens=20, output_tokens=5, cost_microusd=Decimal("1.5"))
    session.run_step(context, "busy", lambda _: StepResult(3, {"new": 2, "known": 1}, {"personas": 2}, spend))
    rows = [row.asDict() for row in context.store.read(RUNS).collect()]
    assert [row["step"] for row in rows] == ["busy"]
    assert rows[0]["outcomes"] == {"new": 2, "known": 1}
    assert rows[0]["rows_added"] == {"personas": 2}
    assert (rows[0]["rows_in"], rows[0]["requests"], rows[0]["input_tokens"], rows[0]["output_tokens"]) == (3, 3, 20, 5)
    assert rows[0]["cost_microusd"] == Decimal("1.5")
    assert rows[0]["settings_hash"] == context.settings.fingerprint()
    assert rows[0]["code_version"] == session.code_version()


def test_calls_put_off_end_a_job_with_code_3_but_not_a_dry_run(
    spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    conf = tmp_path / "conf.yaml"
    kept = {"spark.sql.shuffle.partitions": spark.conf.get("spark.sql.shuffle.partitions")}
    conf.write_text(yaml.safe_dump({"store": {"root": str(tmp_path)}, "spark": {"master": "local[2]", "conf": kept}}))
    (tmp_path / "prices.yaml").write_text("")

    def run(context: Context) -> StepResult:
        assert context.spark is not None
        return StepResult(1204, {"kept": 4, "deferred": 1200})

    with pytest.raises(SystemExit) as ended:
        session.main(run, step="x", doc="A step.", argv=["--conf", str(conf)])
    assert ended.value.code == 3
    assert "1,200 calls were put off; run again to go on" in capsys.readouterr().err
    session.main(run, step="x", doc="A step.", argv=["--conf", str(conf), "--dry-run"])
    session.main(lambda _: StepResult(1, {"kept": 1}), step="x", doc="A step.", argv=["--conf", str(conf)])
