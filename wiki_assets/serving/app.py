"""The HTTP service: one FastAPI application, in a process of its own or in the replicas of Ray Serve.

Errors are `application/problem+json`. What a client can get wrong is a 4xx; 503 with `Retry-After` is overload.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import date
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from wiki_assets.serving import metrics, page
from wiki_assets.serving.limits import PROBLEM_TYPE, Guard, Limits, Refusal
from wiki_assets.serving.mcp import mount_mcp
from wiki_assets.serving.service import Service, answer_dict, article_dict, filters_of

if TYPE_CHECKING:
    from wiki_assets.search import Searcher

_LIMITS = Limits()
_FREE = ("/healthz", "/readyz", "/metrics", "/static/")


# --- what is asked


def _within(text: str) -> str:
    if (found := len(text.encode("utf-8"))) > _LIMITS.question_bytes:
        raise ValueError(f"{found:,} bytes, expected at most {_LIMITS.question_bytes:,}")
    if not text.replace("\0", " ").strip():
        raise ValueError("empty, expected some words")
    return text


Text = Annotated[str, AfterValidator(_within), Field(min_length=1, max_length=_LIMITS.question_bytes)]
Wiki = Annotated[
    str | None,
    Field(
        pattern="^[a-z][a-z0-9_]{1,39}$",
        description="Which wiki, such as simplewiki; may be left out where only one is published",
    ),
]
K = Annotated[int, Field(ge=1, le=_LIMITS.passages, description="How many passages")]
PageId = Annotated[int, Path(ge=0, le=2**63 - 1, description="Wikipedia's own id of the page")]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Question(_Asked):
    """A question, and which passages may answer it."""

    q: Annotated[Text, Field(description="The question, in your own words: up to 8 KiB", examples=["deepest lake"])]
    wiki: Wiki = None
    k: K = 10
    mode: Annotated[
        Literal["hybrid", "dense", "lexical"],
        Field(description="By meaning (dense), by words (lexical), or both (hybrid)"),
    ] = "hybrid"
    group: Annotated[bool, Field(description="The best passage of each article only")] = False
    category: Annotated[
        str | None, Field(min_length=1, max_length=255, description="Only articles of this category")
    ] = None
    updated_after: Annotated[date | None, Field(description="Only articles edited on this day or later")] = None
    updated_before: Annotated[date | None, Field(description="Only articles edited on this day or earlier")] = None


class Likeness(_Asked):
    """Which wiki's pages, and how many."""

    wiki: Wiki = None
    k: K = 10


class Slice(_Asked):
    """Which wiki's article, and which part of its text."""

    wiki: Wiki = None
    start: Annotated[int, Field(ge=0, le=2**31 - 1, description="First character of the text")] = 0
    chars: Annotated[int, Field(ge=1, le=_LIMITS.article_chars, description="How many characters")] = 100_000


class Named(Slice):
    """An article by its title, or by a title that redirects to it."""

    title: Annotated[str, Field(min_length=1, max_length=512, examples=["Lake Baikal"])]


class Texts(_Asked):
    """Texts to embed as questions are embedded."""

    texts: Annotated[list[Text], Field(min_length=1, max_length=_LIMITS.texts)]
    wiki: Wiki = None


# --- what is answered; for the description of the service, since answers are written without a second check


class HitShown(BaseModel):
    """One passage. Offsets count characters of the article's text; `score` compares hits of one answer only; a rank or
    similarity is null where that way of searching did not find the passage."""

    rank: int
    score: float
    page_id: int
    title: str
    url: str
    revision: int
    passage: str
    start: int
    end: int
    snapshot: str
    wiki: str
    permalink: str
    similarity: float | None
    dense_rank: int | None
    lexical_rank: int | None


class AnswerShown(BaseModel):
    """Passages, best first, and the build of the index that they come from: one build, whole."""

    hits: list[HitShown]
    wiki: str
    snapshot: str
    build: int
    collection: str
    mode: str
    note: str
    seconds: float
    licence: str


class ArticleShown(BaseModel):
    """An article as the snapshot has it. `chars` is the length of the whole text; `next_start` is where to go on."""

    page_id: int
    title: str
    text: str
    start: int
    chars: int
    next_start: int | None
    url: str
    permalink: str
    revision: int
    updated: str | None
    redirects: list[str]
    categories: list[str]
    language: str
    snapshot: str
    wiki: str
    licence: str


