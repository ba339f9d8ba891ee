"""Pages of a wiki by their titles, from its Action API: one request at a time, later when it says later.

Every title has one fate, and all of them add up. A server that is busy or broken ends the call; a title that it cannot
answer for costs only itself: its batch is asked again in halves, down to that title.

Source: https://www.mediawiki.org/wiki/API:Etiquette; Wikimedia's robot policy and API limits of 2026 (one request at a
time, 200 a minute); Manual:Maxlag_parameter (wait 5 s at least).
"""

import logging
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from urllib.parse import quote, urlencode

import httpx
import msgspec

from wiki_assets.errors import BadRequest, SourceUnavailable, TransientSource
from wiki_assets.resources.replies import (
    SOURCES,
    Answer,
    ApiError,
    Found,
    Source,
    document_of,
    error_of,
    params_of,
    prepared,
)
from wiki_assets.resources.session import NotThere, Patience, Session, check_root

logger = logging.getLogger(__name__)

TITLES_AT_ONCE = 50  # the API's own bound
MAX_REPLY_BYTES = 64 << 20
MAX_REPLIES = 500  # to one question, before we take it for a loop
MAX_URL_CHARS = 6_000  # of titles; servers refuse requests of more than about 8 kB
_FEW = 3  # titles that a server may fail at before we take it for the server; of many, a hundredth
_AT_ONCE: dict[Source, int] = {
    "cirrusdoc": TITLES_AT_ONCE,
    "cirrusbuilddoc": 10,
    "extracts": 1,
}  # made for us; 1 its bound


class Spoiled(TransientSource):
    """A reply that is no good, perhaps for what was asked: fewer titles may get a better one."""


