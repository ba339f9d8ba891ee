"""Find the rows that kill whoever works on them, by halving.

A crash in a native library, or memory without end, takes its worker along: nobody is left to say which row it was.
So parts of the shard are worked on by workers that may die.
"""

from collections.abc import Callable, Collection

from wiki_assets.errors import NotPoison

MAX_POISON = 16  # rows of a shard; more is a fault of the code or the machine

Survives = Callable[[range, Collection[int]], bool]


def find_poison(survives: Survives, n_rows: int, *, limit: int = MAX_POISON) -> list[int]:
    """Find the rows of a shard without which it can be worked on.

    For k such rows it takes at most k (log2 n + 4) + 1 trials, each of half as many rows as the one before.

    Args:
        survives: works on some rows without some others, and tells whether the worker lived. It did not on all.
        n_rows: of the shard, numbered from 0.
        limit: how many to look for at most.

    Returns:
        Row numbers, ascending. Each killed two workers all by itself; all others were survived together.

    Raises:
        NotPoison: if workers die with no row at all, no single row kills, or more than `limit` do.
    """
    found: list[int] = []
    if not survives(range(0), found):
        raise NotPoison(
            "workers die before they read a row: look at the machine's memory, and at Ray's log of the worker"
        )
    while True:
        rows = range(n_rows)
        while len(rows) > 1:
            first, second = rows[: len(rows) // 2], rows[len(rows) // 2 :]
            rows = second if survives(first, found) else first
        if not rows or rows[0] in found or survives(rows, found) or survives(rows, found):
            raise NotPoison(
                f"workers die over {n_rows:,} rows, but not over "
                f"{f'row {rows[0]:,}' if rows else 'any'} alone, where halving leads: the shard may need more memory "
                f"than a worker has, or something else ends workers ({len(found)} rows were found to)"
            )
        found = sorted([*found, rows[0]])
        if len(found) > limit:
            raise NotPoison(
                f"more than {limit} of {n_rows:,} rows kill their worker (rows {found[0]:,}, {found[1]:,} …): "
                "look at Ray's log of the worker; a fault of a library or of the machine is likely"
            )
        if survives(range(n_rows), found):
            return found