class VectorsShown(BaseModel):
    """Vectors of unit length, in the order of the texts."""

    vectors: list[list[float]]
    model: str
    dim: int
    wiki: str


class WikiShown(BaseModel):
    """A wiki that can be asked."""

    wiki: str
    snapshot: str
    build: int
    collection: str
    pages: int
    passages: int
    published_at: str
    model: str


class WikisShown(BaseModel):
    """Every wiki that can be asked."""

    wikis: list[WikiShown]


class StateShown(BaseModel):
    """How the service is."""

    status: str


class ProblemShown(BaseModel):
    """An error, as RFC 9457 writes it. `detail` says what was found and what is expected."""

    type: str
    title: str
    status: int
    detail: str


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors that an operation can answer with; every one can be refused for its size or its rate."""
    what = {
        400: "cannot be asked",
        404: "not published, or no such page",
        405: "another method",
        408: "the body came too slowly",
        413: "the body is too large",
        414: "the address is too long",
        415: "the body is not JSON",
        422: "a value is missing, unknown or out of bounds",
        429: "too many requests of one client; see Retry-After",
        500: "the index cannot be asked as it is",
        503: "too busy, or not ready; see Retry-After",
    }
    schema = {"schema": {"$ref": "#/components/schemas/ProblemShown"}}
    return {s: {"description": what[s], "content": {PROBLEM_TYPE: schema}} for s in sorted({*statuses, 414, 429, 503})}


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json", headers={"cache-control": "no-cache"})


# --- the operations

router = APIRouter()


def _service(request: Request) -> Service:
    return request.app.state.service


@router.get("/search", response_model=AnswerShown, responses=_errors(400, 404, 422, 500), tags=["search"])
async def search(request: Request, question: Annotated[Question, Query()]) -> Response:
    """The passages that answer a question best."""
    return await _search(request, question)


@router.post(
    "/search",
    response_model=AnswerShown,
    responses=_errors(400, 404, 408, 413, 415, 422, 500),
    tags=["search"],
    operation_id="search_by_post",
)
async def search_by_post(request: Request, question: Question) -> Response:
    """The same, for questions that do not belong into an address."""
    return await _search(request, question)


async def _search(request: Request, asked: Question) -> Response:
    filters = filters_of(asked.category, asked.updated_after, asked.updated_before)
    answer = await _service(request).search(
        asked.q, wiki=asked.wiki, k=asked.k, mode=asked.mode, filters=filters, group=asked.group
    )
    return _json(answer_dict(answer))


@router.get("/similar/{page_id}", response_model=AnswerShown, responses=_errors(400, 404, 422, 500), tags=["search"])
async def similar(request: Request, page_id: PageId, asked: Annotated[Likeness, Query()]) -> Response:
    """The articles most like one: the best passage of each."""
    return _json(answer_dict(await _service(request).similar(page_id, wiki=asked.wiki, k=asked.k)))


@router.get("/article", response_model=ArticleShown, responses=_errors(400, 404, 422, 500), tags=["articles"])
async def article_by_title(request: Request, asked: Annotated[Named, Query()]) -> Response:
    """An article by its title, as the snapshot has it."""
    article = await _service(request).article(wiki=asked.wiki, title=asked.title)
    return _json(article_dict(article, start=asked.start, chars=asked.chars))


@router.get("/article/{page_id}", response_model=ArticleShown, responses=_errors(400, 404, 422, 500), tags=["articles"])
async def article(request: Request, page_id: PageId, asked: Annotated[Slice, Query()]) -> Response:
    """An article by its id, as the snapshot has it."""
    article = await _service(request).article(wiki=asked.wiki, page_id=page_id)
    return _json(article_dict(article, start=asked.start, chars=asked.chars))


@router.post(
    "/embed", response_model=VectorsShown, responses=_errors(400, 404, 408, 413, 415, 422, 500), tags=["search"]
)
async def embed(request: Request, asked: Texts) -> Response:
    """Texts as vectors of the model that a wiki's index was made with, as questions are embedded."""
    vectors, pointer = await _service(request).embed(asked.texts, wiki=asked.wiki)
    return _json({"vectors": vectors, "model": pointer["model"], "dim": len(vectors[0]), "wiki": pointer["wiki"]})


