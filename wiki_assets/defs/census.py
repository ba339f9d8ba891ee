"""A snapshot held against the published one: is it the same wiki a week later, or a dump that lost half of it?

A dump may be cut where nobody sees it, a mirror may serve another one, a change of ours may drop passages. What is
published stays until somebody has looked.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from wiki_assets.defs.checks import totals
from wiki_assets.defs.own import comparable
from wiki_assets.defs.recipes import Cookbook, code_version
from wiki_assets.files import Manifest
from wiki_assets.keys import Shard, Snapshot

Found = tuple[bool, dict[str, Any]]
Made = Mapping[str, Sequence[Manifest]]


def census(book: Cookbook, snapshot: Snapshot, made: Made, published: dict[str, Any] | None) -> Found:
    """Not more than a set share of the published pages are gone; a truncated dump would delete what it lacks."""
    if (passes := _nothing_to_compare(book, snapshot, published)) or published is None:
        return True, {"note": passes}
    limit = book.config.max_loss
    gone = _pages_gone(book, snapshot, made["articles"], Snapshot(snapshot.wiki, published["snapshot"]))
    pages = totals(made["articles"], "pages")["pages"]
    if gone is None:
        gone = max(0, published["pages"] - pages)
    share = gone / max(1, published["pages"])
    facts = {"published": published["collection"], "published_pages": published["pages"], "pages": pages}
    facts |= {"gone": gone, "share_gone": round(share, 4), "limit": limit}
    if share <= limit:
        return True, facts
    found = f"{gone:,} of the {published['pages']:,} pages of {published['collection']} are gone"
    return False, facts | {
        "found": f"{found}, {share:.1%}, expected at most {limit:.1%}",
        "next": "look at what is missing; if these pages are gone for good, publish it with "
        f"WIKI_ASSETS_MAX_LOSS={_rounded_up(share)}, or max_loss in the wiki's line",
    }


def drift(book: Cookbook, snapshot: Snapshot, made: Made, published: dict[str, Any] | None) -> Found:
    """Pages and passages are about as many as the published ones."""
    if (passes := _nothing_to_compare(book, snapshot, published)) or published is None:
        return True, {"note": passes}
    limit = book.config.max_drift
    counted = {"pages": totals(made["tokens"], "pages")["pages"], "passages": _indexed(made)}
    facts: dict[str, Any] = {"published": published["collection"], "limit": limit}
    worst, found = 0.0, ""
    for name, number in counted.items():
        if name == "passages" and published.get("cut") != code_version("tokens", book.config):
            facts["note"] = "passages are not compared: the published ones were cut otherwise"
            continue
        share = abs(number - published[name]) / max(1, published[name])
        if share > worst:
            worst, found = share, f"{number:,} {name}, {published['collection']} has {published[name]:,}"
        facts |= {f"published_{name}": published[name], name: number, f"{name}_drift": round(share, 4)}
    if worst <= limit:
        return True, facts
    return False, facts | {
        "found": f"{found}: {worst:.1%} apart, expected at most {limit:.1%}",
        "next": "look at what came or went; if it is right, publish it with "
        f"WIKI_ASSETS_MAX_DRIFT={_rounded_up(worst)}, or max_drift in the wiki's line",
    }


def no_passage_twice(made: Made, rows: int | None) -> Found:
    """Each passage has one id, and each id one row; a repeat would be two answers to one question, or a lost one.

    Args:
        made: manifests of every shard. A passage's id begins with its page's, and a page has one shard, so that ids
            can be the same within a shard only.
        rows: of the collection, whose ids are distinct; None if it cannot be asked.
    """
    n = totals(made["embeddings"], "vectors", "distinct")
    return n["vectors"] == n["distinct"] == rows, {**n, "rows": rows if rows is not None else "nothing to ask yet"}


def _nothing_to_compare(book: Cookbook, snapshot: Snapshot, published: dict[str, Any] | None) -> str:
    if published is None:
        return "nothing is published yet"
    if published["snapshot"] > snapshot.date:
        return f"{published['collection']}, which is newer, stays published"
    if not comparable(book.store, snapshot, Snapshot(snapshot.wiki, published["snapshot"])):
        return f"{published['collection']} is from another source, or of titles that somebody chose"
    return ""


def _indexed(made: Made) -> int:
    return totals(made["embeddings"], "vectors")["vectors"]


def _pages_gone(book: Cookbook, snapshot: Snapshot, articles: Sequence[Manifest], published: Snapshot) -> int | None:
    """How many of the published snapshot's pages this one lacks; None where that cannot be told any more.

    The articles of each shard were compared with an earlier snapshot when they were made; mostly it was this one.
    """
    if published == snapshot:
        return 0
    if articles and all(m.counts.get("compared_with") == published.date for m in articles):
        return totals(articles, "pages_gone")["pages_gone"]
    gone = 0
    for shard in book.shards(snapshot):
        before = Shard(published, shard.number)
        if not (book.store.manifest("articles", before) and book.store.manifest("articles", shard)):
            return None
        gone += len(np.setdiff1d(_page_ids(book, before), _page_ids(book, shard), assume_unique=True))
    return gone


def _page_ids(book: Cookbook, shard: Shard) -> "np.ndarray[Any, np.dtype[np.int64]]":
    with book.store.file("articles", shard).open("rb") as source:
        return pq.read_table(source, columns=["page_id"])["page_id"].to_numpy()


def _rounded_up(share: float) -> float:
    """To two digits, so that it may be asked for as it is shown."""
    return float(np.ceil(share * 100) / 100)
