"""The only builder of a SparkSession, and the entry point that all jobs share.

This module alone knows which jars belong to which Spark, where they come from, and what a job's exit code means:
0 all done; 2 something to mend first, in one sentence; 3 done but for calls put off to a later run.
"""

from __future__ import annotations

import argparse
import atexit
import dataclasses
import errno
import functools
import hashlib
import locale
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
import zipfile
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import resources
from importlib.abc import Traversable
from pathlib import Path
from typing import Any

import pyspark
from py4j.protocol import Py4JError
from pyspark import SparkConf, SparkContext
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

import personahub_spark
from personahub_spark import endings, files, preflight, wal
from personahub_spark import settings as settings_module
from personahub_spark.errors import PersonaHubError
from personahub_spark.filters import flagged
from personahub_spark.llm.costs import Purse, Spend
from personahub_spark.progress import Progress, Status
from personahub_spark.settings import CallSettings, Endpoint, Price, Settings, SparkSettings
from personahub_spark.tables import LLM_CALLS, PERSONAS, RUNS, MissingTableError, Store, Table, catalog_lasts, spend_of

log = logging.getLogger(__name__)

SCALA = "2.12"
DELTA = ("io.delta", f"delta-spark_{SCALA}", "3.3.3")
SPARK_NLP = (
    ("com.johnsnowlabs.nlp", f"spark-nlp_{SCALA}", "5.5.3"),
    ("org.tensorflow", "tensorflow-core-api", "0.4.2"),  # plain classes that Spark NLP links to even for ONNX
)
# What Spark brings itself, and natives of engines that this project does not use (hundreds of megabytes).
EXCLUDED = (
    "scala-library", "scala-reflect", f"tensorflow-cpu_{SCALA}", f"jsl-llamacpp-cpu_{SCALA}",
    f"jsl-openvino-cpu_{SCALA}", "rocksdbjni", "google-cloud-storage", "poi-ooxml", "poi-scratchpad", "angus-mail",
    "jakarta.mail-api", "jsoup", "greex", "liblevenshtein",
)  # fmt: skip
OLDEST_JAVA = 17
JAVA_OPTIONS = "spark.driver.extraJavaOptions"
NO_TRACE = "-XX:-UsePerfData"  # else Java leaves a folder hsperfdata_… where temporary files go
JVM_ENDS_S = 20.0
TABLES_WAIT_S = 600.0

CATALOG = "spark.sql.catalog.spark_catalog"
ALWAYS = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    CATALOG: "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.execution.arrow.maxRecordsPerBatch": "2000",
}
KRYO = {
    "spark.serializer": "org.apache.spark.serializer.KryoSerializer",
    "spark.kryoserializer.buffer.max": "512m",
    "spark.jsl.settings.onnx.intraOpNumThreads": "1",
}
# Delta and Spark are set for clusters; with their defaults a laptop spends its time on empty partitions.
LAPTOP = {
    "spark.sql.shuffle.partitions": "4",
    "spark.databricks.delta.snapshotPartitions": "2",
    "spark.ui.enabled": "false",
    "spark.driver.memory": "3g",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
}


