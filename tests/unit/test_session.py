"""Work before Spark starts (Java, jars, settings, options), and exit codes of jobs. No Spark runs here."""

from __future__ import annotations

import ast
import io
import logging
import os
import runpy
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyspark import SparkContext

from personahub_spark.errors import PersonaHubError
from personahub_spark.program import code, faults, jars, session, steps
from personahub_spark.program.progress import Progress
from personahub_spark.program.steps import Context, Step, StepResult, run_step
from personahub_spark.settings import loading, whole
from personahub_spark.settings.whole import SparkSettings, StoreSettings
from personahub_spark.store.store import TABLES, Store
from tests.waiting import PATIENCE_S

ROOT = Path(__file__).parents[2]
JAR = "io.delta_delta-spark_2.12-3.3.3.jar"
JOBS = sorted(path.name for path in (ROOT / "jobs").glob("*.py"))
NEEDED = {
    "jobs/query_tables.py": ["select 1"],
    "jobs/explain_removal.py": ["0f"],
    "jobs/trace_persona.py": ["0f"],
    "jobs/release_hub.py": ["v1"],
}

# Replaces java: prints a version; as Ivy it logs the call and writes the named jars, or fails if "offline" exists.
FAKE_JAVA = """#!/bin/bash
if [[ " $* " = *" -version "* ]]; then echo '{version}' >&2; exit 0; fi
echo call >> {folder}/calls
[ -e {folder}/offline ] && {{ echo 'SERVER ERROR: no route to host' ; exit 1; }}
while [ $# -gt 0 ]; do [ "$1" = -retrieve ] && pattern=$2; shift; done
mkdir -p "${{pattern%/*}}"
for jar in {jars}; do echo content > "${{pattern%/*}}/$jar"; done
"""


