"""A snapshot that lost too much is not published, and says how much and what to do."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wiki_assets.defs.census import census, drift, no_passage_twice
from wiki_assets.defs.publish import Gate, refuse
from wiki_assets.defs.recipes import Recipe, code_version
from wiki_assets.files import FileRecord, Manifest, write_json
from wiki_assets.keys import Shard, Snapshot
from wiki_assets_tests.defs.kept_wiki import WIKI, KeptWiki

OLD, NEW = Snapshot(WIKI, "20260104"), Snapshot(WIKI, "20260111")


def published(wiki: KeptWiki, pages: int = 100, passages: int = 400) -> dict[str, Any]:
    cut = code_version("tokens", wiki.book.config)
    return wiki.pointer(OLD.date, 1) | {"pages": pages, "passages": passages, "cut": cut}


def made(snapshot: Snapshot = NEW, **counts: Any) -> dict[str, list[Manifest]]:
    """One shard of each artifact, with these counts in each."""
    return {
        name: [Recipe(name, Shard(snapshot, 0), "1", {}, {}).manifest({}, counts, {})]
        for name in ("articles", "tokens", "embeddings")
    }


@pytest.mark.parametrize(("gone", "passes"), [(0, True), (10, True), (11, False), (100, False)])
def test_more_than_a_tenth_of_the_pages_may_not_be_gone(tmp_path: Path, gone: int, passes: bool) -> None:
    wiki = KeptWiki(tmp_path)
    counts = {"pages": 200 - gone, "pages_gone": gone, "compared_with": OLD.date}
    passed, facts = census(wiki.book, NEW, made(**counts), published(wiki))
    assert (passed, facts["gone"], facts["published_pages"]) == (passes, gone, 100)
    if not passes:
        assert f"{gone} of the 100 pages of {WIKI}-20260104-1 are gone" in facts["found"]
        assert f"WIKI_ASSETS_MAX_LOSS={gone / 100}" in facts["next"]


def test_the_override_that_is_named_is_enough(tmp_path: Path) -> None:
    wiki = KeptWiki(tmp_path, max_loss=0.3334)
    counts = {"pages": 2, "pages_gone": 1, "compared_with": OLD.date}
    assert census(wiki.book, NEW, made(**counts), published(wiki, pages=3))[0]


def test_a_refusal_names_the_numbers_and_the_override(tmp_path: Path) -> None:
    wiki = KeptWiki(tmp_path)
    counts = {"pages": 60, "pages_gone": 40, "compared_with": OLD.date}
    gate = Gate({"every_shard_made": (True, {}), "collection_answers": (True, {})})
    gate.results["census"] = census(wiki.book, NEW, made(**counts), published(wiki))
    assert "40 of the 100 pages" in gate.reasons
    assert "40.0%, expected at most 10.0%" in gate.reasons
    assert "WIKI_ASSETS_MAX_LOSS=0.4" in refuse(wiki.book, NEW, gate)


def articles(wiki: KeptWiki, snapshot: Snapshot, *shards: list[int]) -> list[Manifest]:
    """Articles with these page ids, a list a shard."""
    found = []
    for number, ids in enumerate(shards):
        shard = Shard(snapshot, number)
        path = Path(str(wiki.book.store.file("articles", shard)))
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"page_id": np.array(ids, np.int64)}), path)
        record = FileRecord(path.stat().st_size, "0" * 64)
        manifest = Recipe("articles", shard, "1", {}, {}).manifest(
            {"/".join(path.parts[-3:]): record}, {"pages": len(ids), "compared_with": "20250101", "pages_gone": 0}, {}
        )
        write_json(wiki.book.store.manifest_path("articles", shard), manifest)
        found.append(manifest)
    return found


def test_pages_that_others_took_the_place_of_are_counted_as_gone(tmp_path: Path) -> None:
    wiki = KeptWiki(tmp_path)
    articles(wiki, OLD, [1, 2, 3], [4, 5])
    now = {"articles": articles(wiki, NEW, [1, 7, 8], [4, 9])}
    passed, facts = census(wiki.book, NEW, now, published(wiki, pages=5))
    assert (passed, facts["gone"]) == (False, 3)


def test_where_the_published_articles_are_lost_the_numbers_are_compared(tmp_path: Path) -> None:
    wiki = KeptWiki(tmp_path)
    now = {"articles": articles(wiki, NEW, [1, 7, 8], [4, 9])}
    assert census(wiki.book, NEW, now, published(wiki, pages=10))[1]["gone"] == 5
    assert census(wiki.book, NEW, now, published(wiki, pages=4))[1]["gone"] == 0


@pytest.mark.parametrize(
    ("pages", "passages", "passes"),
    [(100, 400, True), (150, 600, True), (151, 400, False), (100, 601, False), (49, 400, False), (100, 199, False)],
)
def test_twice_as_much_is_not_published_either(tmp_path: Path, pages: int, passages: int, passes: bool) -> None:
    wiki = KeptWiki(tmp_path)
    passed, facts = drift(wiki.book, NEW, made(pages=pages, vectors=passages), published(wiki))
    assert passed is passes
    if not passes:
        assert "WIKI_ASSETS_MAX_DRIFT=0.5" in facts["next"]


def test_passages_that_were_cut_otherwise_are_not_compared(tmp_path: Path) -> None:
    wiki = KeptWiki(tmp_path, passage_word_pieces=64)
    before = published(KeptWiki(tmp_path))
    passed, facts = drift(wiki.book, NEW, made(pages=100, vectors=900), before)
    assert passed
    assert "cut otherwise" in facts["note"]


@pytest.mark.parametrize("check", [census, drift])
def test_there_may_be_nothing_to_compare_with(tmp_path: Path, check) -> None:
    wiki = KeptWiki(tmp_path)
    nothing = made(pages=0, vectors=0)
    assert check(wiki.book, NEW, nothing, None) == (True, {"note": "nothing is published yet"})
    older = Snapshot(WIKI, "20250101")
    assert check(wiki.book, older, nothing, published(wiki))[0], "it will not be published anyway"


@pytest.mark.parametrize(
    ("vectors", "distinct", "rows", "passes"),
    [(5, 5, 5, True), (5, 4, 5, False), (5, 5, 4, False), (5, 5, None, False)],
)
def test_a_passage_that_stands_twice_is_not_published(
    vectors: int, distinct: int, rows: int | None, passes: bool
) -> None:
    assert no_passage_twice(made(vectors=vectors, distinct=distinct), rows)[0] is passes
