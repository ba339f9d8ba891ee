"""What can be asked, however it is asked: HTTP, the page and an assistant's tools all come through here."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from wiki_assets.errors import BadRequest, NotPublished, SchemaMismatch, SourceUnavailable, WikiAssetsError
from wiki_assets.keys import check_wiki
from wiki_assets.serving.limits import Limits, Overloaded, Pool, Refusal
from wiki_assets.serving.metrics import Metrics
from wiki_assets.stages.articles import LICENCE

if TYPE_CHECKING:
    from wiki_assets.search import Answer, Article, Filters, Searcher

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class Service:
    """A searcher behind bounds: blocking work in a pool, errors as refusals.

    Args:
        make_searcher: called once, in a thread, when the service starts.
        limits: the bounds.
    """

    def __init__(self, make_searcher: "Callable[[], Searcher]", limits: Limits) -> None:
        self.limits = limits
        self.metrics = Metrics()
        self._make_searcher = make_searcher
        self._searcher: Searcher | None = None
        self._pool: Pool | None = None
        self._starting: asyncio.Task[None] | None = None
        self._not_warm = "starting"
        self.metrics.show_published(lambda: self._searcher.wikis() if self._searcher else ())

    # --- life

    def start(self) -> None:
        """Open what is published and load the model, while requests may already come in."""
        self._pool = Pool(self.limits, self.metrics)
        self._starting = asyncio.create_task(self._start())

    async def _start(self) -> None:
        try:
            self._searcher = await asyncio.to_thread(self._make_searcher)
        except Exception:
            logger.exception("the index cannot be opened")
            return
        await self._warm(self._searcher)

    async def stop(self) -> None:
        """Let running searches end, then let go of everything."""
        if self._starting:
            await self._starting
        if self._pool:
            await asyncio.to_thread(self._pool.close)
        if self._searcher:
            await asyncio.to_thread(self._searcher.close)

    async def ready(self) -> str:
        """Empty where questions are answered now; else the reason why not."""
        if self._starting is None or not self._starting.done():
            return "starting: the model is being loaded"
        if self._searcher is None:
            return "the index cannot be opened; the service's log says why"
        if not await asyncio.to_thread(self._searcher.wikis):
            return "nothing is published yet"
        return self._not_warm and await self._warm(self._searcher)

    async def _warm(self, searcher: "Searcher") -> str:
        self._not_warm = "the index cannot be asked as it is; the service's log says why"
        try:
            await asyncio.to_thread(searcher.warm)
            self._not_warm = ""
        except WikiAssetsError as error:
            logger.warning("not ready: %s", error)
        except Exception:
            logger.exception("not ready")
        return self._not_warm

    # --- questions

    async def wikis(self) -> list[dict[str, Any]]:
        """What is published: wiki, snapshot, build, collection, model, pages, passages, published_at."""
        names = ("wiki", "snapshot", "build", "collection", "pages", "passages", "published_at")
        pointers = await self._run(lambda searcher: searcher.wikis())
        return [{name: p[name] for name in names} | {"model": p["model"]["name"]} for p in pointers]

    async def search(
        self, question: str, *, wiki: str | None, k: int, mode: Any, filters: "Filters | None", group: bool
    ) -> "Answer":
        """As `Searcher.search`; raises Refusal."""
        wiki = await self._named(wiki)
        return await self._run(
            lambda searcher: searcher.search(question, wiki=wiki, k=k, mode=mode, filters=filters, group=group),
            wiki=wiki,
        )

    async def similar(self, page_id: int, *, wiki: str | None, k: int) -> "Answer":
        """As `Searcher.similar`; raises Refusal."""
        wiki = await self._named(wiki)
        return await self._run(lambda searcher: searcher.similar(page_id, wiki=wiki, k=k), wiki=wiki, absent=404)

    async def article(self, *, wiki: str | None, page_id: int | None = None, title: str | None = None) -> "Article":
        """As `Searcher.article`; raises Refusal."""
        wiki = await self._named(wiki)
        return await self._run(
            lambda searcher: searcher.article(wiki=wiki, page_id=page_id, title=title), wiki=wiki, absent=404
        )

    async def embed(self, texts: Sequence[str], *, wiki: str | None) -> tuple[list[list[float]], dict[str, Any]]:
        """Vectors of texts, and the pointer of the wiki whose model made them; raises Refusal."""
        name = await self._named(wiki)
        vectors = await self._run(lambda searcher: searcher.embed(texts, wiki=name), wiki=name)
        return vectors.tolist(), next(p for p in await self.wikis() if p["wiki"] == name)

    async def _named(self, wiki: str | None) -> str:
        """The wiki to ask: the one that is named, or the only one that is published."""
        if wiki is not None:
            try:
                return check_wiki(wiki)
            except BadRequest as error:
                raise Refusal(422, str(error)) from None
        published = [pointer["wiki"] for pointer in await self._run(lambda searcher: searcher.wikis())]
        if not published:
            raise Refusal(404, "nothing is published here yet")
        if len(published) > 1:
            raise Refusal(400, f"several wikis are published here, name one: {', '.join(published)}")
        return published[0]

    async def _run(self, ask: "Callable[[Searcher], T]", *, wiki: str = "", absent: int = 400) -> T:
        """Ask the searcher in the pool, and say what went wrong as a client should hear it.

        Args:
            ask: the question.
            wiki: of which wiki it is asked.
            absent: the status of what cannot be asked; 404 where a name in the address is what is wrong.
        """
        assert self._pool is not None, "start() comes first"
        if self._searcher is None:
            assert self._starting is not None
            await asyncio.shield(self._starting)
        searcher = self._searcher
        if searcher is None:
            raise Refusal(503, "the index cannot be opened; the service's log says why", retry_after_s=30)
        try:
            return await self._pool.run(ask, searcher)
        except Overloaded:
            self.metrics.refused.labels("overload").inc()
            raise Refusal(
                503, f"{self.limits.waiting} searches wait already: try again in a moment", retry_after_s=1
            ) from None
        except BadRequest as error:
            raise Refusal(absent, str(error)) from None
        except NotPublished as error:
            published = [pointer["wiki"] for pointer in searcher.wikis()]
            if wiki not in published:
                raise Refusal(404, f"{wiki} is not published here; published: {', '.join(published)}") from None
            logger.error("%s", error)
            raise Refusal(503, f"{wiki} does not answer now: try again later", retry_after_s=5) from None
        except SourceUnavailable as error:
            logger.error("%s", error)
            raise Refusal(503, "the index does not answer now: try again later", retry_after_s=5) from None
        except (SchemaMismatch, WikiAssetsError) as error:
            logger.error("%s", error)
            raise Refusal(500, "the index cannot be asked as it is; the service's log says why") from None


def filters_of(category: str | None, after: date | None, before: date | None) -> "Filters | None":
    """The filters of a question; None where it has none."""
    from wiki_assets.search import Filters

    return Filters(category, after, before) if category or after or before else None


def answer_dict(answer: "Answer") -> dict[str, Any]:
    """An answer as it is written as JSON, with its licence."""
    return {
        "hits": answer.hits,
        "wiki": answer.wiki,
        "snapshot": answer.snapshot,
        "build": answer.build,
        "collection": answer.collection,
        "mode": answer.mode,
        "note": answer.note,
        "seconds": round(answer.seconds, 4),
        "licence": LICENCE,
    }


def article_dict(article: "Article", *, start: int, chars: int) -> dict[str, Any]:
    """An article as JSON shows it: `chars` characters of its text from `start`, and where the next begin."""
    end = start + chars
    return article.as_dict() | {
        "text": article.text[start:end],
        "start": start,
        "chars": len(article.text),
        "next_start": end if end < len(article.text) else None,
        "licence": LICENCE,
    }
