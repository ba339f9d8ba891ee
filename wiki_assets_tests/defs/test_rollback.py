"""Going back is one step, to a build that is whole; and it lasts."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wiki_assets.defs.rollback import history, rollback, standing, was_rolled_back, with_history
from wiki_assets.errors import BadRequest, DamagedArtifact, NotPublished
from wiki_assets.resources.pins import is_pinned
from wiki_assets.search.build import OpenBuild
from wiki_assets.settings import Settings
from wiki_assets_tests.chaos.children import OK, in_child
from wiki_assets_tests.chaos.plain import STEPS, Plain


def pointer(collection: str, **more: object) -> dict:
    return {"wiki": "tinywiki", "collection": collection, **more}


def depth(found: dict | None) -> int:
    return 0 if found is None else 1 + depth(found["previous"])


@given(builds=st.lists(st.integers(1, 9), min_size=1, max_size=8), keep=st.integers(1, 5))
def test_the_pointer_remembers_as_many_builds_as_are_kept(builds, keep):
    now: dict | None = None
    for number in builds:
        now = pointer(str(number)) | {"previous": with_history(now, keep - 1)}
    assert now is not None
    assert [p["collection"] for p in history(now)] == [str(n) for n in reversed(builds)][:keep]
    assert depth(now) == min(keep, len(builds))


def test_what_was_taken_back_is_needed_and_known_until_the_next_is_published():
    taken = pointer("b", rolled_back_at="2026-01-01T00:00:00+00:00")
    now = pointer("a", previous=None, rolled_back=[taken])
    assert [p["collection"] for p in history(now)] == ["b", "a"]
    assert was_rolled_back(now, "b")
    assert not was_rolled_back(now, "a")
    assert "b was rolled back at 2026-01-01" in standing(now)[0]
    assert "wiki-assets rollback tinywiki --undo" in standing(now)[0]
    after = pointer("c") | {"previous": with_history(now, 1)}
    assert not was_rolled_back(after, "b")
    assert "rolled_back" not in after["previous"]


@pytest.fixture(scope="module")
def two_builds(tmp_path_factory: pytest.TempPathFactory) -> Plain:
    """One snapshot, published twice: two builds of its index."""
    plain = Plain.laid_out(tmp_path_factory.mktemp("rollback") / "wiki")

    def publish_twice() -> None:
        for name in STEPS:
            plain.step(name)
        plain.book.give_up_build(plain.snapshot, 1, "another one was asked for")
        for name in STEPS[-3:]:
            plain.step(name)

    assert in_child(publish_twice) == OK
    return plain


@pytest.fixture
def wiki(two_builds: Plain, tmp_path: Path) -> Plain:
    """A copy to go back and forth in."""
    shutil.copytree(two_builds.root, tmp_path / "root")
    return two_builds.at(tmp_path / "root")


def published(wiki: Plain) -> str:
    return (wiki.book.store.pointer("tinywiki") or {})["collection"]


@pytest.mark.chroma
def test_back_and_forth_is_where_one_began_and_no_run_moves_it(wiki: Plain) -> None:
    before = wiki.book.store.pointer("tinywiki")

    def there_and_back() -> None:
        rollback("tinywiki", wiki.settings)
        assert published(wiki) == "tinywiki-20240101-1"
        wiki.step("published_index")
        assert published(wiki) == "tinywiki-20240101-1", "publishing undid it"
        with pytest.raises(BadRequest, match="no build before it is kept"):
            rollback("tinywiki", wiki.settings)
        rollback("tinywiki", wiki.settings, undo=True)
        with pytest.raises(BadRequest, match="nothing was rolled back"):
            rollback("tinywiki", wiki.settings, undo=True)

    assert in_child(there_and_back) == OK
    assert wiki.book.store.pointer("tinywiki") == before


LOST = {
    "collection": ("index/20240101-1/chroma", "no Chroma store there"),
    "words": ("lexical/20240101", "is gone"),
    "articles": ("articles/20240101/00001.parquet", "articles of shard 00001 are gone"),
    "vectors": ("embeddings/20240101/00000.parquet", "embeddings of shard 00000 are gone"),
}


@pytest.mark.chroma
@pytest.mark.parametrize("what", LOST)
def test_a_build_that_is_not_whole_is_not_gone_back_to(wiki: Plain, what: str) -> None:
    path, says = LOST[what]
    (wiki.root / "tinywiki" / path).rename(wiki.root / "elsewhere")

    def go_back() -> None:
        with pytest.raises(DamagedArtifact, match=says) as error:
            rollback("tinywiki", wiki.settings)
        assert "tinywiki-20240101-2 stays" in str(error.value)
        assert "\n" not in str(error.value)

    assert in_child(go_back) == OK
    assert published(wiki) == "tinywiki-20240101-2"


def test_a_build_that_is_open_for_questions_is_pinned_until_it_is_closed(wiki: Plain) -> None:
    pointer = wiki.book.store.pointer("tinywiki")
    assert pointer is not None
    folder = wiki.book.store.build(wiki.snapshot, pointer["build"])
    build = OpenBuild(pointer, wiki.settings)
    assert is_pinned(folder)
    build.close()
    assert not is_pinned(folder)


def test_there_must_be_something_to_go_back_from(tmp_path: Path) -> None:
    with pytest.raises(NotPublished, match="nothing is published"):
        rollback("tinywiki", Settings(root=str(tmp_path)))
