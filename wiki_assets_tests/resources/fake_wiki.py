"""A wiki's Action API on this machine: what it answers, all that it is documented to fail with, and how it lies.

It keeps a few pages, and answers `action=query` for titles as MediaWiki does: spelling, redirects of redirects, other
wikis, titles that cannot be, pages in several replies with `continue`. `faults` are used up a request at a time;
`poison` breaks every reply to a question about a title.
"""

import gzip
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self, cast
from urllib.parse import parse_qs, urlsplit

Json = dict[str, Any]


@dataclass(frozen=True)
class Say:
    """What to say instead of the right answer, or how to spoil it."""

    error: Json | None = None  # in the text, with HTTP 200
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    cut: float = 1.0  # send this part of the text only, and say that it is all
    drop: bool = False  # hang up in the middle
    continues: Json | None = None  # add this to the right answer

    @property
    def wait_s(self) -> float:
        return float(self.headers.get("Retry-After", 0))


def error(code: str, info: str = "no more to say", **more: Any) -> Json:
    return {"error": {"code": code, "info": info, **more}}


@dataclass
class Page:
    """A page that the wiki has, and which sources have its document."""

    page_id: int
    text: str
    sources: tuple[str, ...] = ("cirrusdoc", "cirrusbuilddoc", "extracts")
    more: Json = field(default_factory=dict)


@dataclass
class Asked:
    """A request: when it came, and when one was welcome again."""

    at: float
    params: dict[str, str]
    agent: str
    not_before: float

    @property
    def titles(self) -> list[str]:
        return self.params.get("titles", "").split("|")


