"""Files that are read by mapping them into memory, brought to this machine's disk once and checked there."""

import os
import shutil
import uuid
from pathlib import Path

from upath import UPath

from wiki_assets.errors import DamagedArtifact
from wiki_assets.files import Manifest, is_local, sizes_agree, verify_files

_KEPT = 2  # copies of a wiki: that of what is published, and the one before


def local_copy(folder: UPath | Path, manifest: Manifest, base: UPath | Path, cache: Path) -> Path:
    """A folder on this machine's disk that holds the files of a manifest, byte for byte.

    Args:
        folder: where they are: below `base`, on a disk or in an object store.
        manifest: names the files, relative to `base`.
        base: the wiki's folder.
        cache: where copies are kept; only the newest few of a wiki stay.

    Returns:
        `folder` itself if it is on a disk and can be written to (its reader leaves a lock file there); else a copy,
        made the first time and proven by SHA-256.

    Raises:
        DamagedArtifact: if a file is missing or is not the one that the manifest describes.
    """
    if is_local(folder) and os.access(str(folder), os.W_OK):
        if not sizes_agree(base, manifest):
            raise DamagedArtifact(f"{folder}: a file is missing or has another size: materialize {manifest.artifact}")
        return Path(str(folder))
    wiki = cache / manifest.artifact / manifest.wiki
    target = wiki / f"{manifest.snapshot}-{manifest.data_version[:16]}"
    if not target.is_dir():
        working = wiki / f".{target.name}.{uuid.uuid4().hex[:8]}"
        try:
            for name in manifest.files:
                copy = working / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                try:
                    with (base / name).open("rb") as source, copy.open("xb") as out:
                        shutil.copyfileobj(source, out, 1 << 20)
                except FileNotFoundError:
                    raise DamagedArtifact(f"{base / name}: missing: materialize {manifest.artifact} again") from None
            verify_files(working, manifest)
            try:
                (working / next(iter(manifest.files))).parent.rename(target)
            except OSError:
                if not target.is_dir():  # another process was faster otherwise
                    raise
        finally:
            shutil.rmtree(working, ignore_errors=True)
        _forget(wiki, keep=target)
    return target


def _forget(wiki: Path, keep: Path) -> None:
    """Delete all but the newest copies. Who has one open keeps what is mapped."""
    copies = sorted((f for f in wiki.iterdir() if f.is_dir() and f.name[0] != "."), key=lambda f: f.stat().st_mtime)
    for old in copies[:-_KEPT]:
        if old != keep:
            shutil.rmtree(old, ignore_errors=True)
