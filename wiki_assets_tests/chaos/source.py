"""What the checks of the source share: dumps that do not pack well, who offers them, and how asking ends."""

import bz2
import gzip
import hashlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from wiki_assets.defs.raw import fetch_snapshot
from wiki_assets.errors import WikiAssetsError
from wiki_assets.files import Manifest
from wiki_assets.keys import Snapshot
from wiki_assets.resources.mirror import DumpMirror, RemoteFile
from wiki_assets.resources.store import Store
from wiki_assets_tests.resources.faulty_server import FaultyServer
from wiki_assets_tests.stages.dump_lines import pair

SNAPSHOT = Snapshot("xwiki", "20260823")
FOLDER = "/other/cirrus_search_index/20260823/index_name=xwiki_content/"
NAME = "xwiki_content-20260823-00000.json.bz2"
PATH = FOLDER + NAME
SUCCESS = FOLDER + "_SUCCESS"
N_TRIES = 8
T = TypeVar("T")


def dump_text(dice: random.Random, n_pages: int) -> bytes:
    """Some pages."""
    first = dice.randrange(1, 1 << 40)
    return b"".join(pair(first + n, text=dice.randbytes(dice.randint(20, 300)).hex()) for n in range(n_pages))


def streams(dice: random.Random, text: bytes, n: int = 5) -> list[bytes]:
    """A text packed by bzip2 as several streams, cut anywhere."""
    cuts = sorted(dice.sample(range(1, len(text)), n - 1))
    return [bz2.compress(text[a:b]) for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def packed(dice: random.Random, n_pages: int = 60) -> bytes:
    """A dump file."""
    return b"".join(streams(dice, dump_text(dice, n_pages)))


def stored(text: bytes) -> bytes:
    """As gzip without packing: other text of one length gives other bytes of one length."""
    return gzip.compress(text, 0, mtime=0)


def numbered(n: int, date: str = SNAPSHOT.date) -> str:
    """The path of a dump file of a snapshot."""
    return PATH.replace(SNAPSHOT.date, date).replace("-00000", f"-{n:05d}")


def snapshot_files(
    dice: random.Random, n_files: int, *, date: str = SNAPSHOT.date, done: bool = True
) -> dict[str, bytes]:
    """A published snapshot: paths and bytes."""
    files = {numbered(n, date): packed(dice, dice.randint(2, 12)) for n in range(n_files)}
    return files | ({SUCCESS.replace(SNAPSHOT.date, date): b""} if done else {})


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def mirror_of(server: FaultyServer, **changes: Any) -> DumpMirror:
    settings: dict[str, Any] = {"backoff_s": 0, "max_attempts": N_TRIES} | changes
    return DumpMirror(base_url=server.url, **settings)


def remote(server: FaultyServer, size_bytes: int | None = None, path: str = PATH) -> RemoteFile:
    return RemoteFile(path.rpartition("/")[2], server.url + path.replace("=", "%3D"), size_bytes)


def outcome(act: Callable[[], T]) -> T | WikiAssetsError:
    """What an act ends with, be it an error of ours; no other is foreseen."""
    try:
        return act()
    except WikiAssetsError as error:
        return error
    except Exception as error:
        raise AssertionError(f"not an error of ours: {error!r:.200}") from error


def fetched(server: FaultyServer, root: Path, **changes: Any) -> Manifest | WikiAssetsError:
    """Fetch the snapshot into a data root."""
    mirror = mirror_of(server, **changes)
    return outcome(lambda: fetch_snapshot(SNAPSHOT, mirror, Store(str(root)), lambda text: None))


def begin_of(headers: dict[str, str]) -> int:
    """Where a request wants the file to begin."""
    return int(headers.get("range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))


def flipped(dice: random.Random, data: bytes, begin: int, end: int) -> bytes:
    """With one bit changed, between two places."""
    changed = bytearray(data)
    changed[dice.randrange(begin, end)] ^= 1 << dice.randrange(8)
    return bytes(changed)


def only_the_file(folder: Path, name: str, data: bytes) -> bool:
    """Nothing lies in a folder but this file."""
    return [path.name for path in folder.iterdir()] == [name] and (folder / name).read_bytes() == data
