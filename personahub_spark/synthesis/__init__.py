"""Texts that are written for personas (paper sections 3 and 4)."""
