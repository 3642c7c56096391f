"""Talking to OpenAI-compatible endpoints: no Spark in here, so its tests are instant."""
