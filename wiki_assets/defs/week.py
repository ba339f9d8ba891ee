"""What a snapshot brought and what it cost, over its shards: pages by what became of them, vectors taken over."""

from collections.abc import Mapping, Sequence
from typing import Any

from wiki_assets.defs.checks import totals
from wiki_assets.files import Manifest
from wiki_assets.stages.delta import LEDGER

_SAVED = ("seconds_saved", "gpu_seconds_saved")


def week_of(made: Mapping[str, Sequence[Manifest]]) -> dict[str, Any]:
    """What became of the pages since the snapshot before, and of how many passages the vectors were taken over.

    Args:
        made: manifests of `articles` and `embeddings`, as many shards as are made.

    Returns:
        compared_with, the date of the snapshot before (several, where shards differ in that), and the counts named in
        `LEDGER`, if there was one; passages, passages_reused, passages_reused_percent, and the seconds that this saved.
    """
    facts: dict[str, Any] = {}
    articles, embeddings = made.get("articles", ()), made.get("embeddings", ())
    if dates := sorted({m.counts["compared_with"] for m in articles if "compared_with" in m.counts}):
        facts |= {"compared_with": ", ".join(dates), **totals(articles, *LEDGER)}
    if embeddings:
        n = totals(embeddings, "passages", "passages_reused", "passages_embedded")
        facts |= {**n, "passages_reused_percent": percent(n["passages_reused"], n["passages"])}
        for name in _SAVED:
            if saved := sum(float(m.stats.get(name, 0)) for m in embeddings):
                facts[name] = round(saved, 1)
    return facts


def percent(part: int, whole: int) -> float:
    """With two digits; never 100 where anything is missing, nor 0 where there is anything."""
    if part in (0, whole):
        return 100.0 if part else 0.0
    return min(99.99, max(0.01, round(100 * part / whole, 2)))