@pytest.fixture
def fake_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Put a java program first on PATH, which prints ``version`` as its version."""
    folder = tmp_path / "java"
    folder.mkdir()
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("PERSONAHUB_CACHE", str(tmp_path / "cache"))

    def make(version: str = 'openjdk version "17.0.9" 2023-10-17', jar_names: str = JAR) -> Path:
        program = folder / "java"
        program.write_text(FAKE_JAVA.format(version=version, folder=folder, jars=jar_names))
        program.chmod(0o755)
        jars.java.cache_clear()
        return folder

    yield make
    jars.java.cache_clear()


# --- Java


@pytest.mark.parametrize(
    "version", ['openjdk version "17" 2021-09-14', 'java version "17.0.9"', 'Picked up X\nopenjdk version "21.0.1"']
)
def test_java_17_or_newer_is_taken(fake_java: Callable[..., Path], version: str) -> None:
    folder = fake_java(version)
    assert jars.java().program == str(folder / "java")


@pytest.mark.parametrize(
    ("line", "version"),
    [('java version "1.8.0_392"', "8"), ('openjdk version "11.0.21" 2023-10-17', "11"), ("what?", r"\?")],
)
def test_an_old_java_is_named_with_what_to_install(fake_java: Callable[..., Path], line: str, version: str) -> None:
    folder = fake_java(line)
    with pytest.raises(PersonaHubError, match=f"^{folder}/java is Java {version}, at least 17 is needed; install"):
        jars.java()


def test_no_java_says_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_java: Callable[..., Path]
) -> None:
    program = fake_java() / "java"
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(PersonaHubError, match=f"^Java was not found in JAVA_HOME={tmp_path}; install a Java 17"):
        jars.java()
    monkeypatch.delenv("JAVA_HOME")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PersonaHubError, match=r"^Java was not found on PATH; install a Java 17"):
        jars.java()
    monkeypatch.setenv("PATH", str(program.parent))
    program.chmod(0o644)
    if shutil.which("java") is None:
        with pytest.raises(PersonaHubError, match=r"^Java was not found on PATH"):
            jars.java()


# --- names


def test_places_that_java_cannot_name_are_refused_and_only_those(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(encoding: str, **groups: dict[str, str | None]) -> str | None:
        try:
            session.refuse_names_that_java_has_not(loading.validate(groups), encoding)
        except PersonaHubError as error:
            return str(error).partition(",")[0]
        return None

    monkeypatch.chdir(tmp_path)
    for encoding in ("ANSI_X3.4-1968", "ISO-8859-1"):  # Latin-1 has ü, but with other bytes in file names
        assert refused(encoding, store={"root": "/x/räume"}) == "store.root is /x/räume"
        assert refused(encoding, store={"root": "file:/x/räume"}) == "store.root is /x/räume"
        assert refused(encoding, store={"root": "/x", "state": "/räume"}) == "store.state is /räume"
        assert refused(encoding, calls={"replay": "/räume"}) == "calls.replay is /räume"
        assert refused(encoding, store={"root": "/x"}, documents={"paths": ["/räume"]}) is None  # type: ignore[dict-item]
        assert refused(encoding, store={"root": "s3a://bucket/räume"}) is None
        assert refused(encoding) is None
    for encoding in ("UTF-8", "utf8"):
        assert refused(encoding, store={"root": "/x/räume"}) is None
    (tmp_path / "räume").mkdir()
    monkeypatch.chdir(tmp_path / "räume")
    assert refused("ANSI_X3.4-1968") == f"store.root is {tmp_path}/räume/warehouse"  # also in the working directory


# --- jars


def test_jars_are_fetched_once_and_then_need_no_network(fake_java: Callable[..., Path]) -> None:
    folder = fake_java()
    first = jars.jars(SparkSettings())
    assert [jar.name for jar in first] == [JAR]
    (folder / "offline").touch()
    assert jars.jars(SparkSettings()) == first
    assert (folder / "calls").read_text().count("call") == 1
    with pytest.raises(PersonaHubError):  # other jars need another download
        jars.jars(SparkSettings(spark_nlp=True))


@pytest.mark.parametrize("fault", ["offline", "incomplete"])
def test_jars_that_cannot_be_had_leave_nothing_behind(
    fake_java: Callable[..., Path], tmp_path: Path, fault: str
) -> None:
    folder = fake_java(jar_names="io.delta_delta-storage-3.3.3.jar")
    if fault == "offline":
        (folder / "offline").touch()
    cause = "SERVER ERROR: no route to host" if fault == "offline" else "no connection to a Maven repository"
    with pytest.raises(PersonaHubError, match=rf"^jars could not be fetched \({cause}\); check the network") as caught:
        jars.jars(SparkSettings())
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "cache" / "jars").iterdir()) == []
    (folder / "offline").unlink(missing_ok=True)
    fake_java()
    assert [jar.name for jar in jars.jars(SparkSettings())] == [JAR]


def test_a_half_filled_home_changes_nothing_and_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real Ivy, a repository in a folder, and a home whose caches list the jar but do not contain it."""
    place = "io/delta/delta-spark_2.12/3.3.3"
    pom = (
        "<project><modelVersion>4.0.0</modelVersion><groupId>io.delta</groupId>"
        "<artifactId>delta-spark_2.12</artifactId><version>3.3.3</version></project>"
    )
    repository = tmp_path / "repository" / place
    repository.mkdir(parents=True)
    (repository / "delta-spark_2.12-3.3.3.pom").write_text(pom)
    (repository / "delta-spark_2.12-3.3.3.jar").write_bytes(b"the jar")
    ivy_settings = tmp_path / "ivysettings.xml"
    ivy_settings.write_text(
        '<ivysettings><settings defaultResolver="here"/><resolvers>'
        f'<ibiblio name="here" m2compatible="true" useMavenMetadata="false" root="{repository.parents[3].as_uri()}/"/>'
        "</resolvers></ivysettings>"
    )
    home = tmp_path / "home"
    cached = home / ".ivy2" / "cache" / "io.delta" / "delta-spark_2.12"
    for folder in (home / ".m2" / "repository" / place, cached):
        folder.mkdir(parents=True)
    (home / ".m2" / "repository" / place / "delta-spark_2.12-3.3.3.pom").write_text(pom)
    (cached / "ivy-3.3.3.xml").write_text("<ivy-module")
    before = sorted(home.rglob("*"))
    jars.java.cache_clear()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", f"-Duser.home={home}")
    monkeypatch.setenv("PERSONAHUB_CACHE", str(tmp_path / "cache"))
    fetched = jars.jars(SparkSettings(ivy_settings=str(ivy_settings)))
    assert [(jar.name, jar.read_bytes()) for jar in fetched] == [(JAR, b"the jar")]
    assert sorted(home.rglob("*")) == before


