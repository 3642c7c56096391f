"""Whether a judge's scores say which math problems can be solved as they stand: its agreement with labels.

Labels: benchmarks/labels/problems.jsonl (texts of a local model, labelled by working each problem out), and the data
set ValiMath, which is not part of the repository, where it lies beside the checkout. The judge is any model of the
settings; its answers are added to a file, so that a run that was stopped goes on.

    python benchmarks/judge_agreement.py --to answers.jsonl                      # the model default of conf/local.yaml
    python benchmarks/judge_agreement.py --to large.jsonl --conf my.yaml --model large --number 300
    python benchmarks/judge_agreement.py --to local.jsonl --serve --set models.default.timeout_s=3000
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from personahub_spark.llm.client import outcomes
from personahub_spark.llm.local_models import serve
from personahub_spark.settings import loading, whole
from personahub_spark.settings.models import Endpoint, SamplingSettings
from personahub_spark.tasks.contract import Subject
from personahub_spark.tasks.declared import library
from personahub_spark.tasks.judges import SCORES, TASK_ABOUT, Judge
from personahub_spark.text import content_id

ROOT = Path(__file__).parent.parent
LABELS = ROOT / "benchmarks" / "labels" / "problems.jsonl"
VALIMATH = ROOT.parent / "shared" / "data" / "validity" / "valimath_half.jsonl"


@dataclass(frozen=True)
class Labelled:
    """A problem, and whether it can be solved as it stands; ``doubtful``: another reader may say otherwise."""

    text: str
    is_valid: bool
    doubtful: bool = False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conf", type=Path, default=Path("conf/local.yaml"), help="default: %(default)s")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for the jobs")
    parser.add_argument("--model", default="default", help="name under models of the settings (default: %(default)s)")
    parser.add_argument("--judge", default="judge", help="the judging task (default: %(default)s)")
    parser.add_argument("--criterion", default="validity", help="its option (default: %(default)s)")
    parser.add_argument("--labels", type=Path, default=LABELS, help="labelled problems (default: %(default)s)")
    parser.add_argument("--validity", type=Path, default=VALIMATH, help="rows of ValiMath (default: %(default)s)")
    parser.add_argument("--number", type=int, default=100, help="of ValiMath's rows (default: %(default)s)")
    parser.add_argument("--serve", action="store_true", help="serve the model on this machine while it is asked")
    parser.add_argument("--report", action="store_true", help="ask nothing; report what the file has")
    parser.add_argument("--to", type=Path, required=True, help="file of JSON lines that answers are added to")
    arguments = parser.parse_args()
    settings = loading.load(arguments.conf, arguments.set)
    sets = {"our labels": labelled(arguments.labels)}
    if arguments.validity.exists():
        sets["ValiMath"] = of_valimath(arguments.validity, arguments.number)
    else:
        print(f"ValiMath is left out: {arguments.validity} does not exist", file=sys.stderr)
    endpoint = settings.endpoint(arguments.model)
    wanted = [one for rows in sets.values() for one in rows]
    with contextlib.ExitStack() as served:
        if arguments.serve and not arguments.report:
            url = served.enter_context(serve(endpoint.model))
            endpoint = endpoint.model_copy(update={"base_url": url})
        judge = judging(settings, endpoint, arguments.judge, arguments.criterion)
        if not arguments.report:
            ask(judge, wanted, arguments.to)
    scores = {name: list(scored(judge, rows, arguments.to)) for name, rows in sets.items()}
    print(f"{judge.name} ({judge.options}), {endpoint.model}")
    for name, pairs in scores.items():
        print("\n".join(report(name, pairs)))
        sure = [pair for pair in pairs if not pair[0].doubtful]
        if len(sure) < len(pairs):
            print("\n".join(report(f"{name}, without the doubtful ones", sure)))
    return 0


def labelled(path: Path) -> list[Labelled]:
    """Problems with labels of our own."""
    return [Labelled(row["text"], row["valid"], row["doubtful"]) for row in _rows(path)]


def of_valimath(path: Path, number: int) -> list[Labelled]:
    """The first ``number`` problems of ValiMath by their hash."""
    problems = {content_id(row["question"]): Labelled(row["question"], row["gt"]) for row in _rows(path)}
    return [problems[id_] for id_ in sorted(problems)[:number]]


def judging(settings: whole.Settings, endpoint: Endpoint, name: str, criterion: str) -> Judge:
    """The judging task for math problems."""
    tasks = library(settings.tasks)
    declared, sampling = tasks[name], SamplingSettings(**tasks[name].sampling.model_dump())
    options = declared.chosen({"criterion": criterion} if "criterion" in declared.options else {})
    return Judge(declared, options, endpoint, sampling, shared_texts={TASK_ABOUT: tasks["math"].about})


def ask(judge: Judge, rows: Sequence[Labelled], answers: Path) -> None:
    """Add the judge's answer about each of ``rows`` that ``answers`` does not have yet."""
    done = {row["request_key"] for row in _rows(answers)} if answers.exists() else set()
    requests = [judge.request(_subject(one)) for one in rows]
    due = [request for request in requests if request.key not in done]
    with answers.open("a", encoding="utf-8") as out:
        for number, outcome in enumerate(filter(None, outcomes(due, judge.endpoint, None)), start=1):
            told = {"request_key": outcome.request_key, "answer": outcome.text, "finish_reason": outcome.finish_reason}
            if outcome.status == "answered":
                out.write(json.dumps(told, ensure_ascii=False) + "\n")
                out.flush()
            print(f"{outcome.status} {number}/{len(due)}", file=sys.stderr, flush=True)


