"""What is done of a snapshot, by asset and shard, as rows and as a table for people."""

from collections.abc import Sequence
from typing import Any

from wiki_assets.defs.evaluation import evaluation_line, made_evaluation
from wiki_assets.defs.headless import is_published
from wiki_assets.defs.lexical import made_lexical
from wiki_assets.defs.recipes import STAGES, Cookbook, collection_name
from wiki_assets.defs.rollback import was_rolled_back
from wiki_assets.defs.week import week_of
from wiki_assets.defs.wikis import wiki_config
from wiki_assets.keys import Snapshot
from wiki_assets.resources.store import Store
from wiki_assets.settings import Settings
from wiki_assets.stages.delta import LEDGER

_OF_DATE = {
    "lexical_index": (made_lexical, lambda manifest: f"{manifest.counts['documents']:,} documents"),
    "evaluation": (made_evaluation, evaluation_line),
}
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
        if artifact in _OF_DATE:
            made_now, holding = _OF_DATE[artifact]
            manifest = made_now(book, snapshot)
            absent = [] if manifest else [snapshot.date]
            rows.append(_row(snapshot, artifact, 1 - len(absent), 1, absent, holding(manifest) if manifest else ""))
            continue
        made = {shard: book.made(artifact, shard, raw) for shard in book.shards(snapshot)}
        count = _COUNTED[artifact]
        there = [m for m in made.values() if m]
        total = sum(int(m.counts.get(count, 0)) for m in there)
        missing = [shard.name for shard, m in made.items() if m is None]
        row = _row(
            snapshot, artifact, len(made) - len(missing), len(made), missing, f"{total:,} {count}" if total else ""
        )
        rows.append(row | ({"week": week} if (week := week_of({artifact: there})) else {}))
    published = is_published(book, snapshot)
    build = book.current_build(snapshot)
    taken_back = build is not None and was_rolled_back(
        book.store.pointer(snapshot.wiki), collection_name(snapshot, build)
    )
    holds = "rolled back" if taken_back else ""
    rows.append(_row(snapshot, "published_index", int(published), 1, [] if published else [snapshot.date], holds))
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
    cells: list[tuple[str, ...]] = [("snapshot", "asset", "done", "holds", "not done")]
    for row in rows:
        missing = row["missing"]
        names = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        cells.append(
            (f"{row['wiki']}-{row['snapshot']}", row["asset"], f"{row['done']}/{row['of']}", row["holds"], names)
        )
    return aligned(cells)


def week_table(rows: Sequence[dict[str, Any]]) -> str:
    """What each snapshot brought against the one before, and what its vectors cost; empty where there is no such one.

    Args:
        rows: as `snapshot_rows` gives them, of any number of snapshots.
    """
    weeks: dict[str, dict[str, Any]] = {}
    for row in rows:
        weeks.setdefault(f"{row['wiki']}-{row['snapshot']}", {}).update(row.get("week", {}))
    head = ("snapshot", "against", "added", "changed", "moved", "deleted", "unchanged", "passages reused", "saved")
    cells: list[tuple[str, ...]] = [head]
    for snapshot, week in weeks.items():
        if "compared_with" not in week and not week.get("passages_reused"):
            continue
        pages = [f"{week[name]:,}" if name in week else "" for name in LEDGER]
        reused = f"{week['passages_reused']:,} ({week['passages_reused_percent']:g} %)" if "passages" in week else ""
        cells.append((snapshot, week.get("compared_with", ""), *pages, reused, _saved(week)))
    return aligned(cells) if len(cells) > 1 else ""


def _saved(week: dict[str, Any]) -> str:
    """Seconds, of GPUs or of CPU workers."""
    kinds = {"gpu_seconds_saved": "GPU s", "seconds_saved": "s"}
    return ", ".join(f"{week[name]:,.0f} {unit}" for name, unit in kinds.items() if name in week)


def aligned(cells: Sequence[Sequence[str]]) -> str:
    """Lines of cells, in columns."""
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )
