"""Build a SparkSession, the only place that does, and end it."""

from __future__ import annotations

import atexit
import contextlib
import functools
import locale
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pyspark import SparkConf, SparkContext
from pyspark.sql import SparkSession

from personahub_spark import files
from personahub_spark.errors import PersonaHubError
from personahub_spark.program import endings
from personahub_spark.program.class_archive import PROPERTIES, ClassArchive
from personahub_spark.program.code import shipped
from personahub_spark.program.faults import cause
from personahub_spark.program.jars import EXCLUDED, NO_TRACE, coordinates, jars, java
from personahub_spark.settings import whole
from personahub_spark.settings.whole import Settings, SparkSettings
from personahub_spark.store.store import catalog_lasts

log = logging.getLogger(__name__)
JAVA_OPTIONS = "spark.driver.extraJavaOptions"
JVM_ENDS_S = 20.0
TO_STDERR = "-XX:+DisplayVMOutputToStderr"
"""For the JVM's own output, such as that of a crash."""

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
# The defaults of Delta and Spark are for clusters; with them a laptop spends its time on empty partitions.
LAPTOP = {
    "spark.sql.shuffle.partitions": "4",
    "spark.databricks.delta.snapshotPartitions": "2",
    "spark.ui.enabled": "false",
    "spark.driver.memory": "3g",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
}


def build(spark_settings: SparkSettings, *, keeps_tables: bool = False) -> SparkSession:
    """The session for these settings; after ``spark-submit``, the session that it prepared.

    ``keeps_tables``: the session's catalog has to keep our tables permanently. A submitted session keeps the master and
    jars it was submitted with; ``spark.conf`` of the settings overrides its other options, except Java's, which are
    added to ours. Raises PersonaHubError if Java is missing or too old, if jars cannot be fetched, or if the session
    could ask a model twice.
    """
    submitted = "PYSPARK_GATEWAY_PORT" in os.environ
    options = dict(ALWAYS)
    class_path: list[Path] = []
    archive: ClassArchive | None = None
    if spark_settings.spark_nlp:
        options |= KRYO
    if submitted:
        SparkContext._ensure_initialized()
        if whole.is_one_process(SparkConf().get("spark.master") or ""):  # on a cluster, workers use their own python3
            os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    else:
        if not _is_utf8(locale.nl_langinfo(locale.CODESET)):
            os.environ["LC_ALL"] = "C.UTF-8"  # so that Java encodes file names as Python does
        java()
        options["spark.master"] = spark_settings.master
        options["spark.app.name"] = spark_settings.app_name
        options["spark.ui.showConsoleProgress"] = "false"  # steps show their own progress
        options[JAVA_OPTIONS] = f'"-Djava.io.tmpdir={endings.run_folder()}" {NO_TRACE} {TO_STDERR}'
        os.environ.setdefault("SPARK_LAUNCHER_OPTS", f"{NO_TRACE} -XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
        if spark_settings.master.startswith("local"):
            options |= LAPTOP
            log_settings = Path(__file__).with_name("log4j2.properties")
            options[JAVA_OPTIONS] += f" -Dlog4j2.configurationFile={log_settings.as_uri()}"
        if spark_settings.jars == "cache" and spark_settings.is_one_process:
            class_path = jars(spark_settings)
        elif spark_settings.jars == "cache":
            options["spark.jars"] = ",".join(map(str, jars(spark_settings)))
        elif spark_settings.jars == "packages":
            options["spark.jars.packages"] = ",".join(":".join(c) for c in coordinates(spark_settings))
            options["spark.jars.excludes"] = ",".join(f"*:{name}" for name in EXCLUDED)
            if spark_settings.ivy_settings is not None:
                options["spark.jars.ivySettings"] = spark_settings.ivy_settings
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        if spark_settings.is_one_process and SparkContext._gateway is None:
            archive = ClassArchive(class_path)
            options[JAVA_OPTIONS] += f" {archive.options()}"
    ours = options.get(JAVA_OPTIONS, "")
    options |= spark_settings.conf
    if not submitted and spark_settings.is_one_process:
        _own_local_folders(options)  # a cluster manages those of its executors
        if not keeps_tables and options.get("spark.sql.catalogImplementation") != "hive":
            # Spark makes this folder for the databases of its in-memory catalog.
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
        with _on_class_path(class_path), _without_stdout():
            spark = SparkSession.builder.config(conf=conf).getOrCreate()
    except Exception as error:  # PySpark raises bare RuntimeError, Py4J or captured errors here; all end the start
        raise PersonaHubError(f"Spark did not start: {cause(error)}") from error
    if archive is not None:
        jvm: Any = spark.sparkContext._jvm
        properties = {name: jvm.System.getProperty(name) for name in PROPERTIES}
        _to_learn.append(functools.partial(archive.learn, properties))
    endings.listen_again(cluster=not whole.is_one_process(str(spark.sparkContext.master)))
    _refuse_speculation(spark.sparkContext.getConf())  # spark-submit or spark-defaults.conf may have turned it on
    spark.sparkContext.setLogLevel("ERROR")
    # Ctrl-C reaches the workers too, and a Spark that is still alive would log their end.
    endings.when_told(lambda: spark.sparkContext.setLogLevel("OFF"))
    if not whole.is_one_process(str(spark.sparkContext.master)):
        spark.sparkContext.addPyFile(str(shipped()))
    _look_up_once(spark)
    return spark


def _look_up_once(spark: SparkSession) -> None:
    """Keep the Java classes behind ``pyspark.sql.functions``.

    PySpark asks for them by name at every call, and Java then searches every jar: over 1 ms, hundreds of times a step.
    """
    jvm = spark.sparkContext._jvm
    for name in ("functions", "PythonUtils"):
        setattr(jvm, name, getattr(jvm, name))


@contextlib.contextmanager
def _on_class_path(jars: Sequence[Path]) -> Iterator[None]:
    """Add ``jars`` to the class path, after Spark's own, of a JVM that is started inside the block.

    In one process this replaces ``spark.jars``, which Spark copies for executors at every start.
    """
    outside = os.environ.get("SPARK_DIST_CLASSPATH")
    if jars:
        os.environ["SPARK_DIST_CLASSPATH"] = os.pathsep.join([*([outside] if outside else []), *map(str, jars)])
    try:
        yield
    finally:
        if outside is not None:
            os.environ["SPARK_DIST_CLASSPATH"] = outside
        elif jars:
            os.environ.pop("SPARK_DIST_CLASSPATH")


@contextlib.contextmanager
def _without_stdout() -> Iterator[None]:
    """Let a JVM that is started inside have no standard output: that is the program's, and Spark NLP prints there."""
    ours, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(ours, 1)
        os.close(ours)
        os.close(nowhere)


def _refuse_speculation(conf: SparkConf) -> None:
    if str(conf.get("spark.speculation", "false")).lower() == "true":
        raise PersonaHubError("spark.speculation is on: a speculative twin would ask a model twice; turn it off")


def refuse_a_catalog_that_forgets(spark: SparkSession) -> None:
    if not catalog_lasts(spark):
        raise PersonaHubError(
            "store.root is null, and this session's catalog forgets its tables when the session ends; set store.root, "
            f"or name a lasting catalog in spark.conf (spark.sql.catalogImplementation: hive, or {CATALOG})"
        )


def refuse_names_that_java_has_not(settings: Settings, encoding: str) -> None:
    """PersonaHubError if Java, which encodes file names in ``encoding``, would write to other places than those named.

    Documents and imports are not affected: Python reads them.
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


_to_learn: list[Callable[[], None]] = []
"""What to do with the classes that the JVM of this process loaded, when it has ended."""


@functools.cache
def _end_java_at_exit() -> None:
    """Register once a process, before any session: exit functions run in reverse order, so the JVM ends last."""
    atexit.register(_end_java)


def _end_java() -> None:
    """End the JVM that this process started, before the folder with its temporary files is deleted."""
    process = getattr(SparkContext._gateway, "proc", None)
    if process is None or process.poll() is not None:
        return
    # Py4J may still send that an object is no longer used, and logs by the root logger that Java has gone.
    logging.getLogger().addFilter(lambda _: False)
    with endings.by_signals():
        process.stdin.close()
        try:
            process.wait(JVM_ENDS_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.returncode == 0:
            for learn in _to_learn:
                learn()


def _own_local_folders(options: dict[str, str]) -> None:
    """Put Spark's local files into folders that are deleted with this process, on the disks that the user names."""
    # If the user names none, they are among Java's temporary files.
    if disks := os.environ.get("SPARK_LOCAL_DIRS"):
        os.environ["SPARK_LOCAL_DIRS"] = _run_folders(disks)
    if disks := options.get("spark.local.dir"):
        options["spark.local.dir"] = _run_folders(disks)


def _run_folders(disks: str) -> str:
    """A folder of this run on each of ``disks``; missing folders are made.

    A disk that cannot be used is left out with a warning; PersonaHubError if none can be used.
    """
    folders, fault = [], None
    for disk in filter(None, map(str.strip, disks.split(","))):
        try:
            os.makedirs(disk, exist_ok=True)
            folders.append(str(endings.run_folder(disk)))
        except OSError as error:
            fault = f"{disk}: {error.strerror or error}"
            log.warning("Spark's local files are not kept on a disk that cannot be used (%s)", fault)
    if not folders:
        raise PersonaHubError(
            f"no disk for Spark's local files can be used ({fault or 'none is named'}); mend SPARK_LOCAL_DIRS or "
            "spark.local.dir"
        )
    return ",".join(folders)