def test_a_cache_that_cannot_be_written_is_one_sentence(
    fake_java: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_java()
    (tmp_path / "file").touch()
    monkeypatch.setenv("PERSONAHUB_CACHE", str(tmp_path / "file"))
    monkeypatch.chdir(ROOT)
    assert run_job("jobs/create_tables.py", [], monkeypatch) == 2
    message = capsys.readouterr().err
    assert message.startswith(
        f"error: a disk is full or cannot be written ({tmp_path}/file/jars: Not a directory); free"
    )
    assert "PERSONAHUB_CACHE" in message and message.count("\n") == 1


# --- the session


@pytest.mark.parametrize("value", ["true", "TRUE"])
def test_speculation_is_refused_before_spark_starts(fake_java: Callable[..., Path], value: str) -> None:
    folder = fake_java()
    with pytest.raises(PersonaHubError, match="speculation is on: a speculative twin would ask a model twice"):
        session.build(SparkSettings(conf={"spark.speculation": value}))
    assert (folder / "calls").read_text().count("call") == 1  # downloads the jars; no java runs later


def test_what_is_started_with_the_jvm_prints_nothing_to_the_programs_output(capfd: pytest.CaptureFixture[str]) -> None:
    say = ["sh", "-c", "echo Using CPUs; echo a crash >&2"]
    with session._without_stdout():
        subprocess.run(say, check=True)
    assert capfd.readouterr() == ("", "a crash\n")
    subprocess.run(say, check=True)
    assert capfd.readouterr() == ("Using CPUs\n", "a crash\n")


@pytest.mark.parametrize(
    ("master", "conf", "archived"),
    [
        ("local[2]", {}, True),
        ("local-cluster[1,1,1024]", {}, False),
        ("local[2]", {"spark.master": "spark://elsewhere:7077"}, False),
    ],
)
def test_only_in_one_process_java_takes_classes_from_an_archive(
    monkeypatch: pytest.MonkeyPatch,
    fake_java: Callable[..., Path],
    master: str,
    conf: dict[str, str],
    archived: bool,
) -> None:
    fake_java('openjdk version "17.0.9"\nOpenJDK 64-Bit Server VM (mixed mode, sharing)')
    chosen: dict[str, str] = {}

    class Options:  # in a process with a JVM, the real class reads that JVM's options too
        def set(self, key: str, value: str) -> None:
            chosen[key] = value

    class BuiltError(Exception):
        pass

    def refuse(_: object) -> None:
        raise BuiltError

    monkeypatch.setattr(session, "SparkConf", Options)
    monkeypatch.setattr(session, "_refuse_speculation", refuse)
    monkeypatch.setattr(SparkContext, "_gateway", None)  # this process may have a JVM
    monkeypatch.delenv("PYSPARK_GATEWAY_PORT", raising=False)
    with pytest.raises(BuiltError):
        session.build(SparkSettings(master=master, conf=conf))
    assert ("-XX:DumpLoadedClassList=" in chosen[session.JAVA_OPTIONS]) == archived


def test_the_package_runs_from_its_zip(tmp_path: Path) -> None:
    archive = code.package_zip(tmp_path / "package.zip")
    shipped = {name for name in zipfile.ZipFile(archive).namelist() if not name.endswith("__init__.py")}
    package = ROOT / "personahub_spark"
    files = [file for kind in ("py", "sql", "txt", "yaml") for file in package.rglob(f"*.{kind}")]
    assert shipped == {str(file.relative_to(ROOT)) for file in files if file.name != "__init__.py"}
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from personahub_spark.program import code\nfrom personahub_spark.store.store import view_query\n"
        "print(code.__file__.startswith(sys.argv[1]), code.code_version(), view_query('hub')[:2])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(archive)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.stdout.strip() == f"True {code.code_version()} --", done.stderr


def test_whether_tables_are_missing_is_seen_without_spark_and_once(tmp_path: Path) -> None:
    store = Store(None, StoreSettings(root=str(tmp_path)))  # type: ignore[arg-type]
    for table in TABLES:
        assert not store.is_complete()
        (tmp_path / table.name / "_delta_log").mkdir(parents=True)
        assert not store.is_complete()  # its first transaction is missing
        (tmp_path / table.name / "_delta_log" / f"{0:020}.json").touch()
    assert store.is_complete()
    shutil.rmtree(tmp_path / TABLES[0].name)
    assert store.is_complete()


# --- exit codes


def context() -> Context:
    """A context without Spark."""
    return Context(
        spark=None,  # type: ignore[arg-type]
        settings=whole.Settings(),
        store=Store(None, StoreSettings(), dry_run=True),  # type: ignore[arg-type]
        run_id="run",
        prices={},
        progress=Progress(io.StringIO()),
        started_at=steps.now(),
    )


@pytest.mark.parametrize("outcomes", [{"kept": 3, "flagged": 1}, {"kept": 3, "flagged": 3}, {}])
def test_counts_that_do_not_add_up_raise_and_name_the_numbers(outcomes: dict[str, int]) -> None:
    with pytest.raises(PersonaHubError) as caught:
        run_step(context(), Step("a_step", lambda _: StepResult(5, outcomes)))
    message = str(caught.value)
    assert message.startswith(f"a_step: 5 rows came in but {sum(outcomes.values())} are accounted for (")
    assert "(nothing)" in message if not outcomes else f"3 kept + {outcomes['flagged']} flagged" in message


def test_counts_that_add_up_are_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    result = run_step(context(), Step("a_step", lambda _: StepResult(1234, {"kept": 1230, "put_off": 4})))
    assert not result.changed
    assert caplog.messages[-1].startswith("a_step: 1,234 in = 1,230 kept + 4 put off; ")


def test_the_shipped_zip_is_in_a_private_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    planted = tmp_path / f"personahub_spark-{code.code_version()}.zip"
    planted.write_bytes(b"planted")
    code.shipped.cache_clear()
    shipped = code.shipped()
    assert zipfile.is_zipfile(shipped) and shipped.name == planted.name
    assert shipped.parent.parent == tmp_path and shipped.parent.stat().st_mode & 0o777 == 0o700
    code.shipped.cache_clear()


def test_sparks_local_files_lie_on_the_disks_that_can_be_used_and_no_deeper_in_a_later_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "broken").touch()
    disks = [str(tmp_path / name) for name in ("one", "broken", "two")]
    monkeypatch.setenv("SPARK_LOCAL_DIRS", ",".join(disks))
    for _ in range(2):
        session._own_local_folders({})
        folders = [Path(folder) for folder in os.environ["SPARK_LOCAL_DIRS"].split(",")]
        assert [str(folder.parent) for folder in folders] == [disks[0], disks[2]]
        assert all(folder.is_dir() for folder in folders)
    assert [disks[1] in record.message for record in caplog.records] == [True]
    with pytest.raises(PersonaHubError, match="no disk for Spark's local files can be used"):
        session._own_local_folders({"spark.local.dir": disks[1]})


