"""Tests of the Dagster assets: the real ones, on a tiny wiki, with a real Ray."""
