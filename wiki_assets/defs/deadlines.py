"""How long a Ray task may take: a least time, and more for more data."""

from collections.abc import Callable, Mapping
from typing import Any

from wiki_assets.defs.work import Split, Work
from wiki_assets.settings import Settings

# Bytes read per second by a machine some ten times slower than the two shared cores that README's figures are from.
SLOWEST: Mapping[str, int] = {
    "split": 1_000_000,  # decoded
    "articles": 500_000,  # decoded
    "tokens": 50_000,  # of the articles file, compressed
    "embeddings": 2_500,  # of the passages file, compressed: some ten passages
}
_GPU = 20  # times faster, at the least


def deadlines(settings: Settings, *, gpu: bool = False) -> Callable[..., float]:
    """A function from what a task is given to the seconds that it may take."""

    def deadline_s(item: Split | Work, *rest: Any) -> float:
        stage = "split" if isinstance(item, Split) else item.recipe.artifact
        faster = _GPU if gpu and stage == "embeddings" else 1
        return settings.task_seconds + _size_bytes(item, *rest) / (SLOWEST[stage] * faster)

    return deadline_s


def _size_bytes(item: Split | Work, *rest: Any) -> float:
    """How much a task reads, about."""
    if isinstance(item, Split):
        return item.decoded_bytes
    if item.recipe.artifact == "articles":
        splits: list[Split] = rest[0]
        return sum(split.decoded_bytes for split in splits) / item.config.shards
    source = {"tokens": "articles", "embeddings": "passages"}[item.recipe.artifact]
    try:
        return item.store.file(source, item.recipe.shard).stat().st_size
    except FileNotFoundError:
        return 0  # the task says so itself
