"""Files that appear whole or not at all, and the manifests that vouch for them.

The protocol for every artifact: a unique temporary name in the target folder, write, fsync, re-open and
check, rename, fsync the folder; the manifest last, the same way. A reader therefore sees the old file, the
new file or none, and a manifest only ever describes bytes that are already durable. On an object store the
rename is one PUT of the finished bytes; see docs/decisions/0016-object-stores.md.
"""

import errno
import hashlib
import json
import os
import re
import socket
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import msgspec
import psutil
from fsspec import get_filesystem_class, register_implementation
from upath import UPath

from wiki_assets.errors import BadRequest, DamagedArtifact, NoSpace, StoreLocked, WikiAssetsError
from wiki_assets.failpoints import failpoint

Fence = Callable[[], AbstractContextManager[object]]
"""Entered while a file is put in place; raises where another run may write it now (see claims.py)."""

_PART = ".part"
_PUTS = 5  # of one object, each after somebody else's was found in place
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}
_HOST = re.sub(r"[^\w-]", "-", socket.gethostname())


class FileRecord(msgspec.Struct, frozen=True):
    """The bytes of one file, as its manifest remembers them."""

    size_bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What made an artifact, and which bytes it is. Written last: an artifact is done when this verifies.

    `files` are paths relative to the wiki's folder. `fingerprint` covers inputs, code version and parameters.
    """

    artifact: str
    wiki: str
    snapshot: str
    shard: int | None = None
    fingerprint: str
    code_version: str
    params: dict[str, Any]
    inputs: dict[str, str]
    files: dict[str, FileRecord]
    counts: dict[str, Any]
    stats: dict[str, Any] = {}
    claim: int = 0  # the number under which this was committed, see claims.py
    run: str = ""  # the Dagster run that did

    @property
    def data_version(self) -> str:
        """Hash of the bytes: two artifacts with the same one are the same artifact."""
        return fingerprint({name: record.sha256 for name, record in self.files.items()})


def fingerprint(*parts: Any) -> str:
    """Hash anything that JSON can write; equal values give equal hashes in every process. 32 hex digits."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def root_path(location: str) -> UPath:
    """The data root as a path: a folder, or a URL such as `s3://bucket/prefix`.

    A folder is made absolute, so that workers started elsewhere find it. Of an object store no listing is kept.

    Raises:
        BadRequest: if it is a URL that nothing here can open.
    """
    if os.path.isabs(location):
        return _folder(location)
    kind = location.partition("://")[0] if "://" in location else ""
    try:
        path = UPath(location)
        if is_local(path):
            return UPath(Path(location.removeprefix("file://")).expanduser().absolute())
        if kind in ("s3", "s3a"):
            from wiki_assets.s3 import Buckets

            register_implementation(kind, Buckets, clobber=True)
        get_filesystem_class(kind)
    except (ImportError, ValueError) as error:
        move = (
            f"pip install 'wiki_assets[{_EXTRAS[kind]}]'"
            if kind in _EXTRAS
            else "name a folder, or s3://, gs://, az://"
        )
        raise BadRequest(f"{location}: cannot be opened ({error}): {move}") from None
    return UPath(location, use_listings_cache=False)


@lru_cache
def _folder(location: str) -> UPath:
    return UPath(location)


def is_local(path: UPath | Path) -> bool:
    """Whether `path` lies on a file system that renames atomically, rather than in an object store."""
    return not isinstance(path, UPath) or path.protocol in ("", "file", "local")


class _Hashing:
    """A binary file to write to, front to back, that hashes what passes. Enough of a file for pyarrow."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._sha256 = hashlib.sha256()
        self.size_bytes = 0

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        failpoint("file.write")
        self._raw.write(view)
        self._sha256.update(view)
        self.size_bytes += len(view)
        return len(view)

    def tell(self) -> int:
        return self.size_bytes

    def flush(self) -> None:
        self._raw.flush()

    def close(self) -> None:  # the context that opened the file closes it
        self.flush()

    @property
    def closed(self) -> bool:
        return False

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    @property
    def record(self) -> FileRecord:
        """What was written so far."""
        return FileRecord(self.size_bytes, self._sha256.hexdigest())


@contextmanager
def naming_no_space(target: UPath | Path) -> Iterator[None]:
    """Turn the system's error for a full disk into ours, which names what was to be written.

    Raises:
        NoSpace: if there is no space left, or none for this user.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise NoSpace(
            f"{target}: no space left on the device; nothing was replaced. Free some space, then run again"
        ) from error