class Fate(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of one title: `page`, or the reason why there is none. `document` is as a dump has it."""

    title: str
    fate: str
    detail: str = ""
    source: str = ""
    page_id: int = 0
    document: dict[str, Any] | None = None


@dataclass
class Tally:
    """What the calls of one API took."""

    requests: int = 0
    loops_cut: int = 0
    errors: Counter[str] = field(default_factory=Counter)


class WikiApi:
    """The Action API of one wiki."""

    def __init__(
        self,
        url: str,
        user_agent: str,
        *,
        patience: Patience | None = None,
        maxlag_s: int = 5,
        requests_per_minute: int = 200,
    ) -> None:
        """
        Args:
            url: of its `api.php`, or the root of the wiki's server, below which it is `w/api.php`.
            user_agent: with a contact, as Wikimedia asks.
            patience: with the server; 4 attempts, if not given.
            maxlag_s: ask the server to refuse us while its replicas lag by more, and then wait so long at least.
            requests_per_minute: at most.

        Raises:
            BadRequest: if the URL is none that may be asked.
        """
        try:
            root = check_root(url)
        except BadRequest as error:
            raise BadRequest(str(error).replace("mirror", "API", 1)) from None
        self.url = root if root.endswith(".php") else f"{root}/w/api.php"
        self.tally = Tally()
        self._user_agent = user_agent
        self._patience = patience or Patience(max_attempts=4, max_wait_s=600)
        self._maxlag_s = maxlag_s
        self._pause_s = 60 / requests_per_minute
        self._asked_at = float("-inf")
        self._sources: Sequence[Source] = SOURCES  # those that the wiki is not known to lack
        self._failed, self._may_fail = set[str](), _FEW

    def articles(self) -> int:
        """How many articles the wiki has."""
        with self._session() as session:
            question = {"meta": "siteinfo", "siprop": "statistics"}
            reply = session.retry(lambda: self._reply(session, question, "statistics"), f"{self.url}: statistics")
        found = reply.get("query", {}).get("statistics", {}).get("articles")
        if not isinstance(found, int):
            raise SourceUnavailable(f"{self.url}: tells no number of articles; expected a MediaWiki of today")
        return found

    def fetch(self, titles: Sequence[str], on_batch: Callable[[int], object] = lambda n: None) -> Iterator[Fate]:
        """What became of each title, a batch at a time; in no order within one.

        Args:
            titles: as a person writes them. A page that two of them lead to comes twice.
            on_batch: told how many titles have their fate now, after each batch.

        Raises:
            SourceUnavailable: if the server refuses, stays busy or broken, or fails at more than a few titles.
        """
        asked: dict[str, list[str]] = {}  # a title as it is asked for: as it was written, each way
        done = 0
        self._failed, self._may_fail = set(), max(_FEW, len(titles) // 100)
        for title in titles:
            name = prepared(title)
            if name is None:
                done += 1
                yield Fate(title, "invalid", "no title can be so")
            else:
                asked.setdefault(name, []).append(title)
        with self._session() as session:
            for batch in _batches(list(asked), TITLES_AT_ONCE):
                for fate in self._batch(session, batch):
                    for written in asked[fate.title]:
                        done += 1
                        yield msgspec.structs.replace(fate, title=written)
                on_batch(done)

    def _batch(self, session: Session, names: list[str]) -> Iterator[Fate]:
        """One fate for each title of a batch: from the first source that has its page."""
        left = dict.fromkeys(names, Found("unanswered", "no source answered"))
        for source in list(self._sources):
            for some in _batches(list(left), _AT_ONCE[source]):
                for name, found in self._ask(session, some, source).items():
                    left[name] = found
                    document, why = None, found.detail
                    if found.fate == "page":
                        try:
                            document = document_of(found.page, source)
                        except ValueError as error:
                            why = str(error)
                    if document is not None:
                        del left[name]
                        yield self._page(name, found, document, source)
                    elif found.fate not in ("page", "failed"):  # no source has a page that is not there
                        del left[name]
                        yield Fate(name, found.fate, why)
                    elif why:
                        left[name] = Found(found.fate, why, found.page)
            if not left:
                return
        for name, found in left.items():
            fate = "no_document" if found.fate == "page" else found.fate
            yield Fate(name, fate, found.detail or "the page is there, but no source has its text")

    def _page(self, name: str, found: Found, document: dict[str, Any], source: Source) -> Fate:
        page = found.page
        url = page.get("canonicalurl")
        if isinstance(url, str) and url.startswith("https://"):
            document = {**document, "url": url}
        return Fate(name, "page", "redirected" if found.redirected else "", source, page["pageid"], document)

    def _ask(self, session: Session, names: list[str], source: Source) -> dict[str, Found]:
        """What a source says of some titles, in halves if the reply to all is no good; nothing if the wiki lacks it."""
        if source not in self._sources:
            return {}
        try:
            answer = session.retry(lambda: self._answer(session, names, source), f"{self.url}: {len(names)} titles")
        except SourceUnavailable as error:
            if not isinstance(error.__cause__, Spoiled):
                raise
            if len(names) == 1:
                return {names[0]: self._give_up(names[0], str(error.__cause__))}
            half = len(names) // 2
            return self._ask(session, names[:half], source) | self._ask(session, names[half:], source)
        return {name: answer.find(name) for name in names} if answer else {}

    def _give_up(self, name: str, why: str) -> Found:
        """A title alone for which no reply is any good.

        Raises:
            SourceUnavailable: if there are so many that it is not the titles.
        """
        self._failed.add(name)
        if len(self._failed) > self._may_fail:
            raise SourceUnavailable(
                f"{self.url}: no good answer for {len(self._failed)} titles, the last {name!r:.80}: {why}; expected "
                "one here and there. Run again later: what was fetched is kept"
            )
        return Found("failed", why)

    def _answer(self, session: Session, names: list[str], source: Source) -> Answer | None:
        """All that the API says to one question, to its last `continue`; None if the wiki does not know the source.

        Raises:
            Spoiled: if it is no good, or without end.
        """
        question = {"titles": "|".join(names), **params_of(source)}
        answer, went_on, seen = Answer(), {}, set[str]()
        for n_replies in count(1):
            reply = self._reply(session, question | went_on, f"{names[0]!r} and {len(names) - 1} more")
            try:
                answer.add(reply)
            except ValueError as error:
                raise Spoiled(f"{self.url}: {error}") from None
            if answer.lacks(source):
                self._sources = [each for each in self._sources if each != source]
                logger.warning("%s: has no %s; %s instead", self.url, source, ", ".join(self._sources) or "nothing")
                if not self._sources:
                    raise SourceUnavailable(f"{self.url}: knows none of {', '.join(SOURCES)}: take another wiki")
                return None
            went_on = reply.get("continue") or {}
            if not went_on:
                break
            token = repr(sorted(went_on.items())) if isinstance(went_on, dict) else ""
            if not token or token in seen or n_replies >= MAX_REPLIES:
                self.tally.loops_cut += 1
                raise Spoiled(f"{self.url}: after {n_replies} replies its `continue` leads nowhere: {went_on!r:.120}")
            seen.add(token)
        if answer.is_cut and any(source not in page and page.get("pageid") for page in answer.pages.values()):
            raise Spoiled(f"{self.url}: the reply is cut at the wiki's own bound: {answer.warnings:.160}")
        if any(answer.find(name).fate == "unanswered" for name in names):
            raise Spoiled(f"{self.url}: the reply leaves out titles that were asked for")
        return answer

    def _reply(self, session: Session, question: dict[str, str], what: str) -> dict[str, Any]:
        """One request, one reply, which holds no error.

        Raises:
            TransientSource: if the server asks to come again, or its reply is no good.
            SourceUnavailable: if it refuses.
        """
        form = {"action": "query", "format": "json", "formatversion": "2", "maxlag": str(self._maxlag_s)}
        time.sleep(max(0.0, self._asked_at + self._pause_s - time.monotonic()))
        self._asked_at = time.monotonic()
        self.tally.requests += 1
        url = f"{self.url}?{urlencode(form | question, quote_via=quote)}"
        try:
            with session.open(url, {"Accept-Encoding": "gzip"}, encodings=("identity", "gzip")) as http:
                body = _body(session, http, self.url)
                if body.lstrip()[:1] == b"<":
                    raise TransientSource(f"{self.url}: an HTML page; expected the API's JSON about {what}")
                try:
                    reply = msgspec.json.decode(body, type=dict[str, Any])
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    raise Spoiled(f"{self.url}: {len(body):,} bytes that are no JSON ({error})") from None
                if problem := error_of(reply):
                    raise self._error(problem, session, http)
                return reply
        except NotThere as error:
            raise SourceUnavailable(f"{self.url}: not there; name the wiki's api.php with --api") from error
        except SourceUnavailable as error:
            error.args = (str(error).replace(url, self.url),)  # the whole question is too long for a line
            raise

    def _error(self, problem: ApiError, session: Session, reply: httpx.Response) -> SourceUnavailable:
        """What to raise for an error that the API reports."""
        self.tally.errors[problem.code] += 1
        message = f"{self.url}: {problem}"
        if problem.is_later:
            return session.busy(message, reply, at_least_s=self._maxlag_s if problem.code == "maxlag" else 0)
        return Spoiled(message) if problem.is_of_the_titles else SourceUnavailable(f"{message}: it refuses us")

    def _session(self) -> Session:
        return Session(self.url, self._user_agent, max_connections=1, patience=self._patience)


def _batches(names: list[str], most: int) -> Iterator[list[str]]:
    """Titles as they go into one request: so many at most, and no longer than a URL may be."""
    batch: list[str] = []
    length = 0
    for name in names:
        chars = len(quote(name)) + 3
        if batch and (len(batch) == most or length + chars > MAX_URL_CHARS):
            yield batch
            batch, length = [], 0
        batch.append(name)
        length += chars
    if batch:
        yield batch


def _body(session: Session, reply: httpx.Response, url: str) -> bytes:
    """A reply's bytes, unpacked.

    Raises:
        Spoiled: if they are cut, damaged, or too many.
    """
    inflater = zlib.decompressobj(31) if reply.headers.get("content-encoding") == "gzip" else None
    body = bytearray()
    for chunk in session.chunks(reply):
        room = MAX_REPLY_BYTES + 1 - len(body)
        try:
            body += inflater.decompress(chunk, room) if inflater else chunk
        except zlib.error as error:
            raise Spoiled(f"{url}: the reply cannot be unpacked ({error})") from None
        if len(body) > MAX_REPLY_BYTES:
            raise Spoiled(f"{url}: the reply is over {MAX_REPLY_BYTES:,} bytes; expected a few")
    if inflater and not inflater.eof:
        raise Spoiled(f"{url}: the reply is cut after {len(body):,} bytes")
    return bytes(body)
