"""Passages to vectors: our engines and batches, and sentence-transformers as it comes. One thread each."""

import time
from collections import defaultdict
from typing import Any

from wiki_assets.defs.worker import pin_threads
from wiki_assets.resources.engines import load_engine
from wiki_assets.resources.models import DEFAULT_MODEL, find_model
from wiki_assets.settings import Settings
from wiki_assets.stages.embeddings import batch_plan, embed_passages
from wiki_assets.stages.passages import cut_page
from wiki_assets.stages.word_pieces import WordPieceTokenizer
from wiki_assets_tests.bench.dumps import Dump, page_texts
from wiki_assets_tests.bench.measure import Row, Side, best_rate

_WORD_PIECES = 128
_ENGINES = ("openvino-bf16", "openvino-f32", "torch")


class Embedding:
    """All engines in one process, which take turns."""

    def __init__(self, dump: Dump, n_passages: int) -> None:
        pin_threads(1)
        import numpy as np
        import torch
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        logging.disable_progress_bar()
        settings, model = Settings.from_env(), find_model(DEFAULT_MODEL)
        torch.set_num_threads(1)
        self._plain = SentenceTransformer(model.folder, device="cpu", local_files_only=True)
        self._engines: dict[str, Any] = {"auto": load_engine(model, "auto", 1, settings.cache_folder)}
        self.refused: dict[str, str] = {}
        for name in _ENGINES:
            try:
                self._engines[name] = load_engine(model, name, 1, settings.cache_folder)
            except Exception as error:
                self.refused[name] = str(error)[:100]
        self._tokenizer = WordPieceTokenizer(model.tokenizer_file, max_pieces=model.max_pieces)
        self._texts: list[str] = []
        pages = page_texts(dump, n_passages)
        for page_id, title, text, language in pages[:: max(1, len(pages) // n_passages)]:
            for passage in cut_page(page_id, title, text, language, self._tokenizer, word_pieces=_WORD_PIECES)[:2]:
                self._texts.append(f"{title}: {text[passage.start : passage.end].strip()}")
        del self._texts[n_passages:]
        self._rows = [np.array(self._tokenizer.wrapped(self._tokenizer.ids(text)), np.int32) for text in self._texts]
        self._np = np
        lengths = np.array([len(row) for row in self._rows])
        self._padded = []
        for batch in batch_plan(lengths, self._engines["auto"].batch_pieces):
            mask = (np.arange(lengths[batch[0]]) < lengths[batch][:, None]).astype(np.int64)
            ids = np.zeros_like(mask)
            for i, row in enumerate(batch):
                ids[i, : lengths[row]] = self._rows[row]
            self._padded.append((ids, mask))

    def facts(self) -> dict[str, Any]:
        """What is embedded, and by which engine."""
        lengths = self._np.array([len(row) for row in self._rows])
        budget = self._engines["auto"].batch_pieces
        padded = sum(len(batch) * int(lengths[batch[0]]) for batch in batch_plan(lengths, budget))
        plain = 0  # encode sorts by length too, and pads batches of 32
        longest_first = sorted(lengths.tolist(), reverse=True)
        for start in range(0, len(longest_first), 32):
            batch = longest_first[start : start + 32]
            plain += len(batch) * batch[0]
        auto, reference = self._vectors("auto"), self._plain.encode(self._texts, show_progress_bar=False)
        return {
            "passages": len(self._rows),
            "word_pieces": int(lengths.sum()),
            "waste": padded / int(lengths.sum()) - 1,
            "plain_waste": plain / int(lengths.sum()) - 1,
            "engine": self._engines["auto"].engine,
            "cosine": float((auto * reference).sum(1).min()),
            "engines": {name: engine.engine for name, engine in self._engines.items() if name != "auto"},
            "refused": self.refused,
        }

    def _vectors(self, name: str) -> Any:
        return embed_passages(self._rows, self._engines[name], self._texts)

    def run(self, name: str) -> float:
        """CPU-seconds of one way of embedding all passages."""
        before = time.process_time()
        if name == "encode":
            self._plain.encode(self._texts, show_progress_bar=False)
        elif name == "tokenize":
            fresh = WordPieceTokenizer(self._tokenizer.file, max_pieces=self._tokenizer.max_pieces)
            for text in self._texts:
                fresh.wrapped(fresh.ids(text))
        elif name == "bare engine":
            self._bare()
        else:
            self._vectors(name)
        return time.process_time() - before

    def _bare(self) -> None:
        """The forward pass and nothing else, on batches that were padded before."""
        for ids, mask in self._padded:
            self._engines["auto"].encode(ids, mask)


def compare_embeddings(dump: Dump, repeats: int, n_passages: int = 600) -> list[Row]:
    """Every engine beside `SentenceTransformer.encode` with its defaults, on the same texts."""
    cpu: dict[str, list[float]] = defaultdict(list)
    with Side(Embedding, dump, n_passages) as side:
        facts, _ = side.run("facts")
        ways = [
            "encode",
            "auto",
            "tokenize",
            "bare engine",
            *(name for name, engine in facts["engines"].items() if engine != facts["engine"]),
        ]
        for repeat in range(repeats):
            for way in ways if repeat == 0 else ways[:4]:  # one look at the rest will do
                spent, _ = side.run("run", way)
                cpu[way].append(spent)
                print(f"  repeat {repeat + 1} {way}: {spent:.2f} CPU-s", flush=True)
    n = facts["passages"]
    about = f"{n} passages, {facts['word_pieces'] / n:.0f} word pieces each"

    def beside(way: str, subject: str, goal: float | None, note: str, other: str = "encode") -> Row:
        ratios = [e / o for o, e in zip(cpu[way], cpu[other], strict=False)]
        return Row(
            subject, best_rate(n, cpu[way], "passages"), best_rate(n, cpu[other], "passages"), ratios, goal, note=note
        )

    cpu["from text"] = [a + b for a, b in zip(cpu["auto"], cpu["tokenize"], strict=True)]
    goal = 2.0 if n >= 200 else None
    rows = [
        beside(
            "auto",
            f"embed_passages, {facts['engine']} (auto) : encode",
            goal,
            f"{about}; cosine to encode at least {facts['cosine']:.5f}",
        ),
        beside("from text", "the same, tokenizing first : encode", goal, "word table cold"),
        *(beside(way, f"embed_passages, {way} : encode", None, "") for way in ways[4:]),
        beside(
            "auto",
            f"embed_passages : {facts['engine']} on padded batches",
            0.92 if n >= 200 else None,
            "",
            "bare engine",
        ),
        Row(
            "padding waste",
            f"{facts['waste']:.1%}",
            f"{facts['plain_waste']:.1%}",
            [facts["waste"]],
            0.05,
            at_most=True,
            note="the value itself; other side: sorted batches of 32",
        ),
    ]
    return rows + [
        Row(f"embed_passages, {name}", "refused", "", [], note=why) for name, why in facts["refused"].items()
    ]
