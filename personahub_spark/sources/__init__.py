"""Texts and personas that come in from files."""
