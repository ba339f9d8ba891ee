"""The page to search on: plain HTML that works without JavaScript, and better with it. Nothing from elsewhere."""

import hashlib
import re
from collections.abc import Mapping
from datetime import date, datetime
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from fastapi import APIRouter, Request
from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup, escape
from pydantic import ValidationError
from starlette.responses import Response

from wiki_assets.serving.limits import Refusal
from wiki_assets.serving.marks import matching_spans
from wiki_assets.serving.service import Service, filters_of
from wiki_assets.stages.addresses import language_of

PER_PAGE, MOST = 10, 50
_READ_CHARS = 200_000  # of an article, on one page
_TYPES = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}
_HTML_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-cache",
}

router = APIRouter(include_in_schema=False)


@cache
def _assets() -> dict[str, bytes]:
    folder = files("wiki_assets.serving") / "page"
    return {f.name: f.read_bytes() for f in folder.iterdir() if f.name.rpartition(".")[2] in _TYPES}


def _address(name: str) -> str:
    """Where an asset is; another address whenever its bytes change, so that a browser may keep it for ever."""
    return f"/static/{name}?v={hashlib.sha256(_assets()[name]).hexdigest()[:12]}"


def marked(passage: str, question: str, wiki: str) -> Markup:
    """A passage as HTML, the words of the question in it marked."""
    parts: list[str] = []
    done = 0
    for start, end in matching_spans(passage, question, language_of(wiki)):
        parts += [escape(passage[done:start]), Markup("<mark>"), escape(passage[start:end]), Markup("</mark>")]
        done = end
    return Markup("".join([*parts, escape(passage[done:])]))


def day(text: str) -> Markup:
    """20250105 as 5 January 2025."""
    when = datetime.strptime(text, "%Y%m%d").date()
    return Markup('<time datetime="{}">{}</time>').format(when.isoformat(), f"{when.day} {when:%B %Y}")


def link(url: str, passage: str = "") -> str:
    """An address to follow, which opens the page where the passage begins; nothing that is not of the web."""
    if urlsplit(url).scheme not in ("http", "https"):
        return "#"
    words = re.split(r"\s+", passage.strip())[:6] if passage else []
    if len(words) < 3:
        return url
    return f"{url}#:~:text={quote(' '.join(words), safe='').replace('-', '%2D')}"