def build(spark_settings: SparkSettings, *, keeps_tables: bool = False) -> SparkSession:
    """The session of these settings; the one that ``spark-submit`` prepared, where it did.

    ``keeps_tables``: its catalog is to keep tables of ours, for good. A submitted session keeps the master and jars it
    was submitted with; ``spark.conf`` of the settings goes over its other options, but for Java's, which are added to
    ours. Raises PersonaHubError when Java is missing or too old, jars cannot be had, or the session could not keep the
    promise to pay once.
    """
    submitted = "PYSPARK_GATEWAY_PORT" in os.environ
    options = dict(ALWAYS)
    if spark_settings.spark_nlp:
        options |= KRYO
    if submitted:
        SparkContext._ensure_initialized()
        if settings_module.is_one_process(SparkConf().get("spark.master") or ""):  # else workers' python3 is theirs
            os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    else:
        if not _is_utf8(locale.nl_langinfo(locale.CODESET)):
            os.environ["LC_ALL"] = "C.UTF-8"  # in which Java will name files, as Python does
        java()
        options["spark.master"] = spark_settings.master
        options["spark.app.name"] = spark_settings.app_name
        options["spark.ui.showConsoleProgress"] = "false"  # steps show their own progress
        options[JAVA_OPTIONS] = f'"-Djava.io.tmpdir={endings.run_folder()}" {NO_TRACE}'
        os.environ.setdefault("SPARK_LAUNCHER_OPTS", NO_TRACE)
        if spark_settings.master.startswith("local"):
            options |= LAPTOP
            log_settings = Path(__file__).with_name("log4j2.properties")
            options[JAVA_OPTIONS] += f" -Dlog4j2.configurationFile={log_settings.as_uri()}"
        if spark_settings.jars == "cache":
            options["spark.jars"] = ",".join(map(str, jars(spark_settings)))
        elif spark_settings.jars == "packages":
            options["spark.jars.packages"] = ",".join(":".join(c) for c in _coordinates(spark_settings))
            options["spark.jars.excludes"] = ",".join(f"*:{name}" for name in EXCLUDED)
            if spark_settings.ivy_settings is not None:
                options["spark.jars.ivySettings"] = spark_settings.ivy_settings
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    ours = options.get(JAVA_OPTIONS, "")
    options |= spark_settings.conf
    if not submitted and spark_settings.is_one_process:
        # Executors elsewhere may have no package yet, and their folders are the cluster's.
        options.setdefault("spark.python.daemon.module", "personahub_spark.python_daemon")
        _own_local_folders(options)
        if not keeps_tables and options.get("spark.sql.catalogImplementation") != "hive":
            # Spark makes this folder, for the databases of a catalog that it forgets.
            options.setdefault("spark.sql.warehouse.dir", str(endings.run_folder() / "warehouse"))
    if ours and JAVA_OPTIONS in spark_settings.conf:
        options[JAVA_OPTIONS] = f"{ours} {spark_settings.conf[JAVA_OPTIONS]}"
    conf = SparkConf()
    for key, value in options.items():
        conf.set(key, value)
    _refuse_speculation(conf)
    if not submitted:
        _end_java_at_exit()
    try:
        spark = SparkSession.builder.config(conf=conf).getOrCreate()
    except Exception as error:  # PySpark raises bare RuntimeError, Py4J or captured errors here; all end the start
        raise PersonaHubError(f"Spark did not start: {cause(error)}") from error
    endings.listen_again(cluster=not settings_module.is_one_process(str(spark.sparkContext.master)))
    _refuse_speculation(spark.sparkContext.getConf())  # spark-submit or spark-defaults.conf may have turned it on
    spark.sparkContext.setLogLevel("ERROR")
    if not settings_module.is_one_process(str(spark.sparkContext.master)):
        spark.sparkContext.addPyFile(str(_shipped()))
    return spark


