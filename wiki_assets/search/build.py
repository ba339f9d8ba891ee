"""One published build, open for questions: its vectors, its words, and the two together."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wiki_assets.defs.wikis import wiki_config
from wiki_assets.errors import BadRequest, DamagedArtifact, NotPublished, SchemaMismatch
from wiki_assets.files import read_manifest
from wiki_assets.keys import Snapshot
from wiki_assets.resources.chroma import open_store, published_collection
from wiki_assets.resources.local_copy import local_copy
from wiki_assets.resources.models import find_model
from wiki_assets.resources.pins import pinned
from wiki_assets.resources.sharing import Gathered
from wiki_assets.resources.store import Store
from wiki_assets.search.answers import Article, Mode
from wiki_assets.search.pages import Pages
from wiki_assets.search.questioner import Questioner, Questioners
from wiki_assets.settings import Settings
from wiki_assets.stages.addresses import permalink
from wiki_assets.stages.fusion import WEIGHTS, Fused, Weights, best_of_each_page, fuse
from wiki_assets.stages.index import Hit, Row, nearest_passages, nearest_to_each, stored_rows
from wiki_assets.stages.lexical import Filters, LexicalIndex, Match, page_of

if TYPE_CHECKING:
    from chromadb import Collection

_DEEPEST = 4_000  # passages asked of a leg, however many pages are wanted
_FEW = 5_000  # passages that pass the filters and are named to Chroma; of more, the nearest are looked through
_LOOKED_THROUGH = 1_000
_TOGETHER = 8  # questions of one batch: each waits for all of them
_SOME_VECTORS = 512  # whose mean stands for that of all: a cosine with either differs by some 0.02
_PAGE_VECTORS = 64  # of a page, when others like it are looked for


class _Asked(NamedTuple):
    """A question to a build."""

    question: str
    k: int
    mode: Mode
    filters: Filters | None
    group: bool
    vector: NDArray[np.float32] | None
    weights: Weights

    @property
    def depth(self) -> int:
        """How many passages each leg is asked for."""
        return min(max(self.weights.depth, self.k * (4 if self.group else 1)), _DEEPEST)

    @property
    def is_common(self) -> bool:
        """Whether it takes no longer than most, so that others can be asked with it."""
        return self.mode != "lexical" and not self.filters and self.depth == WEIGHTS.depth


class _Near(NamedTuple):
    """The passages nearest to a question, and the question's mean cosine with any passage."""

    passages: list[tuple[str, float]]
    usual: float


_NOT_ASKED = _Near([], 0.0)


