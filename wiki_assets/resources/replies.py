"""Read what MediaWiki's Action API says: its errors, which come with HTTP 200; what became of each title; the page.

Source: https://www.mediawiki.org/wiki/API:Query (titles, continue), API:Errors_and_warnings, Manual:Maxlag_parameter;
includes/Api/QueryCirrusDoc.php and QueryBuildDocument.php of MediaWiki's CirrusSearch extension; TextExtracts.
"""

import re
import unicodedata
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import unquote

Source = Literal["cirrusdoc", "cirrusbuilddoc", "extracts"]
SOURCES: tuple[Source, ...] = ("cirrusdoc", "cirrusbuilddoc", "extracts")
"""What has a page's document: the search index; the same made afresh; its plain text, by the extension TextExtracts."""

LATER = frozenset({"maxlag", "ratelimited", "readonly", "concurrency-limit", "timeout", "servererror"})
OF_THE_TITLES = frozenset({"badcontinue", "toomanyvalues", "invalidtitle"})
"""Errors that fewer titles, or others, may not have; so may those that begin with `internal_api_error`."""

_FIELDS = (  # of about forty: what the pipeline keeps, and what is small beside it; not the wikitext, nor the links
    "auxiliary_text|category|content_model|coordinates|create_timestamp|defaultsort|display_title|heading|"
    "incoming_links|language|namespace|namespace_text|opening_text|page_id|page_type|popularity_score|redirect|"
    "redirect_target|template|text|text_bytes|timestamp|title|version|wiki|wikibase_item"
)
_HEADING = re.compile(r"^(={2,6})[ \t]*(.+?)[ \t]*\1[ \t]*$", re.MULTILINE)
_BREAKS_A_LIST = re.compile(r"[|\x00-\x1f\x7f\ud800-\udfff]")
_MAX_TITLE_BYTES = 600  # a title has 255 at most; with the name of its namespace, a little more


def prepared(title: str) -> str | None:
    """A title as it is asked for, or None if no page can have it: one of which MediaWiki could not even be asked."""
    name = unicodedata.normalize("NFC", " ".join(title.replace("_", " ").split(" ")).strip())
    if not name or _BREAKS_A_LIST.search(name) or len(name.encode()) > _MAX_TITLE_BYTES:
        return None
    return name


def params_of(source: Source) -> dict[str, str]:
    """What to ask of each page, by parameter."""
    common = {"redirects": "1", "converttitles": "1", "inprop": "url"}
    if source == "cirrusdoc":
        return common | {"prop": "cirrusdoc|info", "cdincludes": _FIELDS}
    if source == "cirrusbuilddoc":
        return common | {"prop": "cirrusbuilddoc|info"}
    return common | {
        "prop": "extracts|info|pageprops|revisions|categories|redirects",
        "explaintext": "1",
        "exsectionformat": "wiki",
        "ppprop": "wikibase_item",
        "rvprop": "ids|timestamp",
        "cllimit": "max",
        "rdlimit": "max",
        "rdnamespace": "0",
    }


@dataclass(frozen=True)
class ApiError:
    """An error that the API reports in its text."""

    code: str
    info: str
    lag_s: float = 0

    @property
    def is_later(self) -> bool:
        """Whether it says: come again."""
        return self.code in LATER

    @property
    def is_of_the_titles(self) -> bool:
        """Whether it may be the titles' own."""
        return self.code in OF_THE_TITLES or self.code.startswith("internal_api_error")

    def __str__(self) -> str:
        return f"{self.code} ({self.info[:160]})"


def error_of(reply: dict[str, Any]) -> ApiError | None:
    """The error in a reply, in either form; None where it has none."""
    found = reply.get("error") or next(iter(reply.get("errors") or []), None)
    if not isinstance(found, dict):
        return ApiError("unknown", str(found)) if found else None
    lag = found.get("lag")
    info = found.get("info") or found.get("text") or ""
    return ApiError(str(found.get("code", "unknown")), str(info), float(lag) if isinstance(lag, int | float) else 0)


def warnings_of(reply: dict[str, Any]) -> str:
    """All warnings of a reply, in one line."""
    found = reply.get("warnings") or {}
    parts = found.values() if isinstance(found, dict) else found
    return " ".join(str(part.get("warnings") or part.get("text") or part) for part in parts if isinstance(part, dict))