@functools.cache
def java() -> str:
    """The java program, at least version 17; PersonaHubError says what to install."""
    home = os.environ.get("JAVA_HOME")
    program = shutil.which(str(Path(home) / "bin" / "java") if home else "java")
    advice = (
        f"install a Java {OLDEST_JAVA} runtime (package openjdk-{OLDEST_JAVA}-jre-headless on Debian) and put it on "
        "PATH or in JAVA_HOME"
    )
    if program is None:
        raise PersonaHubError(f"Java was not found {f'in JAVA_HOME={home}' if home else 'on PATH'}; {advice}")
    said = subprocess.run([program, NO_TRACE, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(?:1\.)?(\d+)', said)
    if version is None or int(version[1]) < OLDEST_JAVA:
        raise PersonaHubError(
            f"{program} is Java {version[1] if version else '?'}, at least {OLDEST_JAVA} is needed; {advice}"
        )
    return program


def jars(spark_settings: SparkSettings) -> list[Path]:
    """Paths of the jars that belong to this Spark, resolved at the first call ever and cached.

    Ivy runs apart from the user's Maven and Ivy caches, so that a half-filled one there breaks nothing; a second start
    needs no network.
    """
    module = _ivy_module(spark_settings)
    folder = files.cache_root() / "jars" / hashlib.sha256(module.encode()).hexdigest()[:16]
    if not folder.is_dir():
        _resolve(module, folder, spark_settings.ivy_settings)
    return sorted(folder.glob("*.jar"))


def package_zip(target: Path) -> Path:
    """Write the package to ``target`` as a zip that executors can import."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in _package_files():
            archive.writestr(f"personahub_spark/{name}", content)
    return target


@functools.cache
def code_version() -> str:
    """Version of the package and a hash of its files: two runs with the same one ran the same code."""
    digest = hashlib.sha256()
    for name, content in _package_files():
        digest.update(name.encode() + b"\0" + content)
    return f"{personahub_spark.__version__}+{digest.hexdigest()[:12]}"


@dataclass(frozen=True)
class StepResult:
    """What a step did. ``outcomes`` says what became of each of ``rows_in`` rows, and must add up."""

    rows_in: int
    outcomes: dict[str, int]
    rows_added: dict[str, int] = field(default_factory=dict)
    spend: Spend = field(default_factory=Spend)
    files_skipped: int = 0
    """Files of unknown formats, which have no rows."""

    @property
    def changed(self) -> bool:
        """Whether the step added a row or got an answer."""
        return self.spend.requests > 0 or any(self.rows_added.values())

    def __add__(self, other: StepResult) -> StepResult:
        """What two parts of a step did together."""
        return StepResult(
            self.rows_in + other.rows_in,
            _added_up(self.outcomes, other.outcomes),
            _added_up(self.rows_added, other.rows_added),
            self.spend + other.spend,
            self.files_skipped + other.files_skipped,
        )


@dataclass(frozen=True)
class Context:
    """What a job works with."""

    spark: SparkSession
    settings: Settings
    store: Store
    run_id: str
    prices: dict[str, Price]
    progress: Progress
    started_at: datetime
    before_asking: Callable[[Endpoint], None] = field(default=lambda _: None)
    """Called with the endpoint before a step sends its first request, and not where there is none to send."""
    while_asking: Callable[[], AbstractContextManager[None]] = field(default=nullcontext)
    """Entered when a step begins to ask, and left when all that it asks has an outcome."""
    put_off: list[Spend] = field(default_factory=list)
    """What the step paid for calls that were then put off: they have no outcome, and no row in the ledger."""
    purse: Purse = field(default_factory=Purse)
    """Of all steps of the run."""

    @property
    def calls(self) -> CallSettings:
        """Bounds of the run's calls."""
        return self.settings.calls

    def add_new(self, table: Table, rows: DataFrame, *, expected: int | None = None) -> int:
        """Add the rows that ``table`` does not have yet, stamped with this run; see ``Store.add_new``."""
        return self.store.add_new(table, rows, run_id=self.run_id, created_at=self.started_at, expected=expected)


def open_context(
    settings: Settings, steps: Collection[str] = (), *, dry_run: bool = False, progress: Progress | None = None
) -> Context:
    """A context with a session and a store, to run ``steps`` in.

    Raises PersonaHubError before Spark starts where the steps lack something (see ``preflight``), as ``build`` does,
    and where managed tables are wanted of a catalog that does not last.
    """
    prices = settings_module.load_prices(settings.prices)
    before_asking = preflight.check(settings, steps, dry_run=dry_run)
    spark = build(settings.spark, keeps_tables=settings.store.root is None)
    if "DATABRICKS_RUNTIME_VERSION" not in os.environ:  # there the session is not ours to end
        atexit.register(wal.tidy)
        endings.when_stopped(wal.tidy)
        atexit.register(_end, spark)  # or a cluster takes the program for one that died
    if settings.store.root is None:
        _refuse_a_catalog_that_forgets(spark)
    jvm: Any = spark.sparkContext._jvm
    refuse_names_that_java_has_not(settings, jvm.System.getProperty("sun.jnu.encoding"))
    started_at = now()
    return Context(
        spark=spark,
        settings=settings,
        store=Store(spark, settings.store, dry_run=dry_run),
        run_id=f"{started_at:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}",
        prices=prices,
        progress=progress or Progress(),
        started_at=started_at,
        before_asking=before_asking,
    )


def make_tables(context: Context) -> list[str]:
    """Make the tables and views that are missing; names of the tables made. Who comes at the same time waits."""
    if context.store.is_complete():  # nothing to wait for; a catalog that lasts may still learn the names
        return context.store.create()
    with wal.lease(f"{context.store.state_root}/locks", "create_tables", wait_s=TABLES_WAIT_S):
        return context.store.create()


def run_step(context: Context, step: str, run: Callable[[Context], StepResult]) -> StepResult:
    """Run one step, show how it goes, check that its counts add up, and record it if it changed anything.

    Where tables are missing they are made first.

    When a step fails with a PersonaHubError, the answers that it paid for are kept, and so is a record of what they
    cost, with no rows.
    """
    started = time.monotonic()
    context = dataclasses.replace(context, started_at=now(), put_off=[])
    if context.calls.replay is not None:
        context = _as_recorded(context, step, context.calls.replay)
    try:
        with context.progress.watch(step, lambda: _spark_tasks(context.spark)):
            if not context.store.dry_run and step != "create_tables" and not context.store.is_complete():
                make_tables(context)
            result = run(context)
        accounted = sum(result.outcomes.values())
        if accounted != result.rows_in:
            raise PersonaHubError(
                f"{step}: {result.rows_in} rows came in but {accounted} are accounted for "
                f"({_spoken(result.outcomes)}); rows were lost or counted twice, do not use this run"
            )
    except MissingTableError:
        raise
    except PersonaHubError:
        spent = Spend() if context.store.dry_run else spend_of(_asked(context, step))
        if spent.requests or _lost(context) != Spend():
            _record(context, step, StepResult(0, {}, spend=spent), time.monotonic() - started)
        raise
    finally:
        context.store.drop_staged()
    duration_s = time.monotonic() - started
    if (result.changed or _lost(context) != Spend()) and not context.store.dry_run:
        _record(context, step, result, duration_s)
    spend = result.spend
    cost = "" if spend.cost_microusd is None else f", ${spend.cost_microusd / 1_000_000:,.4f}"
    asked = f"; {spend.requests:,} requests{cost}" if spend.requests else ""
    skipped = f"; {result.files_skipped:,} files of unknown formats skipped" if result.files_skipped else ""
    share = quarantined_share(result)
    is_much = share > context.settings.pipeline.quarantine_warn_share
    those = "the new ones" if result.outcomes.get("done_before") else "them"
    told = f"; {100 * share:.3g} % of {those} went to quarantine" if is_much else ""
    context.progress.say(
        f"{step}: {result.rows_in:,} in = {_spoken(result.outcomes)}{told}{skipped}{asked}; {duration_s:.1f} s",
        warns=is_much,
    )
    if result.rows_added.get(PERSONAS.name) and not context.store.dry_run:
        added = context.store.read(PERSONAS).where(F.col("run_id") == context.run_id)
        found = flagged(added.where(F.col("created_at") == F.lit(context.started_at)))
        if found.flagged:
            context.progress.say(f"{step}: {found.told()}")
    return result


# What steps call the rows that they put into quarantine.
_QUARANTINED = ("quarantined", "unreadable", "no_tokens")


def quarantined_share(result: StepResult) -> float:
    """Part of the rows that a step looked at which went to quarantine; those done before were not looked at."""
    looked_at = result.rows_in - result.outcomes.get("done_before", 0)
    return sum(result.outcomes.get(name, 0) for name in _QUARANTINED) / looked_at if looked_at > 0 else 0.0


def main(run: Callable[[Context], StepResult], *, step: str, doc: str, argv: list[str] | None = None) -> None:
    """Run one step as a program and exit with its code."""
    main_steps(lambda _: {step: run}, doc=doc, argv=argv)


def main_steps(
    steps: Callable[[Settings], dict[str, Callable[[Context], StepResult]]], *, doc: str, argv: list[str] | None = None
) -> None:
    """Run the steps that the settings ask for, in one session, as a program, and exit with its code."""
    arguments = parser(doc).parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    for noisy in ("py4j", "httpx2", "httpcore2", "httpx", "httpcore", "openai"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    with exit_code():
        settings = settings_module.load(arguments.conf, arguments.set)
        chosen = steps(settings)
        context = open_context(settings, chosen, dry_run=arguments.dry_run)
        if arguments.dry_run:
            context.progress.say("dry run: nothing is asked, nothing is written")
        results = run_steps(context, chosen)
        if not arguments.dry_run:
            exit_if_put_off(results)


def run_steps(context: Context, steps: dict[str, Callable[[Context], StepResult]]) -> dict[str, StepResult]:
    """Run ``steps`` in their order; what each did."""
    results: dict[str, StepResult] = {}
    for name, run in steps.items():
        if context.store.dry_run and any(result.changed for result in results.values()):
            context.progress.say(f"{name}: looked at without the rows that the steps before it would add")
        results[name] = run_step(context, name, run)
    return results


def exit_if_put_off(results: dict[str, StepResult]) -> None:
    """End with code 3 when calls were put off to a later run."""
    calls = sum(result.outcomes.get("deferred", 0) for result in results.values())
    if calls:
        print(f"{calls:,} calls were put off; run again to go on", file=sys.stderr)
        sys.exit(3)


def parser(doc: str) -> argparse.ArgumentParser:
    """The options that all jobs have."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--conf", default="conf/local.yaml", help="settings file (default: %(default)s)")
    made.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="one setting over the file's")
    made.add_argument("--dry-run", action="store_true", help="say what would be done; ask no model, write nothing")
    return made


@contextmanager
def exit_code(stopped: str = endings.SENTENCE) -> Iterator[None]:
    """Turn what a user can mend into one sentence and exit code 2; see ``endings`` for signals.

    ``stopped``: what a program says that a signal ends.
    """
    try:
        with endings.by_signals(stopped):
            yield
    except PersonaHubError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (OSError, Py4JError, PySparkException) as error:
        fault = _disk_fault(error)
        if fault is None:
            raise
        print(
            f"error: a disk is full or cannot be written ({fault}); free some space, or name another place: store.root "
            "and store.state in the settings, PERSONAHUB_CACHE for what is fetched",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        sys.exit(130)


_DISK_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EFBIG)
_DISK_FAULT = re.compile(
    r"[^\n:]*(No space left on device|Disk quota exceeded|Read-only file system|Permission denied|Not a directory"
    r"|AccessDenied|Mkdirs failed|Parent path is not a directory|DELTA_CANNOT_CREATE_LOG_PATH)[^\n]*"
)


def cause(error: BaseException) -> str:
    """What lies at the bottom of an error that came through Spark, in one line."""
    thrown = getattr(error, "java_exception", None)  # of Py4J's errors; PySpark's own say their cause themselves
    while thrown is not None and thrown.getCause() is not None:
        thrown = thrown.getCause()
    said = str(error) if thrown is None else str(thrown.toString())
    lines = [line.strip(" ;") for line in said.splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def now() -> datetime:
    """Now. With its zone: PySpark takes a time without one for this machine's local time."""
    return datetime.now(UTC)


def _added_up(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in one | other}


def _refuse_speculation(conf: SparkConf) -> None:
    if str(conf.get("spark.speculation", "false")).lower() == "true":
        raise PersonaHubError("spark.speculation is on: a speculative twin would ask a model twice; turn it off")


def _refuse_a_catalog_that_forgets(spark: SparkSession) -> None:
    if not catalog_lasts(spark):
        raise PersonaHubError(
            "store.root is null, and this session's catalog forgets its tables when the session ends; set store.root, "
            f"or name a lasting catalog in spark.conf (spark.sql.catalogImplementation: hive, or {CATALOG})"
        )


def refuse_names_that_java_has_not(settings: Settings, encoding: str) -> None:
    """PersonaHubError where Java, which names files in ``encoding``, would write to other places than those named.

    Documents and imports are no matter: Python reads them.
    """
    places = {
        "store.root": settings.store.root,
        "store.state": settings.store.state_root,
        "calls.replay": settings.calls.replay,
        "embedding.folder": settings.embedding.folder,
    }
    for name, place in places.items():
        path = files.local_path(files.absolute(place)) if place is not None else None
        if path is not None and not path.isascii() and not _is_utf8(encoding):
            raise PersonaHubError(
                f"{name} is {path}, and Java was started in a locale whose encoding ({encoding}) has no such names; "
                "start with LC_ALL=C.UTF-8 in the environment, or name a place in plain ASCII"
            )


def _is_utf8(encoding: str) -> bool:
    return encoding.replace("-", "").lower() == "utf8"


def _disk_fault(error: BaseException) -> str | None:
    """What an error says of a disk that is full or cannot be written; None where that is not its cause."""
    if isinstance(error, OSError):
        if error.errno not in _DISK_ERRORS:
            return None
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
    found = _DISK_FAULT.search(str(error))
    return found[0].strip() if found is not None else None


def _asked(context: Context, step: str) -> DataFrame:
    """What ``step`` added to the ledger in this run."""
    return context.store.read(LLM_CALLS).where((F.col("run_id") == context.run_id) & (F.col("step") == step))


def _as_recorded(context: Context, step: str, replay: str) -> Context:
    """``context`` with the run and time that ``step`` has in the recorded tables: of several runs, the first that left
    more than a record."""
    runs = context.spark.read.format("delta").load(f"{files.absolute(replay)}/{RUNS.name}")
    left_something = F.expr("requests > 0 or exists(map_values(rows_added), added -> added > 0)")
    first = runs.where(F.col("step") == step).where(left_something).orderBy("created_at").limit(1).collect()
    if not first:
        return context
    return dataclasses.replace(context, run_id=first[0]["run_id"], started_at=first[0]["created_at"].astimezone(UTC))


def _end(spark: SparkSession) -> None:
    with endings.by_signals(), suppress(Exception):  # of a JVM that is gone
        spark.stop()


@functools.cache
def _end_java_at_exit() -> None:
    """Once a process: what was registered first is done last, after every session has ended."""
    atexit.register(_end_java)


def _end_java() -> None:
    """End the JVM that this process started, before the folder with its temporary files goes."""
    process = getattr(SparkContext._gateway, "proc", None)
    if process is None or process.poll() is not None:
        return
    with endings.by_signals():
        process.stdin.close()
        try:
            process.wait(JVM_ENDS_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _own_local_folders(options: dict[str, str]) -> None:
    """Let Spark's local files lie in folders that go with this process, also where the user says on which disks."""
    # Where nobody says, they are Java's temporary files.
    if disks := os.environ.get("SPARK_LOCAL_DIRS"):
        os.environ["SPARK_LOCAL_DIRS"] = _run_folders(disks)
    if disks := options.get("spark.local.dir"):
        options["spark.local.dir"] = _run_folders(disks)


def _run_folders(disks: str) -> str:
    """A run's folder on each of ``disks``, which are made where they are missing.

    A disk that cannot be used is left out with a warning; PersonaHubError where that are all.
    """
    found, fault = [], None
    for disk in filter(None, map(str.strip, disks.split(","))):
        try:
            os.makedirs(disk, exist_ok=True)
            found.append(str(endings.run_folder(disk)))
        except OSError as error:
            fault = f"{disk}: {error.strerror or error}"
            log.warning("Spark's local files are not kept on a disk that cannot be used (%s)", fault)
    if not found:
        raise PersonaHubError(
            f"no disk for Spark's local files can be used ({fault or 'none is named'}); mend SPARK_LOCAL_DIRS or "
            "spark.local.dir"
        )
    return ",".join(found)


def _lost(context: Context) -> Spend:
    """What was paid for calls that left no row."""
    paid = [dataclasses.replace(spent, requests=0) for spent in context.put_off]
    return sum(paid, Spend())


def _record(context: Context, step: str, result: StepResult, duration_s: float) -> None:
    lost = _lost(context)
    row = (
        step, duration_s, context.settings.fingerprint(), code_version(), result.rows_in, result.outcomes,
        result.rows_added, *dataclasses.astuple(result.spend),
        *(lost.input_tokens, lost.output_tokens, lost.cost_microusd),
    )  # fmt: skip
    columns = pyspark.sql.types.StructType(list(RUNS.columns))
    context.add_new(RUNS, context.spark.createDataFrame([row], columns))


def _spark_tasks(spark: SparkSession) -> Status | None:
    tracker = spark.sparkContext.statusTracker()
    stages = [tracker.getStageInfo(stage) for stage in tracker.getActiveStageIds()]
    running = [stage for stage in stages if stage is not None]
    if not running:
        return None
    return Status(sum(s.numCompletedTasks for s in running), sum(s.numTasks for s in running), unit="tasks")


def _spoken(outcomes: dict[str, int]) -> str:
    return " + ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in outcomes.items()) or "nothing"


def _coordinates(spark_settings: SparkSettings) -> list[tuple[str, str, str]]:
    return [DELTA, *(SPARK_NLP if spark_settings.spark_nlp else ())]


def _ivy_module(spark_settings: SparkSettings) -> str:
    dependencies = "".join(
        f'<dependency org="{organisation}" name="{name}" rev="{version}" conf="default->master,runtime"/>'
        for organisation, name, version in _coordinates(spark_settings)
    )
    excluded = "".join(f'<exclude module="{name}"/>' for name in EXCLUDED)
    return (
        '<ivy-module version="2.0"><info organisation="personahub" module="jars"/>'
        f'<configurations><conf name="default"/></configurations><dependencies>{dependencies}{excluded}</dependencies>'
        "</ivy-module>"
    )


def _resolve(module: str, folder: Path, ivy_settings: str | None) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(folder.parent).free < 400_000_000:
        raise PersonaHubError(
            f"less than 400 MB are free at {folder.parent}; free some, or set PERSONAHUB_CACHE elsewhere"
        )
    print(f"fetching Spark's jars once into {folder}", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        root = Path(scratch)
        (root / "ivy.xml").write_text(module, encoding="utf-8")
        (root / "settings.xml").write_text(
            '<ivysettings><settings defaultResolver="central"/>'
            '<resolvers><ibiblio name="central" m2compatible="true" useMavenMetadata="false"/></resolvers>'
            "</ivysettings>",
            encoding="utf-8",
        )
        ivy = next(Path(pyspark.__file__).parent.glob("jars/ivy-*.jar"))
        command = [
            java(), NO_TRACE, "-jar", str(ivy), "-settings", ivy_settings or str(root / "settings.xml"),
            "-cache", str(root / "cache"),
            "-ivy", str(root / "ivy.xml"), "-retrieve",
            f"{root}/jars/[organisation]_[artifact]-[revision](-[classifier]).[ext]", "-types", "jar", "bundle",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wanted = [name for _, name, _ in (c for c in re.findall(r'org="(.*?)" name="(.*?)" rev="(.*?)"', module))]
        fetched = [file.name for file in (root / "jars").glob("*.jar")]
        missing = [name for name in wanted if not any(f"_{name}-" in file for file in fetched)]
        if done.returncode != 0 or missing:
            problems = [
                row.strip() for row in (done.stdout + done.stderr).splitlines() if "not found" in row or "ERROR" in row
            ]
            raise PersonaHubError(
                f"jars could not be fetched ({(problems or ['no connection to a Maven repository'])[0]}); check the "
                "network, or name your mirror by an Ivy settings file in spark.ivy_settings"
            )
        try:
            (root / "jars").rename(folder)
        except OSError:
            if not folder.is_dir():  # another start was faster, or the disk refused
                raise


@functools.cache
def _shipped() -> Path:
    """The package's zip, in a folder of this process: nobody else can put another one there."""
    return package_zip(endings.run_folder() / f"personahub_spark-{code_version()}.zip")


def _package_files() -> Iterator[tuple[str, bytes]]:
    """Name inside the package and content of each of its files, in order, also where the package lies in a zip."""

    def walk(folder: Traversable, inside: str) -> Iterator[tuple[str, bytes]]:
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
            if entry.is_dir():
                yield from walk(entry, f"{inside}{entry.name}/")
            elif entry.name.endswith((".py", ".sql", ".txt", ".yaml")):
                yield inside + entry.name, entry.read_bytes()

    return walk(resources.files("personahub_spark"), "")


if __name__ == "__main__":  # the jars, for spark-submit --jars
    with exit_code():
        print(",".join(map(str, jars(SparkSettings(spark_nlp="--spark-nlp" in sys.argv[1:])))))
