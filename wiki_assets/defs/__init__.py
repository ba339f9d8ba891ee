"""Dagster: what exists, when it is made, and when to trust it."""
