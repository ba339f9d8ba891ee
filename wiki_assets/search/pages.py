"""Whole pages, read from the articles of a snapshot."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wiki_assets.errors import DamagedArtifact
from wiki_assets.keys import Shard, Snapshot, shards_of
from wiki_assets.resources.store import Store

_NAMES = ["page_id", "title", "redirects"]
_WHOLE = ["page_id", "title", "text", "revision", "timestamp", "url", "redirects", "categories", "language"]


class Pages:
    """The pages of one snapshot.

    Args:
        store: the data root.
        snapshot: which one.
        shards: how many the wiki has.
    """

    def __init__(self, store: Store, snapshot: Snapshot, shards: int) -> None:
        self._store = store
        self._snapshot = snapshot
        self._shards = shards

    def read(self, page_id: int) -> dict[str, Any] | None:
        """A page's row; None if there is no such page. Reads one row group of its shard."""
        rows = self._rows(int(shards_of(np.array([page_id]), self._shards)[0]), _WHOLE, page_id)
        return rows[0] if rows else None

    def named(self, name: str, among: Sequence[int] | None = None) -> int | None:
        """The page of that title, else the one with such a redirect, else either without regard to case.

        Args:
            name: underscores stand for blanks, as in an address.
            among: pages that can have that name, where an index knows; every page, if not.
        """
        wanted = " ".join(name.replace("_", " ").split())
        best: tuple[int, int] | None = None
        for row in self._candidates(among):
            names = [row["title"], *row["redirects"]]
            ranks = [0 if names[0] == wanted else 1] if wanted in names else []
            ranks += [2 if other == names[0] else 3 for other in names if other.casefold() == wanted.casefold()]
            if ranks and (best is None or (min(ranks), row["page_id"]) < best):
                best = min(ranks), row["page_id"]
        return best[1] if best else None

    def _candidates(self, among: Sequence[int] | None) -> Iterator[dict[str, Any]]:
        if among is None:
            for shard in range(self._shards):
                yield from self._rows(shard, _NAMES)
        else:
            for page_id, shard in zip(among, shards_of(np.array(among, np.int64), self._shards).tolist(), strict=True):
                yield from self._rows(shard, _NAMES, page_id)

    def _rows(self, shard: int, columns: list[str], page_id: int | None = None) -> list[dict[str, Any]]:
        path = self._store.file("articles", Shard(self._snapshot, shard))
        only = None if page_id is None else pc.field("page_id") == page_id
        try:
            with path.open("rb") as source:
                return pq.read_table(source, columns=columns, filters=only).to_pylist()
        except FileNotFoundError:
            raise DamagedArtifact(f"{path}: missing; materialize articles of {self._snapshot} again") from None
