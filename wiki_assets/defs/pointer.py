"""What a pointer says of a build: written to `published.json` when it is published, and asked by it before that."""

from typing import Any

from wiki_assets.defs.lexical import pointer_part
from wiki_assets.defs.recipes import Cookbook, code_version, collection_name
from wiki_assets.files import Manifest
from wiki_assets.keys import Snapshot


def draft(
    book: Cookbook, snapshot: Snapshot, words: Manifest, *, build: int, pages: int, passages: int
) -> dict[str, Any]:
    """What the pointer will say of a build of a snapshot's index.

    Args:
        book: the wiki's recipes.
        snapshot: which one.
        words: the manifest of its lexical index.
        build: the number of its collection.
        pages: how many are in the index.
        passages: how many rows the collection has.
    """
    model = book.config.find_model()
    return {
        "wiki": snapshot.wiki,
        "snapshot": snapshot.date,
        "build": build,
        "collection": collection_name(snapshot, build),
        "server": book.chroma,
        "model": {"name": model.name, "sha256": model.sha256, "dim": model.dim},
        "pages": pages,
        "passages": passages,
        "cut": code_version("tokens", book.config),
        "shards": book.config.shards,
        "lexical": pointer_part(words),
    }
