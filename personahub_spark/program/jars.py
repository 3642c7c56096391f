"""The jars that Spark needs, and where to fetch them from."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pyspark

from personahub_spark import files
from personahub_spark.errors import PersonaHubError
from personahub_spark.program.faults import exit_code
from personahub_spark.settings.whole import SparkSettings

SCALA = "2.12"
DELTA = ("io.delta", f"delta-spark_{SCALA}", "3.3.3")
SPARK_NLP = (
    ("com.johnsnowlabs.nlp", f"spark-nlp_{SCALA}", "5.5.3"),
    ("org.tensorflow", "tensorflow-core-api", "0.4.2"),  # classes that Spark NLP links to even for ONNX
)
# Modules that Spark has itself, and native libraries of engines that this project does not use (hundreds of megabytes).
EXCLUDED = (
    "scala-library", "scala-reflect", f"tensorflow-cpu_{SCALA}", f"jsl-llamacpp-cpu_{SCALA}",
    f"jsl-openvino-cpu_{SCALA}", "rocksdbjni", "google-cloud-storage", "poi-ooxml", "poi-scratchpad", "angus-mail",
    "jakarta.mail-api", "jsoup", "greex", "liblevenshtein",
)  # fmt: skip
OLDEST_JAVA = 17
NO_TRACE = "-XX:-UsePerfData"  # or Java leaves a folder hsperfdata_… among the temporary files


class Java(NamedTuple):
    program: str
    banner: str
    """What it says about itself: its version and build."""


@functools.cache
def java() -> Java:
    """The java program, at least version 17; PersonaHubError says what to install."""
    home = os.environ.get("JAVA_HOME")
    program = shutil.which(str(Path(home) / "bin" / "java") if home else "java")
    advice = (
        f"install a Java {OLDEST_JAVA} runtime (package openjdk-{OLDEST_JAVA}-jre-headless on Debian) and put it on "
        "PATH or in JAVA_HOME"
    )
    if program is None:
        raise PersonaHubError(f"Java was not found {f'in JAVA_HOME={home}' if home else 'on PATH'}; {advice}")
    banner = subprocess.run([program, NO_TRACE, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(?:1\.)?(\d+)', banner)
    if version is None or int(version[1]) < OLDEST_JAVA:
        raise PersonaHubError(
            f"{program} is Java {version[1] if version else '?'}, at least {OLDEST_JAVA} is needed; {advice}"
        )
    return Java(program, banner)


def jars(spark_settings: SparkSettings) -> list[Path]:
    """Paths of the jars for this Spark, fetched at the first call on this machine and cached.

    Ivy does not use the user's Maven and Ivy caches, so that a half-filled cache breaks nothing. A second start needs
    no network.
    """
    module = _ivy_module(spark_settings)
    folder = files.cache_root() / "jars" / hashlib.sha256(module.encode()).hexdigest()[:16]
    if not folder.is_dir():
        _resolve(module, folder, spark_settings.ivy_settings)
    return sorted(folder.glob("*.jar"))


def coordinates(spark_settings: SparkSettings) -> list[tuple[str, str, str]]:
    return [DELTA, *(SPARK_NLP if spark_settings.spark_nlp else ())]


def _ivy_module(spark_settings: SparkSettings) -> str:
    dependencies = "".join(
        f'<dependency org="{organisation}" name="{name}" rev="{version}" conf="default->master,runtime"/>'
        for organisation, name, version in coordinates(spark_settings)
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
            java().program, NO_TRACE, "-jar", str(ivy), "-settings", ivy_settings or str(root / "settings.xml"),
            "-cache", str(root / "cache"),
            "-ivy", str(root / "ivy.xml"), "-retrieve",
            f"{root}/jars/[organisation]_[artifact]-[revision](-[classifier]).[ext]", "-types", "jar", "bundle",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        artifacts = [name for _, name, _ in (c for c in re.findall(r'org="(.*?)" name="(.*?)" rev="(.*?)"', module))]
        fetched = [file.name for file in (root / "jars").glob("*.jar")]
        missing = [name for name in artifacts if not any(f"_{name}-" in file for file in fetched)]
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
            if not folder.is_dir():  # another process was faster, or the disk failed
                raise


if __name__ == "__main__":  # the jars, for spark-submit --jars
    with exit_code():
        print(",".join(map(str, jars(SparkSettings(spark_nlp="--spark-nlp" in sys.argv[1:])))))