class OpenBuild:
    """What a pointer points to. Each part is opened when it is first needed; any number of threads may ask. Until it is
    closed, retention leaves it alone.

    Args:
        pointer: as `published.json` holds it.
        settings: where Chroma and the cache are, and the model.
        questioners: the models, where they outlive this build.
    """

    def __init__(self, pointer: dict[str, Any], settings: Settings, questioners: Questioners | None = None) -> None:
        self.pointer = pointer
        self.snapshot = Snapshot(pointer["wiki"], pointer["snapshot"])
        self._settings = settings
        self._questioners = questioners
        self._store = Store(settings.root)
        self._pages = Pages(self._store, self.snapshot, int(pointer["shards"]))
        self._lock = threading.RLock()
        self._stack = ExitStack()
        self._stack.enter_context(pinned(self._store.build(self.snapshot, pointer["build"])))
        self._parts: dict[str, Any] = {}
        self._together = Gathered(self._answers, at_once=os.cpu_count() or 1, most=_TOGETHER)

    def close(self) -> None:
        """Let go of the store."""
        with self._lock:
            self._parts.clear()
            self._stack.close()

    # --- its parts

    @property
    def collection(self) -> "Collection":
        """The vectors."""
        return self._part("collection", self._open_collection)

    @property
    def middle(self) -> NDArray[np.float32]:
        """The mean of some of the vectors: float32 [dim]. Its product with a question's is a cosine that any passage
        has, on average."""
        return self._part("middle", self._mean_of_some)

    @property
    def lexical(self) -> LexicalIndex | None:
        """The words; None for a build that was published without them."""
        return self._part("lexical", self._open_lexical) if self.pointer.get("lexical") else None

    @property
    def questioner(self) -> Questioner:
        """The model.

        Raises:
            SchemaMismatch: if it is not the one that the vectors were made with.
        """
        return self._part("questioner", self._load_model)

    def _part(self, name: str, make: Callable[[], Any]) -> Any:
        found = self._parts.get(name)
        if found is None:
            with self._lock:
                found = self._parts.get(name)
                if found is None:
                    found = self._parts[name] = make()
        return found

    def _open_collection(self) -> "Collection":
        folder = self._store.build(self.snapshot, self.pointer["build"]) / "chroma"
        client = self._stack.enter_context(open_store(folder, self._settings.chroma or self.pointer["server"]))
        return published_collection(client, self.pointer["collection"])

    def _mean_of_some(self) -> NDArray[np.float32]:
        found: Any = self.collection.get(limit=_SOME_VECTORS, include=["embeddings"])["embeddings"]
        dim = int(self.pointer["model"]["dim"])
        return np.asarray(found, np.float32).mean(axis=0) if len(found) else np.zeros(dim, np.float32)

    def _open_lexical(self) -> LexicalIndex:
        about, wiki = self.pointer["lexical"], self._store.wiki(self.snapshot.wiki)
        folder = wiki / about["folder"]
        manifest = read_manifest(folder / "manifest.json")
        if manifest is None:
            raise DamagedArtifact(f"{folder}: its manifest is missing; materialize lexical_index, then published_index")
        return LexicalIndex(local_copy(folder, manifest, wiki, self._settings.cache_folder), about["language"])

    def _load_model(self) -> Questioner:
        model, made_with = (
            find_model(wiki_config(self.snapshot.wiki, self._settings, self._store).model),
            self.pointer["model"],
        )
        if model.sha256 != made_with["sha256"]:
            raise SchemaMismatch(
                f"model {model.name!r} ({model.sha256[:12]}…) asked, "
                f"{self.pointer['collection']} was made with {made_with['name']!r} ({made_with['sha256'][:12]}…): "
                "set WIKI_ASSETS_MODEL to that, or materialize again with yours"
            )
        questioners = self._questioners
        if questioners is None:
            questioners = Questioners(self._settings)
            self._stack.callback(questioners.close)
        return questioners.of(model)

    # --- questions

    def search(
        self,
        question: str,
        k: int,
        mode: Mode,
        filters: Filters | None = None,
        *,
        group: bool = False,
        vector: NDArray[np.float32] | None = None,
        weights: Weights = WEIGHTS,
    ) -> tuple[list[Hit], Mode, str]:
        """The k best passages, the mode that answered, and a note where that is not the one asked for.

        Args:
            question: checked.
            k: checked.
            mode: by vectors, by words or by both.
            filters: what a page must be.
            group: the best passage of each of k pages.
            vector: the question's, where the caller has it.
            weights: how the legs are mixed.
        """
        mode, note = self._possible(mode, filters)
        asked = _Asked(question, k, mode, filters, group, vector, weights)
        hits = self._together(asked) if asked.is_common else next(self._answers([asked]))
        return hits, mode, note

    def _answers(self, asked: Sequence[_Asked]) -> Iterator[list[Hit]]:
        """The hits of each question, in their order: of one alone, or of several common ones, as one batch through the
        model and the vectors."""
        lexical = self.lexical
        nearest = iter(self._nearest([one for one in asked if one.mode != "lexical"]))
        for one in asked:
            near, usual = next(nearest) if one.mode != "lexical" else _NOT_ASKED
            matches: list[Match] = []
            if one.mode != "dense" and lexical is not None:
                matches = lexical.search(one.question, one.depth, one.filters)
            worded = [(match.passage_id, match.score) for match in matches]
            if one.mode == "hybrid":
                possible = lexical.possible(one.question) if lexical is not None else None
                ranking = fuse(near, worded, page_of, one.weights, possible=possible, usual=usual)
            else:
                ranking = [
                    Fused(name, score, *((rank, None) if one.mode == "dense" else (None, rank)))
                    for rank, (name, score) in enumerate(near or worded, 1)
                ]
            yield self._hits(ranking, one.k, dict(near), matches, group=one.group)

    def similar(self, page_id: int, k: int) -> list[Hit]:
        """The best passage of each of the k pages that are nearest to the middle of a page's vectors.

        Raises:
            BadRequest: if there is no such page.
        """
        which: dict[str, Any] = {"where": {"page_id": page_id}, "limit": _PAGE_VECTORS}
        if self.lexical is not None:
            own = [match.passage_id for match in self.lexical.page(page_id)[:_PAGE_VECTORS]]
            if not own:
                raise self._no_page(f"page {page_id}")
            which = {"ids": own}
        found = np.asarray(self.collection.get(**which, include=["embeddings"])["embeddings"], np.float32)
        if not len(found):
            raise self._no_page(f"page {page_id}")
        middle = found.mean(axis=0)
        middle /= max(float(np.linalg.norm(middle)), 1e-12)
        near = nearest_passages(self.collection, middle, min(max(WEIGHTS.depth, 4 * k) + len(found), _DEEPEST))
        others = [(name, score) for name, score in near if page_of(name) != page_id]
        ranking = [Fused(name, score, rank, None) for rank, (name, score) in enumerate(others, 1)]
        return self._hits(ranking, k, dict(near), (), group=True)

    def article(self, *, page_id: int | None = None, title: str | None = None) -> Article:
        """A page by its id, its title or a redirect's title.

        Raises:
            BadRequest: if there is no such page.
        """
        if page_id is None:
            among = self.lexical.pages_named(title or "") if self.lexical else None
            page_id = self._pages.named(title or "", among)
            if page_id is None and among is not None and not among:
                raise self._no_page(f"page {title!r:.80}")
        row = self._pages.read(page_id) if page_id is not None else None
        if row is None:
            raise self._no_page(f"page {title!r:.80}" if page_id is None else f"page {page_id}")
        return Article(
            page_id=row["page_id"],
            title=row["title"],
            text=row["text"],
            url=row["url"],
            revision=row["revision"],
            updated=row["timestamp"],
            redirects=row["redirects"],
            categories=row["categories"],
            language=row["language"],
            snapshot=self.snapshot.date,
            wiki=self.snapshot.wiki,
            permalink=permalink(row["url"], row["revision"]),
        )

    def _no_page(self, what: str) -> BadRequest:
        return BadRequest(f"{what}: {self.snapshot} has none such; ask with its title, or search for it")

    def _possible(self, mode: Mode, filters: Filters | None) -> tuple[Mode, str]:
        if self.lexical is not None or (mode == "dense" and not filters):
            return mode, ""
        remedy = f"run wiki-assets materialize {self.snapshot.wiki} --snapshot {self.snapshot.date}"
        if mode == "lexical" or filters:
            raise NotPublished(f"{self.pointer['collection']} was published without a lexical index: {remedy}")
        return "dense", f"without its words: {self.pointer['collection']} has no lexical index yet; {remedy}"

    def _nearest(self, asked: Sequence[_Asked]) -> list[_Near]:
        """What is nearest to each question."""
        if not asked:
            return []
        unknown = [one.question for one in asked if one.vector is None]
        made = iter(self.questioner.remembered(unknown)) if unknown else iter(())
        vectors = [next(made) if one.vector is None else one.vector for one in asked]
        if len(asked) == 1:
            found = [self._nearest_of(vectors[0], asked[0].depth, asked[0].filters)]
        else:
            found = nearest_to_each(self.collection, vectors, WEIGHTS.depth)
        return [_Near(near, float(vector @ self.middle)) for near, vector in zip(found, vectors, strict=True)]

    def _nearest_of(self, vector: NDArray[np.float32], depth: int, filters: Filters | None) -> list[tuple[str, float]]:
        nearest = partial(nearest_passages, self.collection, vector)
        lexical = self.lexical
        if not filters or lexical is None:
            return nearest(depth)
        few = lexical.passage_ids(filters, _FEW)
        if few is not None:
            return nearest(min(depth, len(few)), among=few) if few else []
        near = nearest(max(depth, _LOOKED_THROUGH))
        passing = lexical.passing((page_of(name) for name, _ in near), filters)
        return [(name, score) for name, score in near if page_of(name) in passing][:depth]

    def _hits(
        self, ranking: Sequence[Fused], k: int, near: Mapping[str, float], matches: Sequence[Match], *, group: bool
    ) -> list[Hit]:
        best = best_of_each_page(ranking, page_of, k) if group else ranking[:k]
        rows = self._rows([fused.passage_id for fused in best], matches)
        return [
            Hit(
                rank=rank,
                score=round(fused.score, 4),
                page_id=row.page_id,
                title=row.title,
                url=row.url,
                revision=row.revision,
                passage=row.text,
                start=row.start,
                end=row.end,
                snapshot=self.snapshot.date,
                wiki=self.snapshot.wiki,
                permalink=permalink(row.url, row.revision),
                similarity=round(near[fused.passage_id], 4) if fused.passage_id in near else None,
                dense_rank=fused.dense_rank,
                lexical_rank=fused.lexical_rank,
            )
            for rank, (fused, row) in enumerate(((f, rows[f.passage_id]) for f in best), 1)
        ]

    def _rows(self, ids: Sequence[str], matches: Sequence[Match]) -> dict[str, Row]:
        """What is shown of some passages.

        Args:
            ids: which.
            matches: where the lexical index has found some of them.

        Raises:
            DamagedArtifact: if one of them is nowhere.
        """
        rows: dict[str, Row] = {}
        if self.lexical is not None:
            at = {match.passage_id: match for match in matches}
            found = {name: at[name] for name in ids if name in at}
            found |= self.lexical.find(name for name in ids if name not in at)
            rows = dict(zip(found, self.lexical.rows(list(found.values())), strict=True))
        if rest := [name for name in ids if name not in rows]:
            rows |= stored_rows(self.collection, rest)
        if len(rows) < len(set(ids)):
            lost = next(name for name in ids if name not in rows)
            raise DamagedArtifact(
                f"{self.pointer['collection']}: passage {lost} was found and is not there; publish again"
            )
        return rows