def test_a_full_disk_is_one_sentence_and_a_broken_connection_is_not_dressed_up_as_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended, faults.exit_code(), open("/dev/full", "w") as full:
        full.write("more")
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: a disk is full or cannot be written (No space left on device); free some space")
    assert message.count("\n") == 1
    with pytest.raises(ConnectionRefusedError), faults.exit_code(), socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        server.close()
        socket.create_connection(address, timeout=PATIENCE_S)


@pytest.mark.parametrize(("error", "code"), [(PersonaHubError("mend this"), 2), (KeyboardInterrupt(), 130)])
def test_errors_that_a_user_can_fix_are_one_sentence_and_an_exit_code(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, faults.exit_code():
        raise error
    assert ended.value.code == code
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "mend this" in message if code == 2 else "run again to go on" in message


def test_a_fault_of_ours_is_not_dressed_up() -> None:
    with pytest.raises(ZeroDivisionError), faults.exit_code():
        raise ZeroDivisionError


def run_job(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / name), run_name="__main__")
    return ended.value.code


def test_programs_that_only_read_do_not_import_the_clients_of_models() -> None:
    jobs = "query_tables, trace_persona, explain_removal, report_hub, report_calls, release_hub"
    program = f"import sys\nimport {jobs}\nprint({{'openai', 'aiohttp'}} & sys.modules.keys())"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'jobs'}"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "set()\n", done.stderr


