"""Put questions to a build in every mode, and report what came of it."""

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow.parquet as pq

from wiki_assets.errors import BadRequest
from wiki_assets.keys import Shard
from wiki_assets.resources.store import Store
from wiki_assets.search.answers import MODES, Mode
from wiki_assets.search.build import OpenBuild
from wiki_assets.stages.embeddings import read_vectors
from wiki_assets.stages.evaluation import DEPTH, ExactNeighbours, Found, Question, Tally, known_items
from wiki_assets.stages.fusion import WEIGHTS, Weights
from wiki_assets.stages.index import check_question, nearest_passages

_NEIGHBOURS = 10
_KNOWN_SHARDS = 4


def evaluate(
    build: OpenBuild,
    questions: Sequence[Question],
    qrels: Mapping[str, set[int]] | None = None,
    *,
    source: str = "",
    modes: Sequence[Mode] = MODES,
    weights: Weights = WEIGHTS,
    neighbours: int = 200,
    store: Store | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """Ask every question in every mode.

    Args:
        build: which one to ask.
        questions: judged by their own `page_id`, or by `qrels`.
        qrels: the pages that answer each question, by its id; it wins.
        source: what to call the questions.
        modes: ways of searching.
        weights: how the legs of a hybrid search are mixed.
        neighbours: of how many questions the true nearest passages are computed, to hold the vector index against.
        store: the data root, where the vectors are; without it none are.
        say: is told how far it is.

    Returns:
        The report: what was asked, and by set of questions (their language, where they have one) and mode the
        measures of `Tally.report`.

    Raises:
        BadRequest: if there are questions and none can be judged.
    """
    judged = [(q, pages) for q in questions if (pages := _pages_of(q, qrels))]
    if questions and not judged:
        raise BadRequest(f"{source or 'questions'}: none names its page: give page_id in each, or judgements (--qrels)")
    if judged and build.lexical is None:
        modes = [mode for mode in modes if mode == "dense"]
    for mode in modes if judged else ():
        build.search("warm", 1, mode)
    sets = sorted({q.language for q, _ in judged})
    tallies = {name: {mode: Tally.empty() for mode in modes} for name in sets}
    spoke = time.monotonic()
    for number, (question, pages) in enumerate(judged, 1):
        text = check_question(question.question, DEPTH)
        for mode in modes:
            started = time.perf_counter()
            vector = None if mode == "lexical" else build.questioner.fresh([text])[0]  # not one that is remembered
            hits, _, _ = build.search(text, DEPTH, mode, vector=vector, weights=weights)
            seconds = time.perf_counter() - started
            found = [Found(hit.page_id, hit.start, hit.end) for hit in hits]
            tallies[question.language][mode].add(question, pages, found, seconds)
        if time.monotonic() - spoke > 10:
            spoke = time.monotonic()
            say(f"{number:,} of {len(judged):,} questions asked")
    pointer = build.pointer
    report: dict[str, Any] = {
        **{name: pointer[name] for name in ("wiki", "snapshot", "build", "collection", "pages", "passages")},
        "model": pointer["model"]["name"],
        "source": source,
        "questions": len(judged),
        "weights": {"dense": weights.dense, "page": weights.page, "depth": weights.depth},
        "sets": {
            name or "all": {mode: tally.report() for mode, tally in by_mode.items()}
            for name, by_mode in tallies.items()
        },
    }
    if judged and store is not None and neighbours:
        some = random.Random(pointer["collection"]).sample(judged, min(neighbours, len(judged)))
        report["ann"] = neighbours_found(build, store, [question.question for question, _ in some])
    return report


def _pages_of(question: Question, qrels: Mapping[str, set[int]] | None) -> set[int]:
    if qrels is not None:
        return qrels.get(question.id, set())
    return {question.page_id} if question.page_id is not None else set()


def neighbours_found(build: OpenBuild, store: Store, texts: Sequence[str]) -> dict[str, Any]:
    """How many of the true nearest passages of some texts the vector index returns. Reads every vector once."""
    vectors = build.questioner.vectors(texts)
    exact = ExactNeighbours(vectors, _NEIGHBOURS)
    total = 0
    for number in range(int(build.pointer["shards"])):
        with store.file("embeddings", Shard(build.snapshot, number)).open("rb") as source:
            names, stored = read_vectors(source)
        exact.add(names, stored)
        total += len(names)
    found = [nearest_passages(build.collection, vector, _NEIGHBOURS) for vector in vectors]
    return {"recall@10": exact.recall(found), "k": _NEIGHBOURS, "questions": len(texts), "vectors": total}


def questions_of_its_own(build: OpenBuild, store: Store, n: int) -> list[Question]:
    """Sentences and titles of the snapshot as questions; the same ones each time."""
    shards = int(build.pointer["shards"])
    chosen = random.Random(str(build.snapshot)).sample(range(shards), min(_KNOWN_SHARDS, shards))
    return [
        question
        for number in sorted(chosen)
        for question in _of_shard(store, Shard(build.snapshot, number), -(-n // len(chosen)))
    ]


def _of_shard(store: Store, shard: Shard, n: int) -> Iterator[Question]:
    with store.file("articles", shard).open("rb") as source:
        pages = pq.read_table(source, columns=["page_id", "title", "text"]).to_pylist()
    with store.file("passages", shard).open("rb") as source:
        table = pq.read_table(source, columns=["page_id", "start", "end"])
    spans: dict[int, list[tuple[int, int]]] = {}
    for page, start, end in zip(*(table[c].to_pylist() for c in ("page_id", "start", "end")), strict=True):
        spans.setdefault(page, []).append((start, end))
    yield from known_items(pages, spans, n, str(shard))