def scored(judge: Judge, rows: Sequence[Labelled], answers: Path) -> Iterator[tuple[Labelled, int | None]]:
    """Each of ``rows`` that was answered, with the judge's score; None: unreadable."""
    answered = {row["request_key"]: row for row in _rows(answers)}
    for one in rows:
        subject = _subject(one)
        row = answered.get(judge.request(subject).key)
        if row is not None:
            (reading,) = judge.read(row["answer"], row["finish_reason"], subject)
            yield one, None if reading.failure is not None else reading.output["score"]


def report(name: str, pairs: Sequence[tuple[Labelled, int | None]]) -> Iterator[str]:
    """Lines with the agreement of scores and labels; unreadable judgements are outside all figures but their share."""
    read = [(one.is_valid, score) for one, score in pairs if score is not None]
    unread = len(pairs) - len(read)
    yield f"\n{name}: {len(pairs)} judgements, {unread} unreadable ({unread / max(len(pairs), 1):.1%})"
    if not read:
        return
    for label, word in ((True, "valid"), (False, "invalid")):
        counts = Counter(score for is_valid, score in read if is_valid == label)
        shown = ", ".join(f"{counts[score]} x {score}" for score in SCORES)
        yield f"  {word}: {sum(counts.values())}, mean {_mean(counts)}; {shown}"
    for cut in SCORES[1:]:
        verdicts = [(is_valid, score >= cut) for is_valid, score in read]
        found = kappa(verdicts)
        shown = "undefined" if found is None else f"{found:.2f}"
        caught = [not said for is_valid, said in verdicts if not is_valid]
        yield (
            f"  valid from {cut} on: accuracy {accuracy(verdicts):.1%}, kappa {shown}, "
            f"finds {sum(caught)} of {len(caught)} that are invalid"
        )
    share = sum(is_valid for is_valid, _ in read) / len(read)
    yield f"  whoever always says the more frequent one: accuracy {max(share, 1 - share):.1%}, kappa 0"


def accuracy(verdicts: Sequence[tuple[bool, bool]]) -> float:
    """The share of pairs that agree."""
    return sum(one == other for one, other in verdicts) / len(verdicts)


def kappa(verdicts: Sequence[tuple[bool, bool]]) -> float | None:
    """Cohen's kappa: 1 is full agreement, 0 what chance gives. None if both always say the same."""
    shares = [sum(column) / len(verdicts) for column in zip(*verdicts, strict=True)]
    by_chance = shares[0] * shares[1] + (1 - shares[0]) * (1 - shares[1])
    return None if by_chance == 1 else (accuracy(verdicts) - by_chance) / (1 - by_chance)


def _mean(counts: Counter[int | None]) -> str:
    total = sum(counts.values())
    return f"{sum((score or 0) * number for score, number in counts.items()) / total:.2f}" if total else "-"


def _subject(one: Labelled) -> Subject:
    # Whom a problem is for does not matter to whether it can be solved, and ValiMath has nobody.
    return Subject(content_id(one.text), {"persona": "", "text": one.text, "output": json.dumps({"problem": one.text})})


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    sys.exit(main())
