"""How many of the true nearest passages a large collection returns, with the settings that are shipped.

    python -m wiki_assets_tests.bench.neighbours --questions questions.jsonl.gz
    python -m wiki_assets_tests.bench.neighbours --vectors 20000 --dump FOLDER --dump FOLDER --questions questions.jsonl

Real passages with real vectors. They are cut short, so that a small dump has enough of them: that costs less to
embed, and makes neighbours harder to tell apart, since the passages of a page come to resemble each other.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from wiki_assets.resources.chroma import open_collection, open_store
from wiki_assets.resources.engines import load_engine
from wiki_assets.resources.models import DEFAULT_MODEL, find_model
from wiki_assets.settings import Settings
from wiki_assets.stages.embeddings import embed_passages
from wiki_assets.stages.evaluation import ExactNeighbours, latency, read_questions, spread
from wiki_assets.stages.index import HNSW, nearest_passages
from wiki_assets.stages.passages import cut_page
from wiki_assets.stages.word_pieces import WordPieceTokenizer
from wiki_assets_tests.bench.dumps import Dump, find_dumps, page_texts
from wiki_assets_tests.bench.measure import machine

K = 10
_BATCH_ROWS = 1_000
_ALL_PAGES = 10**9


def passages(
    dumps: Sequence[Dump], tokenizer: WordPieceTokenizer, word_pieces: int
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Passage id, text and word pieces of every passage of some dumps."""
    for number, dump in enumerate(dumps):
        for page_id, title, text, language in page_texts(dump, _ALL_PAGES):
            for passage in cut_page(page_id, title, text, language, tokenizer, word_pieces=word_pieces):
                words = f"{title}: {text[passage.start : passage.end].strip()}"
                yield f"{number}-{passage.passage_id}", words, np.array(passage.input_ids, np.int32)


def main(arguments: list[str]) -> None:
    """Cut, embed, load, ask; print a line."""
    parser = argparse.ArgumentParser(
        prog="python -m wiki_assets_tests.bench.neighbours",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--vectors", type=int, default=100_000, help="at most; default 100,000")
    parser.add_argument("--word-pieces", type=int, default=24, help="of a passage at most; default 24")
    parser.add_argument("--dump", type=Path, action="append", default=[], help="a dump file, or a folder of them")
    parser.add_argument("--questions", type=Path, required=True, help="JSON lines with a question each, or .gz")
    parser.add_argument("--ask", type=int, default=500, help="so many of them, spread evenly; default 500")
    chosen = parser.parse_args(arguments)
    model, threads = find_model(DEFAULT_MODEL), os.cpu_count() or 1
    tokenizer = WordPieceTokenizer(model.tokenizer_file, max_pieces=model.max_pieces)
    dumps = find_dumps(chosen.dump) if chosen.dump else find_dumps([])[-1:]
    found = list(passages(dumps, tokenizer, chosen.word_pieces))
    names, texts, rows = zip(*spread(found, chosen.vectors), strict=True)
    asked = [question.question for question in spread(read_questions(chosen.questions), chosen.ask)]
    engine = load_engine(model, "auto", threads, Settings.from_env().cache_folder)
    began = time.monotonic()
    vectors = embed_passages(rows, engine, texts)
    embedded = time.monotonic()
    questions = embed_passages(
        [np.array(tokenizer.wrapped(tokenizer.ids(q)[: tokenizer.room])) for q in asked], engine, asked
    )
    exact = ExactNeighbours(questions, K)
    exact.add(names, vectors)
    with (
        tempfile.TemporaryDirectory(prefix="wiki_assets-bench-") as folder,
        open_store(Path(folder) / "chroma", write=True) as client,
    ):
        collection = open_collection(client, "neighbours", hnsw=HNSW, metadata={"dim": vectors.shape[1]})
        loading = time.monotonic()
        for first in range(0, len(names), _BATCH_ROWS):
            batch = slice(first, first + _BATCH_ROWS)
            collection.add(ids=list(names[batch]), embeddings=vectors[batch])
        loaded = time.monotonic()
        nearest_passages(collection, questions[0], K)
        answers, seconds = [], []
        for question in questions:
            since = time.perf_counter()
            answers.append(nearest_passages(collection, question, K))
            seconds.append(time.perf_counter() - since)
    took = latency(seconds)
    print(
        f"{len(names):,} vectors of {vectors.shape[1]}, {engine.engine}: embedded in {embedded - began:.0f} s, "
        f"loaded in {loaded - loading:.0f} s; {len(asked)} questions: recall@{K} {exact.recall(answers):.4f}, {took}"
    )
    print(machine())


if __name__ == "__main__":
    main(sys.argv[1:])