@cache
def _templates() -> Environment:
    env = Environment(
        loader=PackageLoader("wiki_assets.serving", "page"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {"day": day, "marked": marked, "link": link, "language": language_of, "thousands": "{:,}".format}
    env.globals |= {"address": _address, "here": _here}
    return env


def _here(**values: Any) -> str:
    """An address of this page."""
    return "/?" + urlencode({name: value for name, value in values.items() if value not in (None, "", False)})


def _html(template: str, status: int = 200, **values: Any) -> Response:
    text = _templates().get_template(template).render(values)
    return Response(text, status, headers=_HTML_HEADERS, media_type="text/html")


# --- what the form asks


class _Form:
    """The fields of the form, as far as they make sense: a page is shown whatever is in the address."""

    def __init__(self, given: Mapping[str, str]) -> None:
        self.q = given.get("q", "").replace("\0", " ").strip()
        self.wiki = given.get("wiki") or None
        self.mode = given.get("mode", "hybrid")
        self.group = given.get("group", "") in ("1", "on", "true")
        self.category = given.get("category", "").strip()
        self.updated_after = _date(given.get("updated_after", ""))
        self.updated_before = _date(given.get("updated_before", ""))
        self.k = _number(given.get("k", ""), PER_PAGE, 1, MOST) or PER_PAGE
        self.similar = _number(given.get("similar", ""), None, 0, 2**63 - 1)
        self.page = _number(given.get("page", ""), None, 0, 2**63 - 1)
        self.start = _number(given.get("start", ""), 0, 0, 2**31) or 0
        self.end = _number(given.get("end", ""), 0, 0, 2**31) or 0

    @property
    def refined(self) -> bool:
        """Whether anything but the question differs from what the form shows at first."""
        return bool(self.mode != "hybrid" or self.group or self.category or self.updated_after or self.updated_before)

    def address(self, **changes: Any) -> str:
        """The address of this search, or of one a little different."""
        values: dict[str, Any] = {
            "q": self.q,
            "similar": self.similar,
            "wiki": self.wiki,
            "mode": "" if self.mode == "hybrid" else self.mode,
            "group": "1" if self.group else "",
            "category": self.category,
            "updated_after": self.updated_after,
            "updated_before": self.updated_before,
        }
        return _here(**(values | changes))


def _date(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def _number(text: str, default: int | None, low: int, high: int) -> int | None:
    return min(max(int(text), low), high) if text.isascii() and text.isdigit() and len(text) < 20 else default


# --- pages


@router.get("/")
async def home(request: Request) -> Response:
    """The page: the form, and what it asks."""
    form = _Form(request.query_params)
    service: Service = request.app.state.service
    try:
        wikis = await service.wikis()
    except Refusal as refusal:
        return _html("index.html", refusal.status, form=form, wikis=[], problem=refusal)
    if form.page is not None:
        return await _read(service, form)
    found = await _find(service, form)
    return _html("index.html", _status(found), form=form, wikis=wikis, **found)


@router.get("/results")
async def results(request: Request) -> Response:
    """What the form asks, without the page around it: for the page's own script."""
    form = _Form(request.query_params)
    found = await _find(request.app.state.service, form)
    return _html("results.html", _status(found), form=form, **found)


def _status(found: Mapping[str, Any]) -> int:
    refusal = found.get("problem")
    return refusal.status if refusal else 200


async def _find(service: Service, form: _Form) -> dict[str, Any]:
    """The answer to the form, or what is wrong with it."""
    from wiki_assets.serving.app import Likeness, Question

    try:
        if form.similar is not None:
            asked = Likeness(wiki=form.wiki, k=form.k)
            article = await service.article(wiki=asked.wiki, page_id=form.similar)
            answer = await service.similar(form.similar, wiki=asked.wiki, k=asked.k)
            return {"answer": answer, "like": article}
        if not form.q:
            return {}
        asked = Question(q=form.q, wiki=form.wiki, k=form.k, mode=form.mode, group=form.group)  # type: ignore[arg-type]
        filters = filters_of(form.category, form.updated_after, form.updated_before)
        answer = await service.search(
            asked.q, wiki=asked.wiki, k=asked.k, mode=asked.mode, filters=filters, group=asked.group
        )
        return {"answer": answer, "more": len(answer.hits) == form.k and form.k < MOST and min(form.k * 2, MOST)}
    except ValidationError as error:
        first = error.errors()[0]
        said = str(first["msg"]).removeprefix("Value error, ")
        return {"problem": Refusal(422, f"{'.'.join(map(str, first['loc']))}: {said}")}
    except Refusal as refusal:
        return {"problem": refusal}


async def _read(service: Service, form: _Form) -> Response:
    """An article as the snapshot has it, the passage that was found in it marked."""
    try:
        article = await service.article(wiki=form.wiki, page_id=form.page)
    except Refusal as refusal:
        return _html("index.html", refusal.status, form=form, wikis=[], problem=refusal)
    text = article.text
    start, end = min(form.start, len(text)), min(max(form.end, form.start), len(text))
    first = max(0, start - _READ_CHARS // 2) if len(text) > _READ_CHARS else 0
    last = min(len(text), first + _READ_CHARS)
    parts = {"before": text[first:start], "passage": text[start:end], "after": text[end:last]}
    cut = len(text) - (last - first)
    return _html("article.html", form=form, article=article, parts=parts, cut=cut)


@router.get("/docs")
async def docs(request: Request) -> Response:
    """The operations, as OpenAPI describes them."""
    return _html("docs.html", operations=_operations(request.app.openapi()), base=str(request.base_url).rstrip("/"))


def _operations(schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = []
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            fields = [
                {"name": p["name"], "about": p["schema"].get("description") or p.get("description", ""),
                 "required": p.get("required", False), "default": p["schema"].get("default")}
                for p in operation.get("parameters", [])
            ]  # fmt: skip
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            if name := body.get("$ref", "").rpartition("/")[2]:
                model = schema["components"]["schemas"][name]
                fields += [
                    {"name": n, "about": f.get("description", ""), "required": n in model.get("required", ()),
                     "default": f.get("default")}
                    for n, f in model["properties"].items()
                ]  # fmt: skip
            about = operation.get("description") or operation["summary"]
            found.append({"method": method.upper(), "path": path, "about": about, "fields": fields})
    return found


@router.get("/static/{name}")
async def asset(name: str) -> Response:
    """One of the page's own files."""
    data = _assets().get(name)
    if data is None:
        raise Refusal(404, "no such file")
    headers = {"cache-control": "public, max-age=31536000, immutable", "content-type": _TYPES[name.rpartition(".")[2]]}
    return Response(data, headers=headers)


@router.get("/favicon.ico")
async def favicon() -> Response:
    """For browsers that ask for it by this name."""
    return await asset("icon.svg")
