"""A small searcher that holds a handful of articles, the application around it, and a real service as a process."""

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.testclient import TestClient

from wiki_assets.errors import BadRequest, NotPublished
from wiki_assets.search import Answer, Article, Filters, Mode
from wiki_assets.serving.app import create_app
from wiki_assets.serving.limits import Limits
from wiki_assets.serving.server import listen, make_server
from wiki_assets.settings import Settings
from wiki_assets.stages.index import Hit, check_question
from wiki_assets_tests.processes import wait_until
from wiki_assets_tests.serving.service import Service, serving

ARTICLES = {
    7: ("Llama", "Llamas spit at one another when they argue about food. They are social animals."),
    8: ("Lake Baikal", "Lake Baikal is the deepest lake on Earth and holds a fifth of its fresh water."),
    9: ("<script>alert(1)</script>", 'The tag <script src="x"> runs a program & more: "quoted" <b>bold</b>.'),
    10: ("バイカル湖", "バイカル湖は世界で最も深い湖である。"),
}


class Shelf:
    """Answers by counting words; stands where a `Searcher` stands. `fail` is raised, `hold` is waited for."""

    def __init__(self, wikis: Sequence[str] = ("tinywiki",)) -> None:
        self.closed = False
        self.reset(wikis)

    def reset(self, wikis: Sequence[str] = ("tinywiki",)) -> None:
        """As it was when it was new."""
        self.names = list(wikis)
        self.build = 1
        self.fail: Exception | None = None
        self.hold = threading.Event()
        self.hold.set()
        self.asked: list[dict[str, Any]] = []
        self.n_running = 0
        self.most_running = 0

    def wikis(self) -> list[dict[str, Any]]:
        return [
            {
                "wiki": name,
                "snapshot": "20250105",
                "build": self.build,
                "collection": f"{name}-20250105-{self.build}",
                "server": "http://secret:8000",
                "model": {"name": "all-MiniLM-L6-v2", "sha256": "0" * 64, "dim": 3},
                "pages": len(ARTICLES),
                "passages": len(ARTICLES),
                "shards": 1,
                "published_at": "2025-01-06T00:00:00+00:00",
            }
            for name in self.names
        ]

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
        self._work(question=question, wiki=wiki, k=k, mode=mode, filters=filters, group=group)
        words = set(check_question(question, k).casefold().split())
        found = sorted(ARTICLES, key=lambda i: -len(words & set(ARTICLES[i][1].casefold().split())))
        return self._answer(found[:k], wiki, mode)

    def similar(self, page_id: int, *, wiki: str | None = None, k: int = 10) -> Answer:
        self._work(page_id=page_id, wiki=wiki, k=k)
        self.article(wiki=wiki, page_id=page_id)
        return self._answer([i for i in ARTICLES if i != page_id][:k], wiki, "dense")

    def article(self, *, wiki: str | None = None, page_id: int | None = None, title: str | None = None) -> Article:
        self._work(page_id=page_id, title=title, wiki=wiki)
        by_title = {t: i for i, (t, _) in ARTICLES.items()}
        page_id = by_title.get(title or "") if page_id is None else page_id
        if page_id not in ARTICLES:
            raise BadRequest(f"{wiki} has no such page")
        title, text = ARTICLES[page_id]
        return Article(
            page_id, title, text, f"https://tiny.wikipedia.org/wiki/{page_id}", 100 + page_id, None, [], ["Things"],
            "en", "20250105", wiki or self.names[0],
        )  # fmt: skip

    def embed(self, texts: Sequence[str], *, wiki: str | None = None) -> np.ndarray:
        self._work(texts=list(texts), wiki=wiki)
        return np.tile(np.array([1, 0, 0], np.float32), (len(texts), 1))

    def warm(self) -> None:
        if self.fail:
            raise self.fail

    def close(self) -> None:
        self.closed = True

    def _work(self, **asked: Any) -> None:
        self.asked.append(asked)
        if asked["wiki"] not in self.names:
            raise NotPublished(f"{asked['wiki']}: nothing is published under /srv/secret/place")
        self.n_running += 1
        self.most_running = max(self.most_running, self.n_running)
        try:
            assert self.hold.wait(30), "nobody let it go on"
            if self.fail:
                raise self.fail
        finally:
            self.n_running -= 1

    def _answer(self, found: Sequence[int], wiki: str | None, mode: Mode) -> Answer:
        name = wiki or self.names[0]
        hits = [
            Hit(rank, 1 / rank, i, ARTICLES[i][0], f"https://tiny.wikipedia.org/wiki/{i}", 100 + i, ARTICLES[i][1], 0,
                len(ARTICLES[i][1]), "20250105", name, f"https://tiny.wikipedia.org/wiki/{i}?oldid={100 + i}")
            for rank, i in enumerate(found, 1)
        ]  # fmt: skip
        return Answer(hits, name, "20250105", self.build, f"{name}-20250105-{self.build}", mode, 0.001)


def problem(response: httpx.Response | Any, status: int, *says: str) -> None:
    """An error as the service writes it: one line that says what was found and what is expected."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    found = response.json()
    assert set(found) == {"type", "title", "status", "detail"}
    assert found["status"] == status
    assert "\n" not in found["detail"]
    assert len(found["detail"]) < 500
    for text in says:
        assert text in found["detail"], found["detail"]


@dataclass
class Asked:
    """An application in this process, and the shelf behind it."""

    http: TestClient
    shelf: Shelf


UNLIMITED = Limits(rate=0)


@contextmanager
def asking(shelf: Shelf, limits: Limits = UNLIMITED, **options: Any) -> Iterator[TestClient]:
    """The application around a shelf, while the block runs."""
    app = create_app(lambda: shelf, limits, **options)  # type: ignore[arg-type,return-value]
    with TestClient(app, base_url="http://127.0.0.1") as client:
        yield client
    assert shelf.closed


@pytest.fixture(scope="module")
def _asked() -> Iterator[Asked]:
    shelf = Shelf()
    with asking(shelf) as client:
        yield Asked(client, shelf)


@pytest.fixture
def ask(_asked: Asked) -> Asked:
    """An application without a rate limit, and the shelf behind it as it was when it was new."""
    _asked.shelf.reset()
    return _asked


@dataclass
class Running:
    """A server in a thread of this process."""

    port: int
    shelf: Shelf
    stop: threading.Event

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)


@contextmanager
def serving_shelf(limits: Limits) -> Iterator[Running]:
    shelf = Shelf()
    server = make_server(create_app(lambda: shelf, limits), limits)  # type: ignore[arg-type,return-value]
    stop = threading.Event()
    with listen("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
        thread.start()
        wait_until(lambda: server.started, within_s=30, what="the server")

        def end() -> None:
            stop.wait()
            server.should_exit = True

        threading.Thread(target=end, daemon=True).start()
        try:
            yield Running(port, shelf, stop)
        finally:
            stop.set()
            thread.join(30)
    assert not thread.is_alive()
    assert shelf.closed


@pytest.fixture(scope="session")
def published(tinywiki: Settings) -> Settings:
    """Settings of a root where the tiny wiki is published."""
    return tinywiki


@pytest.fixture(scope="session")
def served(published: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for every test that asks for it, without a rate limit."""
    log = tmp_path_factory.mktemp("served") / "serve.log"
    with serving({"WIKI_ASSETS_ROOT": published.root, "WIKI_ASSETS_RATE": "0"}, log) as service:
        yield service
        assert service.process.poll() is None, log.read_text()
