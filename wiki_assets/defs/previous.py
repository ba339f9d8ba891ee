"""The same shard in earlier snapshots: what it is compared with, and where its vectors come from.

A shard's recipe does not know of them: with or without an earlier snapshot the same shard comes out, and only what it
cost differs. A vector that is taken over is, bit for bit, the one that was made of the same word pieces by the same
model.
"""

import logging
from collections.abc import Callable, Iterator

from wiki_assets.defs.recipes import Recipe
from wiki_assets.errors import DamagedArtifact
from wiki_assets.files import Manifest, verify_files
from wiki_assets.keys import Shard, Snapshot
from wiki_assets.resources.store import Store

logger = logging.getLogger(__name__)


def earlier(
    store: Store, artifact: str, shard: Shard, good: Callable[[Manifest], bool] = lambda manifest: True
) -> Iterator[tuple[Shard, Manifest]]:
    """The same shard of older snapshots, newest first, where an artifact of it is there and `good`. Reads manifests."""
    snapshot = shard.snapshot
    for date in reversed(store.dates(snapshot.wiki, artifact)):
        if date < snapshot.date:
            older = Shard(Snapshot(snapshot.wiki, date), shard.number)
            if (manifest := store.manifest(artifact, older)) and good(manifest):
                yield older, manifest


def compared_with(store: Store, shard: Shard) -> Shard | None:
    """The newest older snapshot's shard whose articles are, byte for byte, what their manifest says."""
    proven = (older for older, manifest in earlier(store, "articles", shard) if _proven(store, older, manifest))
    return next(proven, None)


def sources_of_vectors(store: Store, recipe: Recipe) -> list[tuple[Shard, Manifest]]:
    """Where vectors may be taken from, the one to prefer first; each file is proven by its SHA-256.

    They are those of the newest older snapshot that were made alike; and before them the shard's own, if they are to be
    made again because its passages were.
    """
    shard = recipe.shard
    own = store.manifest("embeddings", shard)
    mine = [(shard, own)] if own and made_alike(own, recipe) and _proven(store, shard, own) else []
    older = earlier(store, "embeddings", shard, lambda manifest: made_alike(manifest, recipe))
    return mine + next(([found] for found in older if _proven(store, *found)), [])


def made_alike(manifest: Manifest, recipe: Recipe) -> bool:
    """Whether vectors are such as a recipe would make: by the same model, of one width and dtype, with the same code.

    The model's name may differ: a folder, or a hub's id. Its files' hash may not.
    """
    same = ("model_sha256", "dim", "dtype")
    return (
        manifest.code_version.partition(":")[0] == recipe.code_version.partition(":")[0]
        and [manifest.params.get(name) for name in same] == [recipe.params[name] for name in same]
    )  # fmt: skip


def _proven(store: Store, shard: Shard, manifest: Manifest) -> bool:
    try:
        verify_files(store.wiki(shard.snapshot.wiki), manifest)
    except (DamagedArtifact, OSError) as error:
        logger.warning("%s %s is not used: %s", shard, manifest.artifact, error)
        return False
    return True
