"""Fetch a snapshot's dump files, and vouch for them: the manifest is the one checksum there is."""

import time
from collections.abc import Callable
from typing import Any

import dagster as dg
import msgspec
from upath import UPath

from wiki_assets.defs.recipes import RAW_VERSION
from wiki_assets.errors import SourceUnavailable
from wiki_assets.files import FileRecord, Manifest, clear_leftovers, fingerprint, read_manifest, write_json
from wiki_assets.keys import Snapshot
from wiki_assets.resources.download import FetchedFile
from wiki_assets.resources.mirror import DumpMirror
from wiki_assets.resources.store import Store

_SAY_EVERY_S = 5.0


def raw_facts(manifest: Manifest, folder: str) -> dict[str, Any]:
    """What Dagster is told of a snapshot's dump files."""
    facts = manifest.counts
    return {
        "files": len(facts["files"]),
        "size_bytes": facts["size_bytes"],
        "decoded_bytes": facts["decoded_bytes"],
        "seconds": manifest.stats.get("seconds", 0.0),
        "path": dg.MetadataValue.path(folder),
        **({"ledger": dg.MetadataValue.json(facts["ledger"])} if "ledger" in facts else {}),
        "published_files": dg.MetadataValue.json(
            [{k: f[k] for k in ("name", "url", "size_bytes", "sha256")} for f in facts["files"]]
        ),
    }


def require_dump(snapshot: Snapshot, store: Store) -> None:
    """Refuse to ask a dump server for a snapshot that was made here.

    Raises:
        SourceUnavailable: naming the commands that make one.
    """
    if snapshot.is_own:
        raise SourceUnavailable(
            f"{snapshot}: no dump has such a date, and its files are not whole in {store.raw(snapshot)}: make it with "
            f"wiki-assets fetch-pages {snapshot.wiki} or wiki-assets import {snapshot.wiki}"
        )


def fetch_snapshot(snapshot: Snapshot, mirror: DumpMirror, store: Store, say: Callable[[str], object]) -> Manifest:
    """Fetch what is not here yet. A snapshot that is here whole is left alone, and the server is not asked.

    What was fetched once stays the truth: a file that is lost is fetched again only as the very bytes it was.

    Args:
        snapshot: which one.
        mirror: where from.
        store: where to.
        say: told now and then how far it is.

    Returns:
        The manifest, written last.

    Raises:
        SourceUnavailable: if the server does not have it, or does not give it.
        CorruptDump: if what it gives is not a whole dump file, or not the one that was fetched before.
    """
    folder = store.raw(snapshot)
    notes, manifest_path = folder / "fetched.json", folder / "manifest.json"
    made = store.raw_manifest(snapshot)
    if made is not None:
        say(f"{snapshot}: {len(made.files)} dump files are here already")
        notes.unlink(missing_ok=True)  # left by who was killed just before that
        return made
    require_dump(snapshot, store)
    for path in (notes, manifest_path):
        clear_leftovers(path)
    known = _recorded(manifest_path) | _noted(notes)
    files = mirror.dump_files(snapshot)
    total = sum(file.size_bytes or 0 for file in files)
    started = said = time.monotonic()
    arrived = 0

    def progress(n_bytes: int) -> None:
        nonlocal arrived, said
        arrived += n_bytes
        if (now := time.monotonic()) - said >= _SAY_EVERY_S:
            said = now
            say(
                f"{snapshot}: {arrived / 1e6:,.0f} of {total / 1e6:,.0f} MB, {arrived / 1e6 / (now - started):.1f} MB/s"
            )

    def remember(file: FetchedFile) -> None:
        known[file.name] = file
        write_json(notes, known)

    say(f"{snapshot}: {len(files)} dump files, {total / 1e6:,.1f} MB, from {mirror.base_url}")
    fetched = mirror.fetch_all(snapshot, folder, progress, known=known, on_fetched=remember)
    hashes = {file.name: file.sha256 for file in fetched}
    manifest = Manifest(
        artifact="raw_dump",
        wiki=snapshot.wiki,
        snapshot=snapshot.date,
        fingerprint=fingerprint(RAW_VERSION, hashes),
        code_version=RAW_VERSION,
        params={},
        inputs={},
        files={f"raw/{snapshot.date}/{file.name}": FileRecord(file.size_bytes, file.sha256) for file in fetched},
        counts={
            "files": [msgspec.to_builtins(file) for file in fetched],
            "size_bytes": sum(file.size_bytes for file in fetched),
            "decoded_bytes": sum(file.decoded_bytes for file in fetched),
        },
        stats={"seconds": round(time.monotonic() - started, 1)},
    )
    write_json(manifest_path, manifest)
    notes.unlink(missing_ok=True)
    return manifest


def _noted(notes: UPath) -> dict[str, FetchedFile]:
    """What a run that was killed had fetched; nothing where that cannot be read."""
    try:
        return msgspec.json.decode(notes.read_bytes(), type=dict[str, FetchedFile])
    except (FileNotFoundError, ValueError):
        return {}


def _recorded(manifest_path: UPath) -> dict[str, FetchedFile]:
    """What the manifest says of a snapshot of which a file is lost."""
    manifest = read_manifest(manifest_path)
    try:
        return {
            file.name: file for file in msgspec.convert(manifest.counts["files"] if manifest else [], list[FetchedFile])
        }
    except (KeyError, ValueError):
        return {}