@contextmanager
def whole_file(
    target: UPath | Path,
    check: Callable[[IO[bytes]], object] | None = None,
    fence: Fence = nullcontext,
) -> Iterator[_Hashing]:
    """Write a file that appears at `target` whole, or not at all.

    Args:
        target: where it shall be. Its folder is made if needed.
        check: called with the finished bytes, re-opened for reading, before they appear; raises to refuse.
        fence: entered while the file is put in place; raises where another run may write it now (see claims.py).

    Yields:
        A binary file for writing; its `record` gives size and SHA-256.

    Raises:
        DamagedArtifact: if what is read back is not what was written.
        NoSpace: if there is no space left.
    """
    with naming_no_space(target):
        spool = local_path(target) if is_local(target) else spool_folder(target.parent) / target.name
        spool.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(spool, dead_here=True)
        temporary = spool.with_name(f".{spool.name}.{_HOST}.{os.getpid()}-{uuid.uuid4().hex[:8]}{_PART}")
        try:
            failpoint("file.create")
            with temporary.open("xb") as raw:
                out = _Hashing(raw)
                yield out
                raw.flush()
                failpoint("file.fsync")
                os.fsync(raw.fileno())
            failpoint("file.check")
            with temporary.open("rb") as again:
                found = hashlib.file_digest(again, "sha256").hexdigest()
                if found != out.record.sha256:
                    wrote = out.record.sha256
                    raise DamagedArtifact(f"{target}: read back {found[:12]}…, wrote {wrote[:12]}…: check the disk")
                if check is not None:
                    again.seek(0)
                    check(again)
            if is_local(target):
                with fence():
                    failpoint("file.replace")
                    os.replace(temporary, spool)
                    failpoint("file.sync_folder")
                    sync_folder(spool.parent)
                    failpoint("file.done")
            else:
                _put(temporary, cast(UPath, target), fence)
        except FileNotFoundError:
            if not temporary.exists():
                with fence():  # whoever took the file away has claimed what it is part of
                    raise
            raise
        finally:
            temporary.unlink(missing_ok=True)


def _put(source: Path, target: UPath, fence: Fence) -> None:
    """Put finished bytes in an object store: one PUT, or a multipart upload that appears when it is complete.

    Under a fence nothing is ever replaced: what is there is removed, then the fence is passed again, then the object
    is made if there is none. So whoever was superseded in between is refused, by the fence or by the store.
    """
    failpoint("file.replace")
    if fence is nullcontext:
        target.fs.put_file(str(source), target.path)
    else:
        for _ in range(_PUTS):
            with fence():
                remove(target)
            try:
                with fence():
                    target.fs.put_file(str(source), target.path, mode="create")
                break
            except FileExistsError:  # of whom we superseded; or our own, of which the answer was lost
                continue
        else:
            raise StoreLocked(f"{target}: others keep writing it: see which runs are at work, then run again")
    failpoint("file.done")


def make_file(path: UPath | Path, data: bytes) -> None:
    """Make a small file that must not be there yet. Of any number of processes one makes it.

    Raises:
        FileExistsError: if it is there.
    """
    if is_local(path):
        with path.open("xb") as file:
            file.write(data)
    else:
        cast(UPath, path).fs.pipe_file(cast(UPath, path).path, data, mode="create")


def names_in(folder: UPath | Path) -> list[str]:
    """The names in a folder, in no order; none where there is no folder."""
    try:
        if is_local(folder):
            return os.listdir(local_path(folder))
        found = cast(UPath, folder).fs.ls(cast(UPath, folder).path, detail=False)
    except FileNotFoundError:
        return []
    return [str(path).rstrip("/").rpartition("/")[2] for path in found]


def remove(path: UPath | Path) -> None:
    """Delete a file, if it is there; an object by one request, without looking."""
    with suppress(FileNotFoundError):
        if is_local(path):
            path.unlink()
        else:
            cast(UPath, path).fs.rm_file(cast(UPath, path).path)


def clear_leftovers(target: UPath | Path, *, dead_here: bool = False) -> None:
    """Delete what was left half-written of `target`, beside it.

    Args:
        target: what was to be written.
        dead_here: only what dead processes of this machine left; another may be writing it now.
    """
    if not is_local(target):
        return
    writer = f"{_HOST}.*" if dead_here else "*"
    for leftover in local_path(target).parent.glob(f".{target.name}.{writer}{_PART}"):
        pid = leftover.name.removesuffix(_PART).rpartition(".")[2].partition("-")[0]
        if not dead_here or (pid.isdecimal() and not psutil.pid_exists(int(pid))):
            leftover.unlink(missing_ok=True)


def local_path(path: UPath | Path) -> Path:
    """A path of the local file system as the standard library knows it."""
    return Path(str(path))


