"""What is done of a snapshot, by asset and shard, as rows and as a table for people."""

from collections.abc import Sequence
from typing import Any

from wiki_assets.defs.headless import is_published
from wiki_assets.defs.lexical import made_lexical
from wiki_assets.defs.recipes import STAGES, Cookbook
from wiki_assets.defs.wikis import wiki_config
from wiki_assets.keys import Snapshot
from wiki_assets.resources.store import Store
from wiki_assets.settings import Settings

_COUNTED = {"articles": "pages", "tokens": "tokens", "embeddings": "vectors", "chroma_collection": "indexed"}


def snapshot_rows(snapshot: Snapshot, settings: Settings, store: Store) -> list[dict[str, Any]]:
    """One row an asset: how many shards are done, which are not, and what they hold."""
    config = wiki_config(snapshot.wiki, settings, store)
    book = Cookbook(config, store, settings.chroma)
    raw = store.raw_manifest(snapshot)
    size = raw.counts["size_bytes"] if raw else 0
    rows = [
        _row(
            snapshot,
            "raw_dump",
            int(raw is not None),
            1,
            [] if raw else [snapshot.date],
            f"{size / 1e6:,.1f} MB" if raw else "",
        )
    ]
    for artifact in STAGES[1:-1]:
        if artifact == "lexical_index":
            words = made_lexical(book, snapshot)
            holds = f"{words.counts['documents']:,} documents" if words else ""
            rows.append(_row(snapshot, artifact, int(words is not None), 1, [] if words else [snapshot.date], holds))
            continue
        made = {shard: book.made(artifact, shard, raw) for shard in book.shards(snapshot)}
        count = _COUNTED[artifact]
        total = sum(int(m.counts.get(count, 0)) for m in made.values() if m)
        missing = [shard.name for shard, m in made.items() if m is None]
        rows.append(
            _row(
                snapshot, artifact, len(made) - len(missing), len(made), missing, f"{total:,} {count}" if total else ""
            )
        )
    published = is_published(book, snapshot)
    rows.append(_row(snapshot, "published_index", int(published), 1, [] if published else [snapshot.date], ""))
    return rows


def _row(snapshot: Snapshot, asset: str, done: int, of: int, missing: list[str], holds: str) -> dict[str, Any]:
    return {
        "wiki": snapshot.wiki,
        "snapshot": snapshot.date,
        "asset": asset,
        "done": done,
        "of": of,
        "missing": missing,
        "holds": holds,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a table: shards that are not done are named, the first few of them."""
    head = ("snapshot", "asset", "done", "holds", "not done")
    cells: list[tuple[str, ...]] = [head]
    for row in rows:
        missing = row["missing"]
        names = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        cells.append(
            (f"{row['wiki']}-{row['snapshot']}", row["asset"], f"{row['done']}/{row['of']}", row["holds"], names)
        )
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )
