"""Upkeep of what has been made: prove it, make Dagster agree with it, rebuild the index, fail runs that died."""
