"""The bytes of a download that have arrived so far, so that a later process can go on from them.

They lie in `<name>.partial`; the note beside it, `<name>.partial.json`, says which edition of which file they
belong to. Bytes without a note, or with another file's, are forgotten. What lies in place of either may be anybody's:
a link is not followed, and bytes for an object store wait where only we can write.
"""

import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

import msgspec
from upath import UPath

from wiki_assets.errors import StoreLocked, WikiAssetsError
from wiki_assets.files import clear_leftovers, is_local, spool_folder, sync_folder, write_json


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """Which edition of which file the partial bytes belong to."""

    url: str
    etag: str | None
    last_modified: str | None
    validator: str | None
    size_bytes: int


def partial_path(folder: UPath | Path, name: str) -> Path:
    """Where a download into `folder` gathers its bytes; the folder is made.

    Raises:
        WikiAssetsError: if another user could have put bytes there.
    """
    if is_local(folder):
        place = Path(cast(Path, folder))
        place.mkdir(parents=True, exist_ok=True)
        return place / f"{name}.partial"
    return spool_folder(folder) / f"{name}.partial"


def forget_note(path: Path) -> None:
    """Drop the note of a partial file that a killed process had put in place already."""
    if not path.exists():
        path.with_name(f"{path.name}.json").unlink(missing_ok=True)


class PartialFile:
    """The bytes that have arrived so far, held by one process at a time."""

    def __init__(self, path: Path, handle: BinaryIO, url: str, on_progress: Callable[[int], object]) -> None:
        self.path, self._handle, self._url, self._on_progress = path, handle, url, on_progress
        self._note_path = path.with_name(f"{path.name}.json")
        clear_leftovers(self._note_path)
        self.note = self._read_note()
        self.size = handle.seek(0, os.SEEK_END)
        if self.size and self.note is None:
            self.clear(told=False)
        if self.size:
            on_progress(self.size)

    @classmethod
    @contextmanager
    def opened(cls, path: Path, url: str, on_progress: Callable[[int], object]) -> Iterator["PartialFile"]:
        """Open, or begin, the partial file of a download.

        Raises:
            StoreLocked: if another process, or another thread, is downloading it.
            WikiAssetsError: if a link, or no file, lies there.
        """
        with suppress(FileNotFoundError):
            found = path.lstat()
            if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
                raise WikiAssetsError(f"{path}: a link, or no file; expected the bytes of a download: delete it")
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        with cast(BinaryIO, open(number, "r+b", buffering=0)) as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                ours = os.path.samestat(os.fstat(handle.fileno()), path.stat())
            except (BlockingIOError, FileNotFoundError):
                ours = False
            if not ours:  # held, or renamed into place between our opening and our locking it
                raise StoreLocked(f"{path}: another process is downloading it: wait for it, or end it, then run again")
            partial = cls(path, handle, url, on_progress)
            try:
                yield partial
            finally:
                if not partial.size:  # nothing arrived: leave nothing
                    partial._note_path.unlink(missing_ok=True)
                    path.unlink(missing_ok=True)

    def clear(self, *, told: bool = True) -> None:
        """Forget what arrived."""
        self._handle.truncate(0)
        self._handle.seek(0)
        os.fsync(self._handle.fileno())  # the old bytes are gone before a note of another edition exists
        self._note_path.unlink(missing_ok=True)
        if told and self.size:
            self._on_progress(-self.size)
        self.size, self.note = 0, None

    def begin(self, note: Note) -> None:
        """Start from the first byte of the edition that `note` describes."""
        self.clear()
        self.note = note
        if note.validator:
            write_json(self._note_path, note)

    def append(self, data: bytes) -> None:
        """Add what arrived next; as much as fits stays if the disk is full."""
        view = memoryview(data)
        while view:
            n = self._handle.write(view)
            self.size += n
            self._on_progress(n)
            view = view[n:]

    def sync(self) -> None:
        """Make what arrived durable, where it lies."""
        os.fsync(self._handle.fileno())

    def put_in_place(self, target: UPath | Path) -> None:
        """Make the bytes durable under their name; the note goes."""
        self.sync()
        if is_local(target):
            os.replace(self.path, self.path.with_name(target.name))
            sync_folder(self.path.parent)
        else:
            cast(UPath, target).fs.put_file(str(self.path), cast(UPath, target).path)
            self.path.unlink()
        self._note_path.unlink(missing_ok=True)

    def _read_note(self) -> Note | None:
        try:
            note = msgspec.json.decode(self._note_path.read_bytes(), type=Note)
        except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
            return None
        return note if note.url == self._url and note.validator else None
