"""A published index of tinywiki, made by the stages themselves, in this process: no Ray, no Dagster run.

    python -m wiki_assets_tests.tinywiki.published FOLDER

makes one to ask and to serve: ``WIKI_ASSETS_ROOT=FOLDER wiki-assets serve``.
"""

import sys
from pathlib import Path
from typing import Any

import msgspec

from wiki_assets.defs.evaluation import evaluation_recipe, make_evaluation
from wiki_assets.defs.indexing import index_shards
from wiki_assets.defs.lexical import LexicalWork, lexical_recipe, made_lexical, make_lexical
from wiki_assets.defs.publish import examine, publish
from wiki_assets.defs.raw import fetch_snapshot
from wiki_assets.defs.recipes import Cookbook
from wiki_assets.defs.wikis import wiki_config
from wiki_assets.defs.work import (
    Work,
    make_articles,
    make_embeddings,
    make_tokens,
    split_dump_file,
    splits_of,
)
from wiki_assets.keys import Snapshot
from wiki_assets.resources.mirror import DumpMirror
from wiki_assets.resources.store import Store
from wiki_assets.settings import Settings
from wiki_assets_tests.tinywiki.serve import DUMPS, serving

SNAPSHOT = Snapshot("tinywiki", "20250105")


def publish_tinywiki(root: Path, *, shards: int = 2, dumps: Path = DUMPS) -> Settings:
    """Make and publish tinywiki under `root`.

    Args:
        root: the data root; made if it is not there.
        shards: how many.
        dumps: the folder that stands for the dump server's root.

    Returns:
        Settings of a deployment with that root.
    """
    settings = Settings(root=str(root), shards=shards)
    book = _cookbook(settings)
    book.store.fix_shard_count(SNAPSHOT.wiki, shards)
    with serving(dumps) as mirror:
        fetch_snapshot(SNAPSHOT, DumpMirror(base_url=mirror), book.store, lambda line: None)
    splits = splits_of(book.store, book.config, SNAPSHOT)
    for split in splits:
        split_dump_file(split)
    for artifact, make in (("articles", make_articles), ("tokens", make_tokens), ("embeddings", make_embeddings)):
        for shard in book.shards(SNAPSHOT):
            work = Work(book.recipe(artifact, shard), book.config, book.store, settings)
            make(work, *([splits] if artifact == "articles" else []))
    _index_and_publish(book, settings)
    return settings


def publish_again(settings: Settings) -> dict[str, Any]:
    """Publish the next build of the same snapshot, as after a rebuild of the index.

    Returns:
        The pointer as it stands now.
    """
    book = _cookbook(settings)
    build = book.current_build(SNAPSHOT)
    assert build is not None, "nothing is published yet"
    book.give_up_build(SNAPSHOT, build, "another build was asked for")
    return _index_and_publish(book, settings)


def _cookbook(settings: Settings) -> Cookbook:
    store = Store(settings.root)
    config = msgspec.structs.replace(wiki_config(SNAPSHOT.wiki, settings, store), own_questions=0)
    return Cookbook(config, store, settings.chroma)


def _index_and_publish(book: Cookbook, settings: Settings) -> dict[str, Any]:
    recipes = [book.recipe("chroma_collection", shard) for shard in book.shards(SNAPSHOT)]
    for recipe, result in index_shards(book, settings, SNAPSHOT, recipes):
        assert not isinstance(result, Exception), f"{recipe.shard}: {result}"
    if made_lexical(book, SNAPSHOT) is None:
        make_lexical(LexicalWork(lexical_recipe(book, SNAPSHOT), book.shards(SNAPSHOT), book.store))
    make_evaluation(evaluation_recipe(book, SNAPSHOT), book.store, settings)
    gate = examine(book, SNAPSHOT, settings)
    assert gate.passed, gate.reasons
    return publish(book, SNAPSHOT, gate)


if __name__ == "__main__":
    publish_tinywiki(Path(sys.argv[1]))
