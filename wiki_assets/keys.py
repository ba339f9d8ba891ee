"""Snapshot and Shard: the two names everything is filed under, and which shard a page belongs to.

Names arrive from people, from URLs and from Dagster (which accepts any string as a partition key), and
they become folder names: so they are checked here, once, before anything else sees them.
"""

import re
from dataclasses import dataclass
from datetime import date as Day
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from wiki_assets.errors import BadRequest

MAX_SHARDS = 4096
_WIKI = re.compile(r"[a-z][a-z0-9_]{1,39}")
_SHARD = re.compile(r"[0-9]{5}")
_DATE = re.compile(r"[0-9]{8}")


def check_wiki(name: str) -> str:
    """Return `name` if it can be a wiki's database name, such as `simplewiki`.

    Raises:
        BadRequest: if it is anything else.
    """
    if not isinstance(name, str) or not _WIKI.fullmatch(name):
        raise BadRequest(
            f"{name!r:.60} is no wiki: expected a database name such as simplewiki or zh_yuewiki "
            "(lower-case letters, digits, _); see https://meta.wikimedia.org/wiki/Special:SiteMatrix"
        )
    return name


def check_date(date: str) -> str:
    """Return `date` if it is a calendar day written YYYYMMDD.

    Raises:
        BadRequest: if it is anything else.
    """
    try:
        if not isinstance(date, str) or not _DATE.fullmatch(date):
            raise ValueError
        datetime.strptime(date, "%Y%m%d")
    except ValueError:
        raise BadRequest(f"{date!r:.60} is no snapshot date: expected YYYYMMDD, such as 20260823") from None
    return date


def own_date(day: Day) -> str:
    """The date of a snapshot that is made here, from the live API or from one's own data: a thousand years back.

    2026-09-05 gives `10260905`. No dump has such a date, and each sorts before every dump: so it never takes a dump's
    place as what is published, nor comes between two of them.
    """
    return f"{day.year - 1000:04d}{day:%m%d}"


def is_own(date: str) -> bool:
    """Whether a snapshot's date is one that `own_date` gives: Wikipedia, and so its dumps, began in 2001."""
    return date < "2001"


def check_shard_count(count: int) -> int:
    """Return `count` if a wiki can be cut into that many shards.

    Raises:
        BadRequest: if it is not between 1 and 4096.
    """
    if not 1 <= count <= MAX_SHARDS:
        raise BadRequest(f"{count} shards: expected 1 to {MAX_SHARDS}; about 5,000 to 20,000 pages a shard is good")
    return count


@dataclass(frozen=True, order=True)
class Snapshot:
    """One wiki as published on one day, written `simplewiki-20251103`."""

    wiki: str
    date: str

    def __post_init__(self) -> None:
        check_wiki(self.wiki)
        check_date(self.date)

    def __str__(self) -> str:
        return f"{self.wiki}-{self.date}"

    @property
    def is_own(self) -> bool:
        """Whether it was made here, not fetched from a dump server; see `own_date`."""
        return is_own(self.date)


@dataclass(frozen=True, order=True)
class Shard:
    """Shard `number` of a snapshot: the pages whose hashed page id, modulo the wiki's shard count, is `number`."""

    snapshot: Snapshot
    number: int

    def __post_init__(self) -> None:
        if not 0 <= self.number < MAX_SHARDS:
            raise BadRequest(f"shard {self.number}: expected 0 to {MAX_SHARDS - 1}")

    def __str__(self) -> str:
        return f"{self.snapshot}/{self.name}"

    @property
    def name(self) -> str:
        """The shard's number as files and partition keys write it: `00003`."""
        return shard_name(self.number)

    @property
    def partition_key(self) -> str:
        """Dagster's key of this cell of the grid: `20251103|00003`."""
        return f"{self.snapshot.date}|{self.name}"

    @classmethod
    def from_partition_key(cls, wiki: str, key: str) -> "Shard":
        """Read a cell's key back.

        Raises:
            BadRequest: if `key` is not `YYYYMMDD|NNNNN`.
        """
        date, bar, number = key.partition("|")
        if not bar or not _SHARD.fullmatch(number):
            raise BadRequest(f"{key!r:.60} is no partition of {wiki}: expected YYYYMMDD|NNNNN")
        return cls(Snapshot(wiki, date), int(number))


def shard_name(number: int) -> str:
    """A shard's number in five digits, so that names sort as numbers do."""
    return f"{number:05d}"


def shards_of(page_ids: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """The shard of each page: the same for a page id in every snapshot and from every source.

    The hash is the finalizer of SplitMix64 (Steele, Lea, Flood 2014), so that neighbouring ids, which
    Wikipedia hands out by the thousand to one kind of article, spread evenly.

    Args:
        page_ids: int64 [n].
        count: how many shards the wiki has.

    Returns:
        int64 [n], each in 0 .. count - 1, in the order of `page_ids`.
    """
    z = page_ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (z % np.uint64(count)).astype(np.int64)
