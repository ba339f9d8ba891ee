"""Ask the published index. Reads only through the pointer, so an answer comes from one whole build.

A `Searcher` lives as long as its process: it opens a build once, keeps it while answers need it, and follows the
pointer from one question to the next. Any number of threads may ask it at the same time.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wiki_assets.errors import BadRequest, WikiAssetsError
from wiki_assets.files import is_local, root_path
from wiki_assets.keys import check_wiki
from wiki_assets.resources.store import Store
from wiki_assets.search.answers import MODES, Answer, Article, Mode
from wiki_assets.search.build import OpenBuild
from wiki_assets.search.questioner import EncoderOf, Questioners
from wiki_assets.settings import Settings
from wiki_assets.stages.index import Hit, check_k, check_question
from wiki_assets.stages.lexical import Filters

__all__ = ["MODES", "Answer", "Article", "Filters", "Hit", "Mode", "Searcher", "ask"]

logger = logging.getLogger(__name__)
_REMOTE_POINTER_S = 5.0  # how old what we know of a pointer in an object store may be
_RETRY_S = 30.0  # before a build that would not open is tried again, while the one before it still answers
_MAX_PAGE_ID = 2**63 - 1
_MAX_TITLE_BYTES = 1_024  # MediaWiki allows 255


@dataclass
class _Wiki:
    """What is open of one wiki."""

    current: OpenBuild | None = None
    opening: threading.Lock = field(default_factory=threading.Lock)
    retry_at: float = 0.0


class _Known(NamedTuple):
    """What we know of a pointer."""

    pointer: dict[str, Any]
    read_at: float
    path: str = ""  # of its file; none in an object store
    edition: tuple[int, ...] = ()

    @property
    def is_current(self) -> bool:
        """Whether the file is the one that was read; in an object store, whether that was a few seconds ago at most."""
        if not self.path:
            return time.monotonic() - self.read_at <= _REMOTE_POINTER_S
        return self.edition != () and self.edition == _edition(self.path)


class Searcher:
    """Answers questions of any published wiki under one root.

    Args:
        settings: the root, Chroma and the engine.
        encoder_of: what runs a model; an engine of this process, if left out.
    """

    def __init__(self, settings: Settings, *, encoder_of: EncoderOf | None = None) -> None:
        self._settings = settings
        self._questioners = Questioners(settings, encoder_of)
        self._store = Store(settings.root)
        self._local = is_local(root_path(settings.root))
        self._lock = threading.Lock()
        self._wikis: dict[str, _Wiki] = {}
        self._users: dict[OpenBuild, int] = {}
        self._known: dict[str | None, _Known] = {}
        self._closed = False

    def wikis(self) -> list[dict[str, Any]]:
        """The pointers of the published wikis, in order."""
        return [pointer for wiki in self._store.wikis() if (pointer := self._store.pointer(wiki))]

    def search(
        self,
        question: str,
        *,
        wiki: str | None = None,
        k: int = 10,
        mode: Mode = "hybrid",
        filters: Filters | None = None,
        group: bool = False,
    ) -> Answer:
        """The k best passages; with `group`, the best one of each of k pages.

        Raises:
            BadRequest: if the question, `k`, the mode, the wiki's name or a filter cannot be asked.
            NotPublished: if there is no index, or this one lacks what was asked for.
            SchemaMismatch: if the model is not the one the index was made with.
        """
        started = time.perf_counter()
        question = check_question(question, k)
        if mode not in MODES:
            raise BadRequest(f"mode {mode!r:.40}: expected {', '.join(MODES)}")
        if filters is not None:
            filters.check()
        with self._build(wiki) as build:
            hits, used, note = build.search(question, k, mode, filters, group=group)
            return _answer(build, hits, used, started, note)

    def similar(self, page_id: int, *, wiki: str | None = None, k: int = 10) -> Answer:
        """The best passage of each of the k pages that are nearest to a page.

        Raises:
            BadRequest: if there is no such page, or `k` is out of bounds.
        """
        started = time.perf_counter()
        check_k(k)
        _check_page_id(page_id)
        with self._build(wiki) as build:
            return _answer(build, build.similar(page_id, k), "dense", started)

    def article(self, *, wiki: str | None = None, page_id: int | None = None, title: str | None = None) -> Article:
        """A page by its id, its title, or a redirect's title.

        Raises:
            BadRequest: if there is no such page, or neither or both were given.
        """
        if (page_id is None) == (title is None):
            raise BadRequest("expected a page id or a title, one of the two")
        if page_id is not None:
            _check_page_id(page_id)
        else:
            title = _checked_title(title or "")
        with self._build(wiki) as build:
            return build.article(page_id=page_id, title=title)

    def embed(self, texts: Sequence[str], *, wiki: str | None = None) -> NDArray[np.float32]:
        """float32 [n, dim] of unit length, as questions are embedded. Of a long text, its beginning."""
        checked = [check_question(text, 1) for text in texts]
        with self._build(wiki) as build:
            return build.questioner.vectors(checked)

    def warm(self) -> None:
        """Open what is published and load the model, so that the first question is as fast as the others."""
        for pointer in self.wikis():
            self.search("warm", wiki=pointer["wiki"], k=1)

    def close(self) -> None:
        """Let go of every build, when the answers under way have ended. Nothing can be asked after that."""
        with self._lock:
            self._closed = True
            builds = [wiki.current for wiki in self._wikis.values() if wiki.current]
            self._wikis.clear()
        for build in builds:
            self._release(build)

    # --- builds

    @contextmanager
    def _build(self, wiki: str | None) -> Iterator[OpenBuild]:
        """The published build, which stays open while the block runs."""
        if wiki is not None:
            check_wiki(wiki)
        build = self._pinned(self._pointer(wiki))
        try:
            yield build
        finally:
            self._release(build)

    def _pointer(self, wiki: str | None) -> dict[str, Any]:
        """What is published; from an object store, as it was a few seconds ago at most."""
        known = self._known.get(wiki)
        if known is not None and known.is_current:
            return known.pointer
        if self._local and wiki is None:
            return self._store.published(None)
        path = str(self._store.pointer_path(wiki)) if self._local and wiki else ""
        now, edition = time.monotonic(), _edition(path)  # before it is read, so that it is never newer than what is
        known = self._known[wiki] = _Known(self._store.published(wiki), now, path, edition)
        return known.pointer

    def _pinned(self, pointer: dict[str, Any]) -> OpenBuild:
        """The build of a pointer, opened if need be, with one more user. While one thread opens a newer build, the
        others go on with the one before."""
        with self._lock:
            if self._closed:
                raise BadRequest("this searcher is closed: make another")
            wiki = self._wikis.setdefault(pointer["wiki"], _Wiki())
            if wiki.current is not None and (wiki.current.pointer == pointer or time.monotonic() < wiki.retry_at):
                return self._pin(wiki.current)
        first = wiki.current is None
        if not wiki.opening.acquire(blocking=first):
            with self._lock:
                if wiki.current is not None:
                    return self._pin(wiki.current)
            wiki.opening.acquire()
        try:
            with self._lock:
                if wiki.current is not None and wiki.current.pointer == pointer:
                    return self._pin(wiki.current)
            return self._replace(wiki, pointer)
        finally:
            wiki.opening.release()

    def _replace(self, wiki: _Wiki, pointer: dict[str, Any]) -> OpenBuild:
        build = OpenBuild(pointer, self._settings, self._questioners)
        try:
            if wiki.current is not None:  # what took its time for the one before is done before this takes its place
                build.search("warm", 1, "hybrid")
        except WikiAssetsError as error:
            build.close()
            with self._lock:
                if wiki.current is not None:
                    before = wiki.current.pointer["collection"]
                    logger.warning("%s does not open, %s goes on: %s", pointer["collection"], before, error)
                    wiki.retry_at = time.monotonic() + _RETRY_S
                    return self._pin(wiki.current)
            raise
        with self._lock:
            before, wiki.current, wiki.retry_at = wiki.current, build, 0.0
            self._pin(build)  # for as long as it is the current one
            self._pin(build)  # for the answer that wants it
        if before is not None:
            self._release(before)
        return build

    def _pin(self, build: OpenBuild) -> OpenBuild:
        self._users[build] = self._users.get(build, 0) + 1
        return build

    def _release(self, build: OpenBuild) -> None:
        with self._lock:
            self._users[build] -= 1
            last = not self._users[build]
            if last:
                del self._users[build]
            finished = self._closed and not self._users
        if last:
            build.close()
        if finished:
            self._questioners.close()


def _edition(path: str) -> tuple[int, ...]:
    """What a file has that another in its place, or another content, has not; nothing, where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _answer(build: OpenBuild, hits: list[Hit], mode: Mode, started: float, note: str = "") -> Answer:
    p = build.pointer
    return Answer(
        hits, p["wiki"], p["snapshot"], p["build"], p["collection"], mode, time.perf_counter() - started, note
    )


def _check_page_id(page_id: int) -> None:
    if not 0 <= page_id <= _MAX_PAGE_ID:
        raise BadRequest(f"page {page_id}: expected a page id, 0 to {_MAX_PAGE_ID}")


def _checked_title(title: str) -> str:
    try:
        size = len(title.encode("utf-8"))
    except UnicodeEncodeError:
        size = 0
    if not 0 < size <= _MAX_TITLE_BYTES or not title.strip():
        raise BadRequest(f"title {title!r:.60}: expected the title of a page, up to {_MAX_TITLE_BYTES} bytes")
    return title


def ask(question: str, settings: Settings, *, wiki: str | None = None, k: int = 10) -> list[Hit]:
    """The k passages of a published index that answer a question best; for one question of one process.

    Raises:
        BadRequest, NotPublished, SchemaMismatch: as `Searcher.search` does.
    """
    searcher = Searcher(settings)
    try:
        return searcher.search(question, wiki=wiki, k=k).hits
    finally:
        searcher.close()
