"""SQL conditions of the settings over a view."""

from __future__ import annotations

from pyspark.errors import AnalysisException, ParseException
from pyspark.sql import DataFrame

from personahub_spark.errors import SettingsError


def rows_where(rows: DataFrame, condition: str, *, view: str, setting: str) -> DataFrame:
    """Those of ``rows`` for which ``condition`` is true.

    SettingsError if it is no condition over their columns; ``view``, whose rows they are, and ``setting`` are named.
    """
    try:
        return rows.where(condition)
    except (AnalysisException, ParseException) as error:
        raise SettingsError(
            f"{setting} is no SQL condition over the view {view} ({', '.join(rows.columns)}): "
            f"{str(error).splitlines()[0]}"
        ) from None
