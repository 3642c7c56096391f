"""Clients for OpenAI-compatible endpoints. This package does not use Spark."""