def spool_folder(folder: UPath | Path) -> Path:
    """Where bytes for a folder of an object store wait on this machine until they are whole; it is made.

    Raises:
        WikiAssetsError: if another user could put bytes there.
    """
    ours = Path(tempfile.gettempdir()) / f"wiki_assets-{os.getuid()}"
    with suppress(FileExistsError):
        ours.mkdir(mode=0o700)
    found = ours.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise WikiAssetsError(
            f"{ours}: not a folder that only we can open (mode {stat.filemode(found.st_mode)}, user {found.st_uid}); "
            "delete it, or set TMPDIR to a folder of your own"
        )
    place = ours / fingerprint(str(folder))
    place.mkdir(exist_ok=True)
    return place


@contextmanager
def locked(
    path: UPath | Path,
    timeout_s: float = 60,
    busy: str = "held for over {timeout_s:.0f} s by another process, stopped or stuck: end it, then run again",
) -> Iterator[None]:
    """Hold a lock file. Nothing on an object store.

    The kernel gives it back when its process dies.

    Args:
        path: of the lock file; its folder is made if needed.
        timeout_s: how long to wait for whoever holds it. The default is far longer than putting a file in place takes.
        busy: what the error says after the path, and what to do.

    Raises:
        StoreLocked: if somebody holds it for longer.
    """
    if not is_local(path):
        yield
        return
    from filelock import FileLock, Timeout

    local_path(path).parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(str(path), timeout=timeout_s)
    try:
        lock.acquire()
    except Timeout:
        raise StoreLocked(f"{path}: {busy.format(timeout_s=timeout_s)}") from None
    try:
        yield
    finally:
        lock.release()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder as durable as the bytes they name."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(target: UPath | Path, value: Any, fence: Fence = nullcontext) -> FileRecord:
    """Write `value` as JSON, whole or not at all, with sorted keys; a manifest is sealed."""
    if isinstance(value, Manifest):
        value = sealed(value)
    data = json_text(value)
    with whole_file(target, fence=fence) as out:
        out.write(data)
    return out.record


def json_text(value: Any) -> bytes:
    """JSON as our files have it: sorted keys, one a line."""
    return msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=1)


def sealed(record: Any) -> dict[str, Any]:
    """A record with the hash of itself under `seal`, so that a changed byte shows."""
    body = msgspec.json.decode(msgspec.json.encode(record))
    body.pop("seal", None)
    return {**body, "seal": _seal(body)}


def seal_holds(record: Any) -> bool:
    """Whether a record is as it was sealed; one without a seal is older than seals are, and passes."""
    return isinstance(record, dict) and record.get("seal", "") in ("", _seal(record))


def _seal(record: dict[str, Any]) -> str:
    body = {name: value for name, value in record.items() if name != "seal"}
    return hashlib.sha256(msgspec.json.encode(body, order="sorted")).hexdigest()


def _read(path: UPath | Path) -> bytes:
    """A small file; an object by one request, without asking for its size before."""
    return path.read_bytes() if is_local(path) else cast(bytes, cast(UPath, path).fs.cat_file(cast(UPath, path).path))


def read_json(path: UPath | Path) -> Any | None:
    """Read a JSON file; None where there is none.

    Raises:
        DamagedArtifact: if the file is there but is not JSON.
    """
    try:
        return json.loads(_read(path))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DamagedArtifact(f"{path}: expected JSON ({error}); delete it, then materialize again") from None


def read_manifest(path: UPath | Path) -> Manifest | None:
    """Read a manifest; None where there is none, or where what is there cannot be one.

    A manifest that is unreadable, or whose seal is broken, vouches for nothing: what it stood beside counts as not
    made.
    """
    try:
        record = msgspec.json.decode(_read(path))
        return msgspec.convert(record, Manifest) if seal_holds(record) else None
    except (FileNotFoundError, ValueError, RecursionError):
        return None


def sizes_agree(folder: UPath | Path, manifest: Manifest) -> bool:
    """Whether every file of a manifest is there with its recorded size: the cheap half of verifying."""
    try:
        return all((folder / name).stat().st_size == record.size_bytes for name, record in manifest.files.items())
    except FileNotFoundError:
        return False


def sha256_of(path: UPath | Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as source:
        digest = hashlib.sha256()
        while chunk := source.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def verify_files(folder: UPath | Path, manifest: Manifest) -> None:
    """Prove that every file of a manifest is, byte for byte, the one it describes.

    Raises:
        DamagedArtifact: naming the first file that is missing or differs.
    """
    for name, record in manifest.files.items():
        path = folder / name
        try:
            found = sha256_of(path)
        except FileNotFoundError:
            raise DamagedArtifact(
                f"{path}: missing; its manifest says {record.size_bytes:,} bytes. Materialize it again"
            ) from None
        if found != record.sha256:
            raise DamagedArtifact(
                f"{path}: SHA-256 {found[:12]}…, its manifest says {record.sha256[:12]}…. Materialize it again"
            )
