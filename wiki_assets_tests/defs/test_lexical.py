"""The lexical index of a snapshot: made whole or not at all, made again when what it is made from changes."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from wiki_assets.claims import claim
from wiki_assets.defs import lexical as lexical_defs
from wiki_assets.defs.lexical import (
    LexicalWork,
    examine_lexical,
    give_up_lexical,
    lexical_recipe,
    made_lexical,
    make_lexical,
    pointer_part,
)
from wiki_assets.defs.publish import examine
from wiki_assets.defs.recipes import Blocked, Cookbook
from wiki_assets.defs.wikis import wiki_config
from wiki_assets.errors import LedgerBroken, Superseded
from wiki_assets.files import Manifest, read_manifest, verify_files
from wiki_assets.keys import Shard
from wiki_assets.resources.store import Store
from wiki_assets.settings import Settings
from wiki_assets.stages import lexical
from wiki_assets_tests.tinywiki.published import SNAPSHOT


@pytest.fixture
def book(tinywiki: Settings, tmp_path: Path) -> Cookbook:
    """The cookbook of a copy of the published tiny wiki, without its collection."""
    shutil.copytree(tinywiki.root, tmp_path / "root", ignore=shutil.ignore_patterns("chroma", "raw"))
    settings = Settings(root=str(tmp_path / "root"))
    store = Store(settings.root)
    return Cookbook(wiki_config(SNAPSHOT.wiki, settings, store), store)


def settings_of(book: Cookbook) -> Settings:
    return Settings(root=book.store.root)


def make(book: Cookbook, **changes: object) -> Manifest:
    work = LexicalWork(lexical_recipe(book, SNAPSHOT), book.shards(SNAPSHOT), book.store, **changes)  # type: ignore[arg-type]
    return make_lexical(work)


def checked(book: Cookbook) -> tuple[bool, dict]:
    manifest = made_lexical(book, SNAPSHOT)
    passages = lexical_recipe(book, SNAPSHOT).passages
    return examine_lexical(book, SNAPSHOT, settings_of(book), manifest, passages)


def test_an_index_holds_every_passage_and_finds_them(book: Cookbook) -> None:
    passed, facts = checked(book)
    assert passed
    assert facts["documents"] == facts["expected"] > 200
    assert facts["self_recall"] == 1.0


def test_another_index_lies_beside_the_one_before_and_both_stay_whole(book: Cookbook) -> None:
    first = made_lexical(book, SNAPSHOT)
    assert first is not None
    second = make(book, threads=2)
    wiki = book.store.wiki(SNAPSHOT.wiki)
    assert pointer_part(second)["folder"] > pointer_part(first)["folder"]
    assert made_lexical(book, SNAPSHOT) == read_manifest(book.store.lexical(SNAPSHOT) / "manifest.json") == second
    for manifest in (first, second):
        verify_files(wiki, manifest)
        own = read_manifest(wiki / pointer_part(manifest)["folder"] / "manifest.json")
        assert own is not None
        assert own.files == manifest.files
    left = [f.name for f in (wiki / "lexical" / SNAPSHOT.date).iterdir() if f.name.startswith("wiki_assets")]
    assert left == []


@pytest.mark.parametrize("ending", ["store", "term", "idx", "meta.json"])
def test_an_index_that_lost_a_file_is_not_made(book: Cookbook, ending: str) -> None:
    manifest = made_lexical(book, SNAPSHOT)
    assert manifest is not None
    folder = book.store.wiki(SNAPSHOT.wiki) / pointer_part(manifest)["folder"]
    next(file for file in folder.iterdir() if file.name.endswith(ending)).unlink()
    assert made_lexical(book, SNAPSHOT) is None
    make(book)
    assert checked(book)[0]


def test_changed_passages_or_code_make_it_stale(book: Cookbook, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = Shard(SNAPSHOT, 1)
    path = book.store.manifest_path("tokens", shard)
    data = path.read_bytes()
    path.unlink()
    with pytest.raises(Blocked, match="materialize tokens first"):
        lexical_recipe(book, SNAPSHOT)
    assert made_lexical(book, SNAPSHOT) is None
    path.write_bytes(data)
    assert made_lexical(book, SNAPSHOT) is not None
    monkeypatch.setattr(lexical, "CODE_VERSION", "lexical-next")
    assert made_lexical(book, SNAPSHOT) is None


def test_an_index_of_too_few_passages_is_not_vouched_for(book: Cookbook) -> None:
    before = made_lexical(book, SNAPSHOT)
    recipe = lexical_recipe(book, SNAPSHOT)
    with pytest.raises(LedgerBroken, match="passages in it"):
        make_lexical(LexicalWork(recipe, book.shards(SNAPSHOT)[:1], book.store))
    assert made_lexical(book, SNAPSHOT) == before


def test_what_a_killed_run_left_goes_and_a_superseded_run_changes_nothing(book: Cookbook) -> None:
    folder = Path(str(book.store.lexical(SNAPSHOT)))
    for name in ("wiki_assets-lexical-dead", "000099"):
        (folder / name).mkdir()
        (folder / name / "half.store").write_bytes(b"half")
    make(book)
    assert not (folder / "wiki_assets-lexical-dead").exists()
    assert not (folder / "000099").exists()
    path = book.store.lexical(SNAPSHOT) / "manifest.json"
    mine = claim(path, "slow")
    newest = make(book, run="fast")
    with pytest.raises(Superseded):
        mine.commit(newest)
    assert made_lexical(book, SNAPSHOT) == newest


def test_a_run_whose_work_was_taken_away_says_who_took_it(book: Cookbook, monkeypatch: pytest.MonkeyPatch) -> None:
    real = lexical_defs.build_index

    def overtaken(scratch: Path, *args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(lexical_defs, "build_index", real)
        make(book, run="fast")
        assert not scratch.exists(), "the later run has cleared it away"
        raise ValueError("An index writer was killed")

    monkeypatch.setattr(lexical_defs, "build_index", overtaken)
    with pytest.raises(Superseded, match=r"claimed by run fast, which has finished it after run slow had claimed it"):
        make(book, run="slow")
    assert checked(book)[0]


def test_a_failure_of_ones_own_stays_what_it_is(book: Cookbook, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: Any, **kwargs: Any) -> Any:
        raise ValueError("a bug")

    monkeypatch.setattr(lexical_defs, "build_index", failing)
    with pytest.raises(ValueError, match="a bug"):
        make(book)


def test_an_index_whose_bytes_changed_is_found_out_and_given_up(book: Cookbook) -> None:
    manifest = made_lexical(book, SNAPSHOT)
    assert manifest is not None
    folder = book.store.wiki(SNAPSHOT.wiki) / pointer_part(manifest)["folder"]
    for file in folder.iterdir():
        if file.suffix in (".idx", ".term", ".store", ".fast", ".pos"):
            file.write_bytes(b"\0" * file.stat().st_size)  # the sizes are right, the bytes are not
    passed, facts = checked(book)
    assert not passed
    assert facts
    give_up_lexical(book.store, SNAPSHOT)
    assert made_lexical(book, SNAPSHOT) is None
    make(book)
    assert checked(book)[0]


def test_a_snapshot_without_words_is_not_published(book: Cookbook) -> None:
    shutil.rmtree(str(book.store.lexical(SNAPSHOT)))
    passed, facts = examine(book, SNAPSHOT, settings_of(book)).results["words_answer"]
    assert not passed
    assert "materialize lexical_index" in facts["found"]