@dataclass
class Answer:
    """What the replies to one question say, put together: each has a `continue` but the last."""

    renamed: dict[str, str] = field(default_factory=dict)
    redirects: dict[str, dict[str, Any]] = field(default_factory=dict)
    interwiki: set[str] = field(default_factory=set)
    pages: dict[str, dict[str, Any]] = field(default_factory=dict)
    warnings: str = ""

    def add(self, reply: dict[str, Any]) -> None:
        """Take one reply. A page's lists go on from reply to reply; all else is said once.

        Raises:
            ValueError: if it is not of the form that `formatversion=2` has.
        """
        try:
            query = reply.get("query") or {}
            for each in (*query.get("normalized", ()), *query.get("converted", ())):
                given = unquote(each["from"]) if each.get("fromencoded") else each["from"]
                self.renamed[given] = each["to"]
            self.redirects |= {each["from"]: each for each in query.get("redirects", ())}
            self.interwiki |= {each["title"] for each in query.get("interwiki", ())}
            for page in query.get("pages", ()):
                known = self.pages.setdefault(page["title"], {})
                for name, value in page.items():
                    if isinstance(value, list) and isinstance(known.get(name), list):
                        known[name] = known[name] + value
                    else:
                        known[name] = value
            self.warnings += warnings_of(reply)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not what the API answers ({type(error).__name__}: {error})") from None

    @property
    def is_cut(self) -> bool:
        """Whether a reply was too large for the wiki's own bound, so that pages lack what was asked for."""
        return "truncated" in self.warnings

    def lacks(self, source: Source) -> bool:
        """Whether the wiki does not know a source."""
        return "Unrecognized value" in self.warnings and source in self.warnings

    def find(self, title: str) -> "Found":
        """Follow a title, as it was asked for, to its page: spelling, then redirects."""
        name = self._spelled(title)
        seen = {name}
        while (hop := self.redirects.get(name)) is not None:
            if hop.get("tointerwiki"):
                return Found("interwiki", f"redirects to {hop['to']}")
            name = self._spelled(str(hop["to"]))
            if name in seen:
                return Found("circular", f"redirects lead back to {name}")
            seen.add(name)
        if name in self.interwiki:
            return Found("interwiki", "of another wiki")
        page = self.pages.get(name)
        if page is None:
            return Found("unanswered", "the reply does not mention it")
        for reason in ("invalid", "special", "missing"):
            if page.get(reason):
                return Found(reason, str(page.get("invalidreason", "")))
        return Found("page", page=page, redirected=len(seen) > 1)

    def _spelled(self, title: str) -> str:
        for _ in range(3):  # normalized, then converted to another script
            if title not in self.renamed:
                break
            title = self.renamed[title]
        return title


@dataclass(frozen=True)
class Found:
    """What became of a title: a page, or the reason why there is none."""

    fate: str
    detail: str = ""
    page: dict[str, Any] = field(default_factory=dict)
    redirected: bool = False


def document_of(page: dict[str, Any], source: Source) -> dict[str, Any] | None:
    """A page's document, as a dump has it; None where this source has none of it.

    Raises:
        ValueError: if it is not of the form that the source has.
    """
    page_id, title, namespace = page.get("pageid"), page["title"], page.get("ns")
    if not isinstance(page_id, int) or not isinstance(namespace, int):
        raise ValueError(f"page {title!r}: no pageid or ns")
    if source == "extracts":
        return _from_extract(page, page_id, title, namespace)
    if source == "cirrusdoc":
        found = page.get("cirrusdoc") or [{}]
        document = found[0].get("source") if isinstance(found, list) and isinstance(found[0], dict) else None
    else:
        document = page.get("cirrusbuilddoc")
    if not document:
        return None
    if not isinstance(document, dict):
        raise ValueError(f"page {title!r}: {source} is no object")
    document = {"page_id": page_id, **{name: value for name, value in document.items() if value is not None}}
    if document["page_id"] != page_id or not document.get("title"):
        return None  # the index still has another page in its place
    return {name: value for name, value in document.items() if name not in ("source_text", "outgoing_link")}


def _from_extract(page: dict[str, Any], page_id: int, title: str, namespace: int) -> dict[str, Any] | None:
    """The document that the search index would have, as far as an extract tells: headings apart, text on one line."""
    extract = page.get("extract")
    if not isinstance(extract, str):
        return None
    lead, *rest = _HEADING.split(extract)
    bodies, headings = rest[2::3], rest[1::3]
    revision = next(iter(page.get("revisions") or []), {})
    document: dict[str, Any] = {
        "page_id": page_id,
        "title": title.partition(":")[2] if namespace else title,
        "namespace": namespace,
        "text": _one_line(" ".join([lead, *bodies])),
        "opening_text": _one_line(lead) if headings else None,
        "heading": headings,
        "category": [each["title"].partition(":")[2] for each in page.get("categories") or []],
        "redirect": [{"namespace": 0, "title": each["title"]} for each in page.get("redirects") or []],
        "version": revision.get("revid") or page.get("lastrevid"),
        "timestamp": revision.get("timestamp"),
        "language": page.get("pagelanguage"),
        "wikibase_item": (page.get("pageprops") or {}).get("wikibase_item"),
        "page_type": "primary",
    }
    return {name: value for name, value in document.items() if value is not None}


def _one_line(text: str) -> str:
    return " ".join(text.split())
