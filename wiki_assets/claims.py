"""Who may write a shard's files: the run that claimed them last.

Two runs may be given one shard: two backfills overlap, or a run that was thought dead wakes up. Each claims the
shard before it works, and is given a number one above every number before it. Nothing appears in place but under
the highest number: a run that finds a higher one has been superseded, and its work is dropped. The number of what
was committed stays in its manifest, so it outlives the claim.

    <artifact>/<date>/claims/00003.000007      made exclusively: two runs cannot have one number
    <artifact>/<date>/claims/00003.lock        held while a file is put in place, on a file system

An object store has no lock, and between looking and writing a run may pause. There nothing is replaced, only removed
and made again (files.py), and the last claim stays, so that no number is given twice.
"""

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from upath import UPath

from wiki_assets.errors import Superseded
from wiki_assets.files import (
    Manifest,
    clear_leftovers,
    is_local,
    local_path,
    locked,
    make_file,
    names_in,
    naming_no_space,
    read_manifest,
    remove,
    sync_folder,
    write_json,
)


@dataclass(frozen=True)
class Claim:
    """The right to write what one manifest vouches for, while nobody claims it again."""

    manifest_path: UPath | Path
    number: int
    run: str

    @contextmanager
    def fence(self) -> Iterator[None]:
        """Entered to put a file in place. What was there is vouched for no longer, from before it is replaced.

        Raises:
            Superseded: if somebody claimed this after us.
        """
        with self._alone():
            if not is_local(self.manifest_path):
                remove(self.manifest_path)
            elif self.manifest_path.exists():
                self.manifest_path.unlink()
                sync_folder(local_path(self.manifest_path).parent)
            yield

    def commit(self, manifest: Manifest) -> Manifest:
        """Write the manifest, last of all, and give the claim back.

        Raises:
            Superseded: if somebody claimed this after us.
        """
        manifest = msgspec.structs.replace(manifest, claim=self.number, run=self.run)
        write_json(self.manifest_path, manifest, fence=self._alone)
        if is_local(self.manifest_path):
            _path(self.manifest_path, self.number).unlink(missing_ok=True)
        else:
            self._require_still()
        return manifest

    def _require_still(self) -> None:
        """Take our word back if we were superseded just before it was in place: the files may be the other run's."""
        try:
            self.require()
        except Superseded:
            found = read_manifest(self.manifest_path)
            if found and found.claim == self.number:
                remove(self.manifest_path)
            raise

    def require(self) -> None:
        """Raise `Superseded` if there is a claim with a higher number, or a result of one."""
        number = _highest(self.manifest_path)
        if number > self.number:
            other = _holder(self.manifest_path, number)
            raise Superseded(
                f"{self.manifest_path}: claimed by {other} after run {self.run or 'here'} had claimed it "
                f"(claims {number} and {self.number}): this result is dropped, the other run's stands; "
                "terminate one of the two runs if both go on"
            )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """With the highest claim; on a file system, nobody else looks at claims or puts a file in place meanwhile."""
        with locked(_folder(self.manifest_path) / f"{self.manifest_path.stem}.lock"):
            self.require()
            yield


def claim(manifest_path: UPath | Path, run: str = "", *, writes: Sequence[UPath | Path] = ()) -> Claim:
    """Claim what a manifest vouches for; whoever held it may go on working, but not put anything in place.

    Args:
        manifest_path: of the artifact's shard.
        run: for the message to whoever is superseded.
        writes: the files that will be written; what killed or superseded runs left half-written of them goes.

    Raises:
        Superseded: if somebody claims it at this moment.
        NoSpace: if the disk is full.
    """
    who = {
        "run": run,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with naming_no_space(manifest_path):
        if is_local(manifest_path):
            _folder(manifest_path).mkdir(parents=True, exist_ok=True)
        number = _highest(manifest_path)
        while True:
            number += 1
            try:
                make_file(_path(manifest_path, number), msgspec.json.encode(who))
            except FileExistsError:
                continue
            made = read_manifest(manifest_path)
            if made is None or made.claim < number:
                break
            remove(_path(manifest_path, number))  # whoever had it gave it back between our looking and our making it
    mine = Claim(manifest_path, number, run)
    with mine._alone():
        for older in _numbers(manifest_path):
            if older < number:
                remove(_path(manifest_path, older))
        for target in (*writes, manifest_path):
            clear_leftovers(target)
    return mine


def _folder(manifest_path: UPath | Path) -> UPath | Path:
    return manifest_path.parent / "claims"


def _path(manifest_path: UPath | Path, number: int) -> UPath | Path:
    return _folder(manifest_path) / f"{manifest_path.stem}.{number:06d}"


def _numbers(manifest_path: UPath | Path) -> list[int]:
    """The claims there are, of any run."""
    names = names_in(_folder(manifest_path))
    ends = [name.removeprefix(f"{manifest_path.stem}.") for name in names if name.startswith(f"{manifest_path.stem}.")]
    return [int(end) for end in ends if end.isdecimal()]


def _highest(manifest_path: UPath | Path) -> int:
    manifest = read_manifest(manifest_path)
    return max([*_numbers(manifest_path), manifest.claim if manifest else 0], default=0)


def _holder(manifest_path: UPath | Path, number: int) -> str:
    """Who has a claim, as far as can be said."""
    try:
        who = msgspec.json.decode(_path(manifest_path, number).read_bytes(), type=dict[str, object])
        return f"run {who['run'] or '?'} (process {who['pid']} on {who['host']}, {who['at']})"
    except (OSError, ValueError, KeyError):
        manifest = read_manifest(manifest_path)
        return f"run {manifest.run or '?'}, which has finished it" if manifest else "another run"
