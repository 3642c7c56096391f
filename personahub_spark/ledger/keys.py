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
    """Inside this context, this process and the Python workers of frames made in it can read all keys of ``endpoint``.

    Keys that only the driver can look up become environment variables (``Address.key_variable``). Spark sends these to
    workers beside the code that they run: they are in no plan, event or pickled function, and as safe as everything
    else that Spark sends (``spark.network.crypto.enabled``). Raises PersonaHubError if a key cannot be looked up.
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
        # Hadoop's credential providers have no Python API; this is how PySpark reaches Hadoop's settings.
        password = spark.sparkContext._jsc.hadoopConfiguration().getPassword(alias)
    except Exception as error:  # the provider's own message might show the key
        raise PersonaHubError(f"the credential {name} could not be looked up ({type(error).__name__})") from None
    if password is None:
        raise PersonaHubError(
            f"Hadoop's credential providers know no alias {alias}; see hadoop.security.credential.provider.path"
        )
    return "".join(password)
