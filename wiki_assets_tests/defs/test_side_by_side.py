"""Wikis in several languages under one root, made in turns: each is whole, and none touches another."""

import pytest

from wiki_assets.defs.raw import fetch_snapshot
from wiki_assets.defs.recipes import Cookbook
from wiki_assets.defs.wikis import wiki_config
from wiki_assets.files import verify_files
from wiki_assets.keys import Snapshot
from wiki_assets.resources.mirror import DumpMirror
from wiki_assets.resources.store import Store
from wiki_assets.settings import Settings
from wiki_assets_tests.chaos.plain import Plain
from wiki_assets_tests.tinywiki.serve import serving

N_PAGES = {"frwiki": 1_500, "dewiki": 1_000, "jawiki": 1_000, "ltgwiki": 896}


@pytest.mark.realdata
def test_four_wikis_share_a_root_and_nothing_else(sample_data, tmp_path):
    settings = Settings(root=str(tmp_path))
    store = Store(settings.root)
    plains = []
    with serving(sample_data / "dumps") as mirror:
        for shards, wiki in enumerate(N_PAGES, start=1):
            snapshot = Snapshot(wiki, "20260823")
            store.fix_shard_count(wiki, shards)
            book = Cookbook(wiki_config(wiki, settings, store), store)
            fetch_snapshot(snapshot, DumpMirror(base_url=mirror), store, lambda line: None)
            plains.append(Plain(book, settings, snapshot))
    for step in ("split", "articles", "tokens"):  # in turns, as a daemon makes them
        for plain in plains:
            assert plain.step(step) == (1 if step == "split" else plain.book.config.shards)
    for plain in plains:
        wiki = plain.snapshot.wiki
        made = [m for shard in plain.book.shards(plain.snapshot) if (m := plain.book.made("tokens", shard))]
        assert len(made) == plain.book.config.shards
        assert sum(m.counts["pages"] for m in made) == N_PAGES[wiki]
        for manifest in made:
            verify_files(store.wiki(wiki), manifest)
            counts = manifest.counts
            assert counts["covered_chars"] == counts["text_chars"] and not counts["truncated"]
    assert store.wikis() == sorted(N_PAGES)
