"""Fetch a snapshot's dump files, and vouch for them: the manifest is the one checksum there is."""

import time
from collections.abc import Callable

import msgspec

from wiki_assets.defs.recipes import RAW_VERSION
from wiki_assets.files import FileRecord, Manifest, fingerprint, read_json, write_json
from wiki_assets.keys import Snapshot
from wiki_assets.resources.download import FetchedFile
from wiki_assets.resources.mirror import DumpMirror
from wiki_assets.resources.store import Store

_SAY_EVERY_S = 5.0


def fetch_snapshot(snapshot: Snapshot, mirror: DumpMirror, store: Store, say: Callable[[str], object]) -> Manifest:
    """Fetch what is not here yet. A snapshot that is here whole is left alone, and the server is not asked.

    Args:
        snapshot: which one.
        mirror: where from.
        store: where to.
        say: told now and then how far it is.

    Returns:
        The manifest, written last.

    Raises:
        SourceUnavailable: if the server does not have it, or does not give it.
        CorruptDump: if what it gives is not a whole dump file.
    """
    made = store.raw_manifest(snapshot)
    if made is not None:
        say(f"{snapshot}: {len(made.files)} dump files are here already")
        return made
    folder = store.raw(snapshot)
    notes = folder / "fetched.json"
    known = {name: msgspec.convert(note, FetchedFile) for name, note in (read_json(notes) or {}).items()}
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
    write_json(folder / "manifest.json", manifest)
    notes.unlink(missing_ok=True)
    return manifest
