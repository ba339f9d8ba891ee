"""Deliberately broken builds of the commit protocol. Each is applied with `planted`: here, and in children."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

from wiki_assets import claims, files
from wiki_assets.defs import work
from wiki_assets.defs.recipes import Cookbook


class _NoFileSync:
    """`os`, but files are not synced; folders are."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def fsync(self, handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            os.fsync(handle)


def no_file_sync() -> Any:
    """Renames a file whose bytes are still in memory."""
    return mock.patch.object(files, "os", _NoFileSync())


@contextmanager
def no_folder_sync() -> Iterator[None]:
    """Says "done" while the name is still in memory."""
    with mock.patch.object(files, "sync_folder"), mock.patch.object(claims, "sync_folder"):
        yield


@contextmanager
def _in_place(target: Any, check: Any = None, fence: Any = nullcontext) -> Iterator[Any]:
    path = Path(str(target))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as raw:
        out = files._Hashing(raw)
        yield out
        raw.flush()
        os.fsync(raw.fileno())
    with fence():
        pass


@contextmanager
def write_in_place() -> Iterator[None]:
    """Writes to the final name."""
    with mock.patch.object(files, "whole_file", _in_place), mock.patch.object(work, "whole_file", _in_place):
        yield


@contextmanager
def old_manifest_stays() -> Iterator[None]:
    """Replaces data while the old manifest still vouches for them."""

    @contextmanager
    def fence(self: claims.Claim) -> Iterator[None]:
        with self._alone():
            yield

    with mock.patch.object(claims.Claim, "fence", fence):
        yield


def claims_mean_nothing() -> Any:
    """Publishes whatever claims there are."""
    return mock.patch.object(claims.Claim, "require")


def nothing_is_reused() -> Any:
    """Makes everything again, every time."""
    return mock.patch.object(Cookbook, "made_by", return_value=None)


@contextmanager
def leftovers_stay() -> Iterator[None]:
    """Never clears away what killed runs left."""
    with mock.patch.object(claims, "clear_leftovers"), mock.patch.object(files, "clear_leftovers"):
        yield
