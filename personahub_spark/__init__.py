"""Persona Hub on Spark: web text to personas to synthetic data, paid once and traceable."""

__version__ = "0.1.0"
