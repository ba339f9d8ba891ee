"""Collections, embedded in a folder of this machine or on a Chroma server.

An embedded store has one writer: Chroma itself does not stop a second process, and two of them ruin the store
without an error. So whoever opens a store to write holds a lock on its folder, which the kernel drops with the
process.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed
from upath import UPath

from wiki_assets.errors import BadRequest, NoSpace, NotPublished, SourceUnavailable
from wiki_assets.files import is_local, locked
from wiki_assets.settings import shown

if TYPE_CHECKING:
    from chromadb import Collection
    from chromadb.api import ClientAPI

T = TypeVar("T")

_opening = threading.Lock()  # Chroma's own table of open stores is not safe while one thread opens and one closes
_BUSY = "another process is writing this store; wait until it ends, then run again"


@contextmanager
def open_store(folder: UPath | Path, server: str = "", *, write: bool = False) -> Iterator["ClientAPI"]:
    """A Chroma client: of the server if there is one, else of the store in `folder`.

    Args:
        folder: an embedded store's; made if it is opened to write.
        server: URL of a Chroma server, or empty.
        write: hold the store's lock; readers of a published store need none.

    Raises:
        StoreLocked: if another process writes to this store.
        NoSpace: if the disk is full: an embedded store cannot even be opened then; one that is open goes on.
        NotPublished: if there is no store to read.
        SourceUnavailable: if the server does not answer.
        BadRequest: if an embedded store would lie in an object store.
    """
    if server:
        yield from _with_server(server)
        return
    require_disk(folder)
    path = Path(str(folder))
    if write:
        path.mkdir(parents=True, exist_ok=True)
        with locked(path.with_name(f"{path.name}.lock"), timeout_s=0, busy=_BUSY):
            yield from _embedded(path)
    elif not (path / "chroma.sqlite3").exists():
        raise NotPublished(f"{path}: no Chroma store there; run wiki-assets materialize")
    else:
        yield from _embedded(path)


def require_disk(folder: UPath | Path) -> None:
    """Refuse an embedded store in an object store.

    Raises:
        BadRequest: naming the setting.
    """
    if not is_local(folder):
        raise BadRequest(
            f"{folder}: an embedded Chroma store needs a local disk: set WIKI_ASSETS_CHROMA to a server's URL"
        )


def _embedded(path: Path) -> Iterator["ClientAPI"]:
    import chromadb
    from chromadb.errors import ChromaError

    try:
        with _opening:
            client = chromadb.PersistentClient(str(path), settings=_quiet())
    except ChromaError as error:
        if "disk is full" not in str(error):
            raise
        raise NoSpace(
            f"{path}: the disk is full, and SQLite writes a little even to read: free some space, then ask again"
        ) from error
    try:
        yield client
    finally:
        with _opening:
            client.close()  # type: ignore[attr-defined]


def _with_server(server: str) -> Iterator["ClientAPI"]:
    import chromadb

    address = urlsplit(server)
    if address.scheme not in ("http", "https") or not address.hostname or shown(server) != server:
        raise BadRequest(f"WIKI_ASSETS_CHROMA={shown(server)!r}: expected a URL such as http://localhost:8000")
    secure = address.scheme == "https"
    try:
        client = chromadb.HttpClient(
            address.hostname, address.port or (443 if secure else 8000), ssl=secure, settings=_quiet()
        )
        client.heartbeat()
    except Exception as error:  # httpx, ValueError or chromadb's own, by version
        raise SourceUnavailable(
            f"{server}: no Chroma server answers ({type(error).__name__}): start it, or unset WIKI_ASSETS_CHROMA"
        ) from error
    yield client


def patiently(call: Callable[[], T], within_s: float = 30, every_s: float = 0.5) -> T:
    """Call again while SQLite says that it is locked; for what may be done twice.

    Who writes a store holds its lock, so this is no other writer: it is what a killed one had begun, which several
    connections of this process find at once, and only one of them can take back.
    """
    return Retrying(
        retry=retry_if_exception(lambda error: "database is locked" in str(error)),
        stop=stop_after_delay(within_s),
        wait=wait_fixed(every_s),
        reraise=True,
    )(call)


def is_away(error: BaseException) -> bool:
    """Whether a request to a Chroma server failed for want of a server, rather than being refused by it."""
    import httpx

    return isinstance(error, httpx.TransportError | ConnectionError)


def _quiet() -> Any:
    from chromadb.config import Settings

    return Settings(anonymized_telemetry=False)


def open_collection(client: "ClientAPI", name: str, *, hnsw: dict[str, Any], metadata: dict[str, Any]) -> "Collection":
    """The collection of that name; made with these settings if it is not there."""
    configuration: Any = {"hnsw": hnsw}
    return client.get_or_create_collection(
        name, embedding_function=None, configuration=configuration, metadata=metadata
    )


def sync_after(collection: "Collection", rows: int) -> None:
    """Have the graph written to disk after so many new rows.

    Until then it lives in a log, from which every process that opens the store builds it again, at some thousand rows
    a second. So a writer that is done sets a small number, and who opens the store next puts all of it on disk.
    """
    collection.modify(configuration={"hnsw": {"sync_threshold": rows}})


def published_collection(client: "ClientAPI", name: str) -> "Collection":
    """A collection that must be there.

    Raises:
        NotPublished: if it is not: the store was lost, or belongs to another deployment.
    """
    try:
        return client.get_collection(name, embedding_function=None)
    except Exception as error:  # NotFoundError, ValueError or InvalidCollectionException, by version
        raise NotPublished(
            f"collection {name} is published, but its store does not have it: "
            "run wiki-assets materialize, it is made again"
        ) from error