@router.get("/wikis", response_model=WikisShown, responses=_errors(), tags=["articles"])
async def wikis(request: Request) -> Response:
    """What is published: every wiki, with its snapshot and its build."""
    return _json({"wikis": await _service(request).wikis()})


@router.get("/healthz", response_model=StateShown, tags=["operation"])
async def healthz() -> Response:
    """Whether the process lives."""
    return _json({"status": "alive"})


@router.get("/readyz", response_model=StateShown, responses={503: _errors()[503]}, tags=["operation"])
async def readyz(request: Request) -> Response:
    """Whether questions are answered: an index is published and the model is loaded."""
    if reason := await _service(request).ready():
        raise Refusal(503, reason, retry_after_s=2)
    return _json({"status": "ready"})


@router.get("/metrics", response_class=Response, tags=["operation"])
def metrics_text(request: Request) -> Response:
    """What Prometheus reads."""
    return Response(_service(request).metrics.text(), headers={"content-type": metrics.CONTENT_TYPE})


def create_app(
    make_searcher: "Callable[[], Searcher]", limits: Limits = _LIMITS, *, trusted_proxies: str = "", local: bool = True
) -> FastAPI:
    """The service.

    Args:
        make_searcher: opens the index; called once, when the service starts.
        limits: bounds on requests.
        trusted_proxies: addresses or networks, with commas between, whose X-Forwarded-For names the client.
        local: whether it listens on this machine only.
    """
    service = Service(make_searcher, limits)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        async with mcp_life():
            yield
        await service.stop()

    app = FastAPI(
        title="wiki_assets",
        summary="Passages of Wikipedia that answer a question, from a published snapshot.",
        description="Errors are `application/problem+json`. Text is CC BY-SA 4.0: keep title, url and revision.",
        version=version("wiki_assets"),
        lifespan=life,
        docs_url=None,  # its page would come from another host
        redoc_url=None,
    )
    app.state.service = service
    app.add_middleware(Guard, limits=limits, metrics=service.metrics, free=_FREE)
    if trusted_proxies:
        from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

        app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=trusted_proxies)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(RequestValidationError, _not_understood)
    app.add_exception_handler(HTTPException, _http_error)
    app.include_router(router)
    app.include_router(page.router)
    mcp_life = mount_mcp(app, service, local=local)
    _describe_problems(app)
    return app


def _describe_problems(app: FastAPI) -> None:
    """OpenAPI with our errors in it, made once."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        fresh = app.openapi_schema is None
        schema = made()
        if fresh:
            schema["components"]["schemas"]["ProblemShown"] = ProblemShown.model_json_schema()
            for name in ("HTTPValidationError", "ValidationError"):
                schema["components"]["schemas"].pop(name, None)
        return schema

    app.openapi = openapi


async def _refused(_: Request, refusal: Any) -> Response:
    response = Response(refusal.body, refusal.status)
    response.raw_headers = refusal.headers
    return response


async def _not_understood(request: Request, error: Any) -> Response:
    """The first thing that is wrong with a request. What was sent is not sent back."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if request.method == "POST" and kind != "application/json" and not kind.endswith("+json"):
        return await _refused(request, Refusal(415, "expected a body with content-type: application/json"))
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:])[:80]
    said = str(first["msg"]).removeprefix("Value error, ")[:300]
    known = f"{place}: {said}" if place else said
    return await _refused(request, Refusal(422, known.encode("ascii", "backslashreplace").decode()))


async def _http_error(request: Request, error: Any) -> Response:
    """An address or a method that is not ours, or a body that is no JSON."""
    said = {404: "no such address; /openapi.json lists them", 405: "that method is not answered here"}
    response = await _refused(request, Refusal(error.status_code, said.get(error.status_code, str(error.detail))))
    for name, value in (error.headers or {}).items():
        response.headers[name] = value
    path = getattr(request.scope.get("route"), "path", "")
    if error.status_code == 405 and (known := request.app.openapi()["paths"].get(path)):
        response.headers["allow"] = ", ".join(method.upper() for method in known)  # of every route with this path
    return response
