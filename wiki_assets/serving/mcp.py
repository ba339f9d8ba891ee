"""Tools for assistants: search Wikipedia, read an article, each result with the citation to give for it.

The Model Context Protocol by its official SDK: over standard input and output for an assistant on this machine,
and at /mcp of the HTTP service. Both ask the same `Service`, within the same bounds.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import date, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.transport_security import TransportSecuritySettings
from mcp_types import ToolAnnotations
from pydantic import BaseModel, Field
from starlette.routing import Route

from wiki_assets.serving.limits import Refusal
from wiki_assets.serving.service import Service, article_dict, filters_of
from wiki_assets.stages.articles import LICENCE

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import ASGIApp, Receive, Scope, Send

_ABOUT = (
    "Search a published snapshot of Wikipedia and read its articles. Cite what you use: every passage and article "
    "comes with a citation that names title, snapshot, revision, address and licence."
)
_READS = ToolAnnotations(read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False)

Wiki = Annotated[
    str | None, Field(description="Database name such as simplewiki; leave out where only one is published")
]


class Passage(BaseModel):
    """One passage that answers, and how to cite it."""

    title: str
    passage: str
    citation: str
    url: str
    page_id: int
    start: int = Field(description="Where the passage begins in the article's text, in characters")
    score: float


class Passages(BaseModel):
    """Passages, best first."""

    passages: list[Passage]
    wiki: str
    snapshot: str
    build: int
    licence: str


class ArticleText(BaseModel):
    """An article, or a part of it, and how to cite it."""

    title: str
    text: str
    citation: str
    url: str
    page_id: int
    start: int
    chars: int = Field(description="Length of the whole text, in characters")
    next_start: int | None = Field(description="Ask again with this start for the rest; null at the end")
    categories: list[str]
    licence: str


def cite(title: str, wiki: str, snapshot: str, revision: int, url: str) -> str:
    """How to name a source: title, wiki, day of the snapshot, revision, address, licence."""
    day = datetime.strptime(snapshot, "%Y%m%d").date()
    return f"“{title}”, Wikipedia ({wiki}), revision {revision}, snapshot of {day}, {url}, CC BY-SA 4.0"


def make_server(service: Service, *, own_life: bool) -> MCPServer[None]:
    """The tools.

    Args:
        service: what they ask.
        own_life: whether the server starts and stops the service, as it does over standard input and output.
    """

    @asynccontextmanager
    async def life(_: MCPServer[None]) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await service.stop()

    server: MCPServer[None] = MCPServer(
        "wiki-assets",
        title="Wikipedia",
        instructions=_ABOUT,
        version=version("wiki_assets"),
        log_level="WARNING",
        lifespan=life if own_life else None,
        subscriptions=False,
    )

    @server.tool(title="Search Wikipedia", annotations=_READS)
    async def search_wikipedia(
        question: Annotated[str, Field(max_length=8192, description="What to find, in words of any kind")],
        count: Annotated[int, Field(ge=1, le=50, description="How many passages")] = 5,
        wiki: Wiki = None,
        mode: Annotated[
            Literal["hybrid", "dense", "lexical"], Field(description="By meaning, by words, or both (hybrid)")
        ] = "hybrid",
        one_per_article: bool = False,
        category: Annotated[str | None, Field(description="Only articles of this category")] = None,
        updated_after: Annotated[date | None, Field(description="Only articles edited on this day or later")] = None,
        updated_before: Annotated[date | None, Field(description="Only those edited on this day or earlier")] = None,
    ) -> Passages:
        """Find passages of Wikipedia that answer a question. Give the citation of each passage that you use."""
        filters = filters_of(category, updated_after, updated_before)
        answer = await _or_tool_error(
            service.search(question, wiki=wiki, k=count, mode=mode, filters=filters, group=one_per_article)
        )
        passages = [
            Passage(
                title=hit.title,
                passage=hit.passage,
                citation=cite(hit.title, hit.wiki, hit.snapshot, hit.revision, hit.url),
                url=hit.url,
                page_id=hit.page_id,
                start=hit.start,
                score=hit.score,
            )
            for hit in answer.hits
        ]
        return Passages(
            passages=passages, wiki=answer.wiki, snapshot=answer.snapshot, build=answer.build, licence=LICENCE
        )

    @server.tool(title="Read a Wikipedia article", annotations=_READS)
    async def get_article(
        title: Annotated[str | None, Field(max_length=512, description="Title, or one that redirects to it")] = None,
        page_id: Annotated[int | None, Field(ge=0, description="Id of the page, instead of its title")] = None,
        wiki: Wiki = None,
        start: Annotated[int, Field(ge=0, description="First character of the text")] = 0,
        chars: Annotated[int, Field(ge=1, le=100_000, description="How many characters")] = 10_000,
    ) -> ArticleText:
        """Read an article of Wikipedia, or a part of it, as the snapshot has it. Give its citation if you use it."""
        if (title is None) == (page_id is None):
            raise ToolError("give either title or page_id")
        article = await _or_tool_error(service.article(wiki=wiki, page_id=page_id, title=title))
        return ArticleText.model_validate(
            article_dict(article, start=start, chars=chars)
            | {"citation": cite(article.title, article.wiki, article.snapshot, article.revision, article.url)}
        )

    return server


async def _or_tool_error(asked: Any) -> Any:
    """The answer, or what is wrong with the question, for the assistant to read."""
    try:
        return await asked
    except Refusal as refusal:
        raise ToolError(refusal.detail) from None


def mount_mcp(app: "FastAPI", service: Service, *, local: bool) -> Callable[[], AbstractAsyncContextManager[None]]:
    """Answer the protocol at /mcp, each request on its own, so that any replica can.

    Args:
        app: gets the route.
        service: what the tools ask.
        local: whether only this machine's own names for itself may be asked for (DNS rebinding).

    Returns:
        What must be entered while the service lives.
    """
    endpoint = _Endpoint()
    app.router.routes.append(Route("/mcp", endpoint, methods=["POST"], include_in_schema=False))

    @asynccontextmanager
    async def life() -> AsyncIterator[None]:
        server = make_server(service, own_life=False)
        http = server.streamable_http_app(
            json_response=True,
            stateless_http=True,
            max_request_body_size=service.limits.body_bytes,
            transport_security=None if local else TransportSecuritySettings(enable_dns_rebinding_protection=False),
        )
        async with server.session_manager.run():
            endpoint.app = http
            yield

    return life


class _Endpoint:
    """A route's end that is made anew each time the service starts, as the SDK's sessions must be."""

    app: "ASGIApp"

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        await self.app(scope, receive, send)
