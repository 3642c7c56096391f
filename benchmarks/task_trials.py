"""How well a model does a task: pass rates by check, tokens for each row that passes, and every text; without a store.

``ask`` asks a task about the first personas of a file, in the order of their ids, and appends the answers to a file, so
that a stopped run can be continued. ``report`` reads such files with the current checks.

    python benchmarks/task_trials.py ask --task math --option variant=planned --to math.jsonl
    python benchmarks/task_trials.py ask --task math --pattern few_shot --examples examples.jsonl --to few.jsonl
    python benchmarks/task_trials.py report --texts math.jsonl few.jsonl

The 24 personas of trial_personas.jsonl are our own.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from personahub_spark.errors import SettingsError
from personahub_spark.llm.client import outcomes
from personahub_spark.llm.local_models import serve
from personahub_spark.settings import loading, whole
from personahub_spark.settings.models import SamplingSettings
from personahub_spark.settings.texts import ShotSettings
from personahub_spark.tasks.contract import Subject
from personahub_spark.tasks.declared import library
from personahub_spark.tasks.patterns import Shot, Shots
from personahub_spark.tasks.prompted import PromptedTask
from personahub_spark.text import content_id


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conf", type=Path, default=Path("conf/local.yaml"), help="default: %(default)s")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for the jobs")
    commands = parser.add_subparsers(dest="command", required=True)
    asking = commands.add_parser("ask")
    own = Path(__file__).with_name("trial_personas.jsonl")
    asking.add_argument("--personas", type=Path, default=own, help="JSON lines with a persona (default: our own)")
    asking.add_argument("--number", type=int, default=20, help="number of personas (default: %(default)s)")
    asking.add_argument("--task", required=True)
    asking.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="option of the task")
    asking.add_argument("--text", action="append", default=[], metavar="NAME=FILE", help="further text the task needs")
    asking.add_argument("--pattern", choices=["zero_shot", "few_shot", "persona_few_shot"], default="zero_shot")
    asking.add_argument("--examples", type=Path, help="JSON lines with text and, for persona_few_shot, persona")
    asking.add_argument("--shots", type=int, default=3, help="examples in a prompt (default: %(default)s)")
    asking.add_argument("--sampling", type=json.loads, default={}, help="JSON; default: the task's own")
    asking.add_argument("--samples", type=int, default=1, help="answers for each persona (default: %(default)s)")
    asking.add_argument("--to", type=Path, required=True, help="file of JSON lines that answers are added to")
    asking.add_argument("--parallel", type=int, default=4, help="calls at once (default: %(default)s)")
    asking.add_argument("--url", help="address of a running server; default: start one")
    asking.add_argument("--threads", type=int, help="threads of the server; on a busy machine 1 is the fastest")
    reporting = commands.add_parser("report")
    reporting.add_argument("answers", type=Path, nargs="+")
    reporting.add_argument("--texts", action="store_true", help="print each output, with the checks that it fails")
    arguments = parser.parse_args()
    settings = loading.load(arguments.conf, arguments.set)
    if arguments.command == "report":
        for path in arguments.answers:
            report(settings, path, texts=arguments.texts)
        return 0
    chosen = {
        "task": arguments.task,
        "options": dict(option.split("=", 1) for option in arguments.option),
        "texts": {
            name: Path(file).read_text(encoding="utf-8").strip()
            for name, file in (text.split("=", 1) for text in arguments.text)
        },
        "sampling": arguments.sampling,
        "pattern": arguments.pattern,
        "examples": [] if arguments.pattern == "zero_shot" else _rows(arguments.examples),
        "shots": arguments.shots,
    }
    lines = arguments.personas.read_text(encoding="utf-8").splitlines()
    personas = {content_id(text): text for text in (json.loads(line)["persona"] for line in lines)}
    first = {id_: personas[id_] for id_ in sorted(personas)[: arguments.number]}
    server = serve(settings.endpoint("default").model, parallel=arguments.parallel, threads=arguments.threads)
    with contextlib.nullcontext(arguments.url) if arguments.url else server as url:
        subjects = [Subject(id_, {"persona": text}, n) for id_, text in first.items() for n in range(arguments.samples)]
        ask(settings, chosen, subjects, arguments.to, url=url, in_flight=arguments.parallel)
    return 0


def ask(
    settings: whole.Settings,
    chosen: dict[str, Any],
    subjects: list[Subject],
    answers: Path,
    *,
    url: str,
    in_flight: int,
) -> None:
    """Add the model's answer about each of ``subjects`` that ``answers`` does not have yet."""
    # Long enough for a busy machine: a retry would start the answer from the beginning.
    task = _task(settings, chosen, base_url=url, in_flight=in_flight, timeout_s=3000, deadline_s=3600)
    answered = {row["request_key"] for row in _rows(answers)} if answers.exists() else set()
    requests = {request.key: subject for subject in subjects if (request := task.request(subject)).key not in answered}
    began = time.monotonic()
    with answers.open("a", encoding="utf-8") as out:
        results = outcomes([task.request(subject) for subject in requests.values()], task.endpoint, None)
        for done, outcome in enumerate((outcome for outcome in results if outcome is not None), start=1):
            subject = requests[outcome.request_key]
            row = {
                **chosen,
                "persona_id": subject.id,
                "persona": subject.texts["persona"],
                "sample": subject.sample,
                "request_key": outcome.request_key,
                "status": outcome.status,
                "error": outcome.error_message,
                "answer": outcome.text,
                "finish_reason": outcome.finish_reason,
                "tokens": dataclasses.asdict(outcome.usage) if outcome.usage else {},
            }
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
            out.flush()
            seconds = time.monotonic() - began
            print(f"{outcome.status} {done}/{len(requests)} after {seconds:.0f} s", file=sys.stderr, flush=True)