@pytest.mark.parametrize("name", [f"jobs/{job}" for job in JOBS] + ["demo/run.py"])
def test_every_program_explains_itself_and_refuses_an_unknown_option(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_job(name, ["--help"], monkeypatch) == 0
    output = capsys.readouterr().out
    assert "--conf" in output or name.startswith("demo")
    assert (ast.get_docstring(ast.parse((ROOT / name).read_text())) or "no docstring") in output
    assert run_job(name, [*NEEDED.get(name, []), "--frobnicate"], monkeypatch) == 2
    assert "unrecognized arguments: --frobnicate" in capsys.readouterr().err


@pytest.mark.parametrize("name", [f"jobs/{job}" for job in JOBS])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--conf", "absent.yaml"], "error: settings file absent.yaml does not exist; give one with --conf"),
        (["--set", "personas.verv=[read]"], "error: unknown setting personas.verv; did you mean verbs?"),
    ],
)
def test_bad_settings_end_every_job_with_code_2_and_one_sentence(
    name: str, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert run_job(name, [*NEEDED.get(name, []), *arguments], monkeypatch) == 2
    assert capsys.readouterr().err.strip() == message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("synthesis.0.model=nobody", "models.nobody is not set (models here: default)"),
        ("personas.model=nobody", "models.nobody is not set (models here: default)"),
        ("filters.disabled=[too_shrt]", "did you mean too_short?"),
        ("dedup.surface={threshold: 0.3, num_hashes: 16}", "16 hashes find a pair at 0.3"),
    ],
)
def test_a_fault_of_a_later_step_stops_the_pipeline_before_spark_starts(
    override: str, message: str, fake_java: Callable[..., Path], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = fake_java()
    monkeypatch.chdir(ROOT)
    assert run_job("jobs/run_pipeline.py", ["--set", override], monkeypatch) == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith("error: ") and message in stderr and stderr.count("\n") == 1
    assert not (folder / "calls").exists()


# --- scripts/make_environment.sh


def make_environment(
    tmp_path: Path, *, pythons: dict[str, str], variable: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run the script with a PATH that has only ``pythons`` (name -> script) and basic tools."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("df", "awk", "mktemp", "rm", "tail", "grep", "cut", "touch"):
        (tools / tool).symlink_to(str(shutil.which(tool)))
    for name, script in pythons.items():
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    return subprocess.run(
        [str(shutil.which("bash")), str(ROOT / "scripts" / "make_environment.sh"), "made"],
        capture_output=True, text=True, cwd=tmp_path, env={"PATH": str(tools), "PYTHON": variable}, check=False,
    )  # fmt: skip


def pretend(version: str) -> str:
    """A script that runs this Python, and shows ``-c`` programs another version."""
    return f'exec {sys.executable} -c "import sys; sys.version_info = ({version}); exec(sys.argv[1])" "$2"'


@pytest.mark.parametrize(
    ("pythons", "variable", "looked_for"),
    [
        ({}, "", "python3.11 python3"),
        ({"python3": pretend("3, 10, 9")}, "", "python3.11 python3"),
        ({"python3": pretend("3, 12, 0")}, "", "python3.11 python3"),
        ({"python3.11": f'exec {sys.executable} "$@"'}, "python2.7", "python2.7"),
    ],
    ids=["none", "too old", "too new", "another one named"],
)
def test_no_python_that_fits_is_one_sentence(
    tmp_path: Path, pythons: dict[str, str], variable: str, looked_for: str
) -> None:
    done = make_environment(tmp_path, pythons=pythons, variable=variable)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: no Python 3.11 with venv was found (looked for: {looked_for}); install")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "made").exists()


def test_sparks_programs_of_the_environment_use_its_own_python_whatever_is_on_path(tmp_path: Path) -> None:
    fits = (
        f'if [ "$1" = -c ]; then exec {sys.executable} "$@"; fi\n'
        'if [ "$2" = venv ]; then mkdir -p made/bin; printf "#!/bin/sh\\necho /its/spark \\$1\\n" > made/bin/python3; '
        "cp made/bin/python3 made/bin/python; chmod +x made/bin/python made/bin/python3; fi"
    )
    for tool in ("mkdir", "chmod", "cp"):
        fits = fits.replace(f"{tool} ", f"{shutil.which(tool)} ")
    done = make_environment(tmp_path, pythons={"python3.11": fits})
    assert done.returncode == 0, done.stderr
    made = tmp_path / "made" / "bin"
    script = f'source "{made}/find-spark-home"; echo "$PYSPARK_DRIVER_PYTHON $SPARK_HOME"'
    printed = subprocess.run(
        [str(shutil.which("bash")), "-c", script], capture_output=True, text=True, env={"PATH": os.defpath}, check=True
    )
    assert printed.stdout == f"{made}/python3 /its/spark {made}/find_spark_home.py\n"


def test_packages_that_cannot_be_fetched_are_one_sentence(tmp_path: Path) -> None:
    fits = (
        f'if [ "$1" = -c ]; then exec {sys.executable} "$@"; fi\n'  # the check of the version
        'if [ "$2" = venv ]; then mkdir -p made/bin; printf "#!/bin/sh\\necho ERROR: no connection; exit 1\\n" '
        "> made/bin/python; chmod +x made/bin/python; fi"
    )
    for tool in ("mkdir", "chmod"):
        fits = fits.replace(f"{tool} ", f"{shutil.which(tool)} ")
    done = make_environment(tmp_path, pythons={"python3.11": fits})
    assert done.returncode == 2
    assert "error: packages could not be fetched; check the network" in done.stderr
    assert not (tmp_path / "made" / "ready").exists()