class FakeWiki:
    """Serves one wiki at `url`."""

    def __init__(self, pages: Mapping[str, Page] | None = None, redirects: Mapping[str, str] | None = None) -> None:
        self.pages = dict(pages or {})
        self.redirects = dict(redirects or {})
        self.lacks: set[str] = set()  # sources that the wiki does not know
        self.pages_per_reply = 50
        self.bytes_per_reply = 1 << 30
        self.articles = 270_000
        self.most_requests = 1 << 30  # it refuses any more
        self.faults: list[Say] = []
        self.poison: dict[str, Say] = {}
        self.asked: list[Asked] = []
        self._not_before = 0.0
        self._lock = threading.Lock()
        self._http = _Server(("127.0.0.1", 0), _Handler)
        self._http.wiki = self
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    @property
    def early(self) -> int:
        """Requests that came before the time that the wiki had named."""
        return sum(asked.at < asked.not_before for asked in self.asked)

    def say(self, params: dict[str, str], agent: str) -> tuple[Say, bytes]:
        """What to answer to a request, and the right text."""
        with self._lock:
            now = time.monotonic()
            self.asked.append(Asked(now, params, agent, self._not_before))
            fault = self.faults.pop(0) if self.faults else self._poisoned(params) or Say()
            if len(self.asked) > self.most_requests:
                fault = Say(status=403)
            right = json.dumps(self.answer(params) if fault.error is None else fault.error)
            if fault.continues is not None:
                right = json.dumps({**json.loads(right), "continue": fault.continues})
            self._not_before = max(self._not_before, time.monotonic() + fault.wait_s)
            return fault, right.encode()

    def _poisoned(self, params: dict[str, str]) -> Say | None:
        titles = {spelled(title) for title in params.get("titles", "").split("|")}
        return next((say for title, say in self.poison.items() if title in titles), None)

    def answer(self, params: dict[str, str]) -> Json:
        """As MediaWiki answers, in `formatversion=2`."""
        if params.get("meta") == "siteinfo":
            return {"batchcomplete": True, "query": {"statistics": {"articles": self.articles, "pages": 3}}}
        titles = params["titles"].split("|")
        if len(titles) > 50:
            return error("toomanyvalues", "Too many values supplied for parameter titles: the limit is 50")
        query: Json = {"normalized": [], "redirects": [], "interwiki": [], "pages": []}
        names: dict[str, None] = {}
        for title in titles:
            if (name := spelled(title)) != title and not invalid(title):
                query["normalized"].append({"fromencoded": False, "from": title, "to": name})
            names[title if invalid(title) else name] = None
        ready, followed = list(names), set(names)
        targets: dict[str, None] = {}
        for name in ready:
            if name in self.redirects:
                to = self.redirects[name]
                hop = {"from": name, "to": to}
                query["redirects"].append({**hop, "tointerwiki": "fr"} if to.startswith("fr:") else hop)
                if not to.startswith("fr:") and to not in followed:
                    followed.add(to)
                    ready.append(to)
            elif name.startswith("fr:"):
                query["interwiki"].append({"title": name, "iw": "fr"})
            else:
                targets[name] = None
        sources = params["prop"].split("|")
        warnings = {}
        if unknown := [source for source in sources if source in self.lacks]:
            text = f'Unrecognized value for parameter "prop": {", ".join(unknown)}.'
            warnings["query"] = {"warnings": text}
        begin = int(params.get("cdcontinue", 0))
        shown = list(targets)
        size = 0
        for number, name in enumerate(shown):
            page = self._page(name)
            if begin <= number < begin + self.pages_per_reply and name in self.pages:
                more = self._props(name, [source for source in sources if source not in self.lacks])
                size += len(json.dumps(more))
                if size > self.bytes_per_reply:
                    warnings["result"] = {"warnings": "This result was truncated because it would otherwise be larger"}
                else:
                    page |= more
            query["pages"].append(page)
        reply: Json = {"query": {name: found for name, found in query.items() if found}}
        if begin + self.pages_per_reply < len(shown):
            reply["continue"] = {"cdcontinue": str(begin + self.pages_per_reply), "continue": "||info"}
        else:
            reply["batchcomplete"] = True
        return reply | ({"warnings": warnings} if warnings else {})

    def _page(self, name: str) -> Json:
        if invalid(name):
            return {"title": name, "invalid": True, "invalidreason": "The requested page title contains bad characters"}
        if name.startswith("Special:"):
            return {"ns": -1, "title": name, "special": True}
        if name not in self.pages:
            return {"ns": 0, "title": name, "missing": True}
        return {
            "pageid": self.pages[name].page_id,
            "ns": 0,
            "title": name,
            "lastrevid": 7_000 + self.pages[name].page_id,
            "pagelanguage": "en",
            "canonicalurl": f"https://x.wikipedia.org/wiki/{name.replace(' ', '_')}",
        }

    def _props(self, name: str, sources: list[str]) -> Json:
        page = self.pages[name]
        document = {"page_id": page.page_id, "title": name, "namespace": 0, "text": page.text, "version": 7} | page.more
        props: Json = {}
        if "cirrusdoc" in sources:
            has = "cirrusdoc" in page.sources
            found = {"index": "x_content", "type": "_doc", "id": str(page.page_id), "version": 3, "source": document}
            props["cirrusdoc"] = [found] if has else []
        if "cirrusbuilddoc" in sources and "cirrusbuilddoc" in page.sources:
            props["cirrusbuilddoc"] = {**document, "source_text": "''wikitext''"}
        if "extracts" in sources and "extracts" in page.sources:
            props["extract"] = page.text
            props["revisions"] = [{"revid": 7, "timestamp": "2026-08-23T00:00:00Z"}]
            props["categories"] = [{"ns": 14, "title": "Category:Animals"}]
            props["redirects"] = [
                {"pageid": 1, "ns": 0, "title": other} for other, to in self.redirects.items() if to == name
            ]
            props["pageprops"] = {"wikibase_item": "Q7"}
        return props


def spelled(title: str) -> str:
    """A title as the wiki writes it."""
    name = " ".join(title.replace("_", " ").split())
    return name if name.startswith("fr:") else name[:1].upper() + name[1:]


def invalid(title: str) -> bool:
    return not title.strip() or bool(set(title) & set("<>[]{}#")) or len(title.encode()) > 255


class _Server(ThreadingHTTPServer):
    wiki: FakeWiki
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        wiki = cast(_Server, self.server).wiki
        asked = urlsplit(self.path)
        params = {name: values[0] for name, values in parse_qs(asked.query, keep_blank_values=True).items()}
        say, text = wiki.say(params, self.headers.get("User-Agent", ""))
        status = 404 if asked.path != "/w/api.php" else 414 if len(self.path) > 8_000 else say.status
        body = say.body if say.body is not None else text[: int(len(text) * say.cut)]
        headers = {"Content-Type": "application/json", **say.headers}
        if "gzip" in self.headers.get("Accept-Encoding", "") and say.body is None:
            body, headers["Content-Encoding"] = gzip.compress(body, 1), "gzip"
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if say.drop else body)
        self.close_connection = say.drop