def report(settings: whole.Settings, answers: Path, *, texts: bool) -> None:
    """Print pass rates, failures and tokens of ``answers``, by task and options."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in _rows(answers):
        kinds.setdefault(json.dumps([row["task"], row["options"], row["pattern"]], ensure_ascii=False), []).append(row)
    for kind, rows in kinds.items():
        passed, failures, failing = 0, Counter[str](), Counter[str]()
        shown, prompts = [], []
        for row in rows:
            task = _task(settings, row)
            subject = Subject(row["persona_id"], {"persona": row["persona"]}, row["sample"])
            prompts.append("\n".join(str(message["content"]) for message in task.request(subject).messages))
            if row["status"] != "answered":
                failures[row["status"]] += 1
                continue
            for reading in task.read(row["answer"], row["finish_reason"], subject):
                if reading.failure is not None:
                    failures[reading.failure] += 1
                else:
                    passed += not reading.checks
                    failing.update(reading.checks)
                marks = reading.failure or " ".join(reading.checks) or "passes"
                text = row["answer"] if reading.failure else json.dumps(reading.output, ensure_ascii=False, indent=1)
                shown.append(f"\n[{marks}] {row['persona']}\n{text}")
        read, cached, written = (
            sum(row["tokens"].get(f"{which}_tokens", 0) for row in rows) for which in ("input", "cached", "output")
        )
        print(f"{kind}: {len(rows)} answers, {passed} pass ({passed / len(rows):.0%})")
        print(f"  unreadable {dict(failures)}, fails {dict(failing.most_common())}")
        print(f"  tokens in {read / len(rows):.0f} ({cached / max(read, 1):.0%} cached), out {written / len(rows):.0f}")
        different = (place for place, signs in enumerate(zip(*prompts, strict=False)) if len({*signs}) > 1)
        constant = next(different, min(map(len, prompts))) * len(prompts) / sum(map(len, prompts))
        print(f"  {constant:.0%} of the prompts' characters are their common beginning")
        print(f"  tokens for each that passes: {(read + written) / max(passed, 1):.0f}")
        if texts:
            print("\n".join(shown))


def _task(settings: whole.Settings, chosen: dict[str, Any], **limits: Any) -> PromptedTask:
    declaration = library(settings.tasks)[chosen["task"]]
    if declaration.conversation is not None:
        raise SettingsError("a conversation takes several calls; try it by jobs/synthesize.py --show")
    sampling = SamplingSettings(**(declaration.sampling.model_dump() | chosen["sampling"]))
    endpoint = settings.endpoint("default").model_copy(update=limits)
    options = declaration.chosen(chosen["options"])
    task = PromptedTask(declaration, options, endpoint, sampling, shared_texts=chosen["texts"])
    if chosen["pattern"] == "zero_shot":
        return task
    with_personas = chosen["pattern"] == "persona_few_shot"
    pool = [
        Shot(content_id(row["text"]), row["text"], row["persona"] if with_personas else None)
        for row in chosen["examples"]
    ]
    return dataclasses.replace(task, shots=Shots(ShotSettings(number=chosen["shots"]), pool, with_personas))


def _rows(answers: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    sys.exit(main())
