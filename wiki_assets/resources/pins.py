"""Which builds somebody reads: a shared lock on the build's folder, which the kernel gives back with the process.

An embedded Chroma opens its files again while it answers, so that a store whose folder is deleted fails under whoever
has it open; and of a pinned build the articles are read page by page. Retention leaves pinned builds for the next time.
Only for folders on a file system of this machine's, which is where embedded stores are.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from upath import UPath

from wiki_assets.files import is_local, local_path


@contextmanager
def pinned(folder: UPath | Path) -> Iterator[None]:
    """Keep a build while the block runs; any number of readers may. Nothing where it is not on a disk, or not there."""
    handle = _opened(folder)
    try:
        if handle is not None:
            _lock(handle, fcntl.LOCK_SH)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def is_pinned(folder: UPath | Path) -> bool:
    """Whether any process keeps a build now."""
    handle = _opened(folder)
    if handle is None:
        return False
    try:
        return not _lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(handle)


def _opened(folder: UPath | Path) -> int | None:
    if not is_local(folder):
        return None
    try:
        return os.open(local_path(folder), os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None


def _lock(handle: int, how: int) -> bool:
    """Whether the lock was had; true as well on a file system that has none for folders, such as NFS."""
    try:
        fcntl.flock(handle, how)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
