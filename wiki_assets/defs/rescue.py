"""Shards whose workers die: find the rows that do it, and make the shard without them.

A worker that dies takes its shard along, whatever the reason: a crash in a native library over one page, memory that
one page uses up, or a neighbour. Ray has tried it three times then, four where memory was short. Workers that may
die try parts of the shard; what kills two of them all by itself is set aside, and counted.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from wiki_assets.defs.fan_out import fan_out
from wiki_assets.defs.poison import find_poison
from wiki_assets.defs.recipes import Recipe
from wiki_assets.defs.work import Work
from wiki_assets.errors import ComputeLost, WikiAssetsError
from wiki_assets.files import Manifest

DEATHS = {"WorkerCrashedError": "killed_worker", "OutOfMemoryError": "out_of_memory"}
"""Ray's errors that say a worker died over its task, and what a row is set aside for that ends one."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Maker:
    """How one stage makes its shards in Ray.

    Attributes:
        make: makes a shard without its `condemned` rows.
        attempt: works on some rows of a shard without some others, for nothing.
        deadline_s: how long a task may take.
        num_gpus: of one task.
        say: tells a person what is going on.
    """

    make: Callable[[Work], Manifest]
    attempt: Callable[[Work, range, Collection[int]], None]
    deadline_s: Callable[..., float]
    num_gpus: float = 0
    say: Callable[[str], None] = logger.warning

    def shards(self, works: Sequence[Work]) -> Iterator[tuple[Recipe, Manifest | Exception]]:
        """Make shards; those whose workers die, last and without the rows that kill them.

        Yields:
            Each shard's recipe, and its manifest or why there is none.
        """
        dying: list[tuple[Work, Exception]] = []
        for work, result in self._run(self.make, *[(work, (work,)) for work in works]):
            if how_it_died(result) is None:
                yield work.recipe, result
            else:
                dying.append((work, result))
        for work, death in dying:
            self._say(work, f"its workers die ({type(death).__name__}): looking for the rows")
            try:
                yield work.recipe, self._without_poison(work, str(how_it_died(death)))
            except ComputeLost:
                raise
            except WikiAssetsError as error:
                yield work.recipe, error

    def _without_poison(self, work: Work, reason: str) -> Manifest | Exception:
        """Make one shard without the rows that end workers; or return why it cannot be made.

        Raises:
            NotPoison: if it is not some few rows.
        """
        made: list[Manifest | Exception] = []
        n_rows = work.n_rows()

        def survives(rows: range, without: Collection[int]) -> bool:
            if without and rows == range(n_rows):  # all that is left to find out is whether it can be made now
                self._say(work, f"to be made without row {', '.join(map(str, without))}")
                last = replace(work, condemned=dict.fromkeys(without, reason))
                _, result = next(self._run(self.make, (work, (last,))))
                made.append(result)
            else:
                _, result = next(self._run(self.attempt, (work, (work, rows, without)), max_retries=0))
                if isinstance(result, Exception) and how_it_died(result) is None:
                    raise _Failed(result)
            return how_it_died(result) is None

        try:
            find_poison(survives, n_rows)
        except _Failed as failed:
            return failed.error
        return made[-1]

    def _run(
        self, task: Callable[..., Any], *payloads: tuple[Work, Sequence[Any]], **options: Any
    ) -> Iterator[tuple[Work, Any]]:
        return fan_out(task, payloads, num_gpus=self.num_gpus, deadline_s=self.deadline_s, **options)

    def _say(self, work: Work, what: str) -> None:
        self.say(f"{work} {what}")


def how_it_died(result: Any) -> str | None:
    """Why a row is set aside that ends a task like this; None if its worker did not die."""
    return DEATHS.get(type(result).__name__) if isinstance(result, Exception) else None


class _Failed(Exception):
    """An attempt failed without a death: that is the shard's result."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error
