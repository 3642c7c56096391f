"""Judges: tasks that give a text a score from 1 to 5, with the reason for it."""

from __future__ import annotations

from personahub_spark.errors import SettingsError
from personahub_spark.tasks.contract import Reading, Subject, failed
from personahub_spark.tasks.declared import Declaration
from personahub_spark.tasks.prompted import PromptedTask
from personahub_spark.text import tokens

SCORES = (1, 2, 3, 4, 5)
TASK_ABOUT = "task_about"
"""The input with what the judged task is for; the same for all of its texts."""
JUDGED = ("text", "output")
"""The inputs with what is judged: the row's text, or its whole output as JSON."""
INPUTS = (TASK_ABOUT, "persona", *JUDGED)


class Judge(PromptedTask):
    """A declared task whose output is a score and its reason (see ``refuse_other_tasks``)."""

    def read(self, answer: str | None, finish_reason: str | None, subject: Subject) -> tuple[Reading, ...]:
        """The score and its reason, or one failure; nothing is read from the judged text.

        Failures: those of ``PromptedTask.read``; no_score (none of ``SCORES``); no_reason; copied_reason (the reason
        stands in the judged text, which may hold a judgement to be copied); the name of a check that the answer fails.
        """
        (reading,) = super().read(answer, finish_reason, subject)
        if reading.failure is not None:
            return (reading,)
        reason = tokens(str(reading.output.get("reason") or ""))
        if reading.output.get("score") is None:
            return (failed("no_score"),)
        if not reason:
            return (failed("no_reason"),)
        if any(_holds(tokens(subject.texts[name]), reason) for name in JUDGED if name in subject.texts):
            return (failed("copied_reason"),)
        return (failed(reading.checks[0]),) if reading.checks else (reading,)


def refuse_other_tasks(task: Declaration) -> None:
    """SettingsError if ``task`` cannot be a judge: its output needs a score and a reason, its inputs what is judged."""
    score, reason = (task.output.get(name, {}) for name in ("score", "reason"))
    if score.get("type") != "integer" or score.get("enum") != list(SCORES) or reason.get("type") != "string":
        raise SettingsError(
            f"task {task.name} is no judge; the output of a judge has reason: {{type: string}} and "
            f"score: {{type: integer, enum: {list(SCORES)}}}"
        )
    unknown = [name for name in task.inputs if name not in INPUTS]
    if unknown or not {*JUDGED} & {*task.inputs}:
        raise SettingsError(
            f"task {task.name} has the inputs {', '.join(task.inputs)}; those of a judge are text or output, and "
            f"further ones out of {', '.join(INPUTS)}"
        )


def _holds(words: list[str], run: list[str]) -> bool:
    return any(words[start : start + len(run)] == run for start in range(len(words) - len(run) + 1))
