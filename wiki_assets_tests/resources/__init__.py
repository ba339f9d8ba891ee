"""The outside world, tried against small real servers."""
