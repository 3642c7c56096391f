"""Keys that only the driver can look up."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

from pyspark.sql import SparkSession

from personahub_spark.errors import PersonaHubError
from personahub_spark.settings.models import Endpoint


@contextmanager
def readable_keys(spark: SparkSession, endpoint: Endpoint) -> Iterator[None]:
    """While it lasts, this process and the Python workers of frames that are made meanwhile can read all keys of
    ``endpoint``: those that only the driver can look up are environment variables there (``Address.key_variable``).

    Spark passes them to workers with the code that they run, beside it: they are in no plan, event or pickled function,
    and as safe as everything else that Spark sends (``spark.network.crypto.enabled``). Raises PersonaHubError where a
    key cannot be looked up.
    """
    keys = {
        str(address.key_variable): _credential(spark, address.api_key_credential)
        for address in endpoint.addresses
        if address.api_key_credential is not None
    }
    places = (os.environ, spark.sparkContext.environment)
    for place in places:
        place.update(keys)
    try:
        yield
    finally:
        for place in places:
            for variable in keys:
                place.pop(variable, None)


def _credential(spark: SparkSession, name: str) -> str:
    provider, _, alias = name.partition(":")
    try:
        if provider == "databricks":
            scope, _, key = alias.partition("/")
            return str(importlib.import_module("pyspark.dbutils").DBUtils(spark).secrets.get(scope, key))
        # Hadoop's credential providers have no Python of their own; this is how PySpark reaches Hadoop's settings.
        password = spark.sparkContext._jsc.hadoopConfiguration().getPassword(alias)
    except Exception as error:  # whatever the provider raises, none of it may show
        raise PersonaHubError(f"the credential {name} could not be looked up ({type(error).__name__})") from None
    if password is None:
        raise PersonaHubError(
            f"Hadoop's credential providers know no alias {alias}; see hadoop.security.credential.provider.path"
        )
    return "".join(password)
