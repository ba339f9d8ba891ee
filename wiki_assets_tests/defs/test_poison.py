"""Rows that kill their worker are found by halving, whatever they are; nothing else is blamed on a row."""

import math
import random
from collections.abc import Collection

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wiki_assets.defs.poison import MAX_POISON, find_poison
from wiki_assets.errors import NotPoison


class Shard:
    """Rows of which some kill; counts how often, and over how many rows, it was tried."""

    def __init__(self, n_rows: int, poison: Collection[int]) -> None:
        self.n_rows, self.poison = n_rows, set(poison)
        self.trials: list[int] = []

    def survives(self, rows: range, without: Collection[int]) -> bool:
        assert set(rows) <= set(range(self.n_rows))
        self.trials.append(len(rows))
        return not (self.poison & set(rows)) - set(without)


@st.composite
def shards(draw: st.DrawFn) -> Shard:
    n_rows = draw(st.integers(1, 3_000))
    return Shard(n_rows, draw(st.sets(st.integers(0, n_rows - 1), min_size=1, max_size=MAX_POISON)))


@given(shard=shards())
@settings(max_examples=300)
def test_exactly_the_rows_that_kill_are_found_in_few_trials(shard: Shard) -> None:
    found = find_poison(shard.survives, shard.n_rows)
    assert found == sorted(shard.poison)
    assert len(shard.trials) <= 1 + len(found) * (math.log2(shard.n_rows) + 4)


@given(n_rows=st.integers(1, 100_000), data=st.data())
def test_one_row_is_found_by_working_on_about_two_shards(n_rows: int, data: st.DataObject) -> None:
    shard = Shard(n_rows, [data.draw(st.integers(0, n_rows - 1))])
    find_poison(shard.survives, n_rows)
    assert sum(shard.trials[:-1]) <= n_rows + 3 + math.log2(n_rows), "the last trial makes the shard"
    assert shard.trials[-1] == n_rows


@given(n_rows=st.integers(MAX_POISON + 1, 500), data=st.data())
def test_more_than_a_few_are_no_poison(n_rows: int, data: st.DataObject) -> None:
    many = st.sets(st.integers(0, n_rows - 1), min_size=MAX_POISON + 1)
    shard = Shard(n_rows, data.draw(many))
    with pytest.raises(NotPoison, match="more than 16 of"):
        find_poison(shard.survives, n_rows)
    assert len(shard.trials) <= 1 + (MAX_POISON + 1) * (math.log2(n_rows) + 4), "and that is found out soon"


def test_workers_that_die_over_nothing_are_told_at_once() -> None:
    trials: list[range] = []
    with pytest.raises(NotPoison, match="before they read a row"):
        find_poison(lambda rows, without: bool(trials.append(rows)), 5_000)
    assert len(trials) == 1


@given(n_rows=st.integers(2, 5_000), share=st.floats(0.01, 0.99))
def test_a_shard_that_is_only_too_large_is_not_blamed_on_a_row(n_rows: int, share: float) -> None:
    most = max(1, int(n_rows * share))
    with pytest.raises(NotPoison, match="may need more memory"):
        find_poison(lambda rows, without: len(set(rows) - set(without)) <= most, n_rows)


@given(seed=st.integers(0, 10_000), n_rows=st.integers(2, 2_000))
def test_what_kills_now_and_then_ends_in_few_trials_and_only_twice_killed_rows_are_blamed(
    seed: int, n_rows: int
) -> None:
    rng = random.Random(seed)
    killed: dict[int, int] = {}
    trials = 0

    def survives(rows: range, without: Collection[int]) -> bool:
        nonlocal trials
        trials += 1
        lives = rng.random() < 0.7
        if len(rows) == 1 and not lives:
            killed[rows[0]] = killed.get(rows[0], 0) + 1
        return lives

    try:
        found = find_poison(survives, n_rows)
    except NotPoison:
        found = []
    assert all(killed[row] >= 2 for row in found)
    assert trials <= 1 + (MAX_POISON + 1) * (math.log2(n_rows) + 4)


def test_a_shard_without_rows_has_no_poison() -> None:
    with pytest.raises(NotPoison, match="not over any"):
        find_poison(Shard(0, []).survives, 0)
