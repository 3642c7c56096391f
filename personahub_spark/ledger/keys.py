"""Keys that only the driver can look up."""

from __future__ import annotations

import importlib

from pyspark.sql import SparkSession

from personahub_spark.errors import PersonaHubError
from personahub_spark.settings.models import Endpoint


def handed_keys(spark: SparkSession, endpoint: Endpoint) -> dict[int, str]:
    """Keys that only the driver can look up, by position of their address."""
    return {
        position: _credential(spark, address.api_key_credential)
        for position, address in enumerate(endpoint.addresses)
        if address.api_key_credential is not None
    }


def _credential(spark: SparkSession, name: str) -> str:
    provider, _, alias = name.partition(":")
    try:
        if provider == "databricks":
            scope, _, key = alias.partition("/")
            return str(importlib.import_module("pyspark.dbutils").DBUtils(spark).secrets.get(scope, key))
        # Hadoop's credential providers have no Python of their own; this is how PySpark reaches Hadoop's settings.
        found = spark.sparkContext._jsc.hadoopConfiguration().getPassword(alias)
    except Exception as error:  # whatever the provider raises, none of it may show
        raise PersonaHubError(f"the credential {name} could not be looked up ({type(error).__name__})") from None
    if found is None:
        raise PersonaHubError(
            f"Hadoop's credential providers know no alias {alias}; see hadoop.security.credential.provider.path"
        )
    return "".join(found)
