"""Ids of questions: the subject's id, ``@<n>`` for a further sample, ``/<message>`` of a conversation.

The subject is a persona, or a row about one.

What cannot be read is in quarantine under these ids, a part of an answer with ``#<n>`` behind it.
"""

from __future__ import annotations

from pyspark.sql import Column
from pyspark.sql import functions as F

from personahub_spark.tasks.turn_checks import ROLES


def question_id(subject_id: str, sample: Column) -> Column:
    """The id of the question about a subject (a column's name) and its ``sample``."""
    return F.concat_ws("@", subject_id, F.when(sample > 0, sample.cast("string")))


def message_id(id_: str, number: int) -> Column:
    """The id of the question for the ``number``-th turn of the conversation ``id_`` (a column's name)."""
    return F.concat(id_, F.lit(f"/{number // 2 + 1}{ROLES[number % 2][0]}"))


def subject_of(id_: str) -> Column:
    """The subject's id in the column ``id_``."""
    return F.regexp_extract(id_, "^[^@/#]*", 0)


def sample_of(id_: str) -> Column:
    """The number of the sample in the column ``id_``."""
    number = F.regexp_extract(id_, r"@(\d+)", 1)
    return F.when(number != "", number.cast("int")).otherwise(F.lit(0))


def conversation_of(id_: str) -> Column:
    """The id of the conversation in the column ``id_``, the id of one of its messages."""
    return F.substring_index(id_, "/", 1)
