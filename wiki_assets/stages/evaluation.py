"""How often the right page and the right passage come first, and how fast: questions, judgements, measures, tables.

A question names the page that answers it, and may name the place: the paragraph, or the answer itself. So up to three
things are looked for among the passages of an answer:

    page       a passage of the right page
    passage    a passage of that page that overlaps the paragraph which answers
    answer     a passage of that page in which the answer begins

Where no questions are at hand, sentences and titles of the wiki itself are: they must lead back to where they stand.
"""

import gzip
import hashlib
import json
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from wiki_assets.errors import BadRequest

T = TypeVar("T")

CODE_VERSION = "evaluation-1"
DEPTH = 20  # passages of an answer that are looked at
CUTOFFS = (1, 5, 10, 20)
LEVELS = ("page", "passage", "answer")
_MAX_QUESTIONS = 1_000_000


class Span(msgspec.Struct, frozen=True):
    """Where an answer begins in the page's text, in characters."""

    start: int
    text: str = ""


class Question(msgspec.Struct, frozen=True):
    """One question and what answers it, as a line of a questions file holds it.

    `page_id` may be left out where a judgements file names the pages. `impossible` marks one that nothing answers.
    """

    id: str
    question: str
    page_id: int | None = None
    passage: tuple[int, int] | None = None  # of the paragraph that answers: first character and end
    answers: tuple[Span, ...] = ()
    language: str = ""
    impossible: bool = False


@dataclass(frozen=True)
class Found:
    """A passage of an answer: its page, and where in the page it stands."""

    page_id: int
    start: int
    end: int


def read_questions(path: Path) -> list[Question]:
    """Read a JSON-lines file of questions, plain or `.gz`; questions that nothing answers are left out.

    Raises:
        BadRequest: if it is missing, empty, or a line is no question; names the line.
    """
    questions = []
    for number, line in enumerate(_lines(path), 1):
        try:
            question = msgspec.json.decode(line, type=Question)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadRequest(
                f'{path}, line {number}: {error}: expected {{"id": "…", "question": "…", "page_id": 12}}'
            ) from None
        if not question.impossible:
            questions.append(question)
        if len(questions) > _MAX_QUESTIONS:
            raise BadRequest(f"{path}: more than {_MAX_QUESTIONS:,} questions: ask fewer")
    if not questions:
        raise BadRequest(f"{path}: no questions in it: expected one JSON object a line")
    return questions


def read_qrels(path: Path) -> dict[str, set[int]]:
    """Read judgements: question id, page id, relevance, with tabs between (or TREC's four columns); 0 is not relevant.

    Raises:
        BadRequest: if it is missing or a line is none; names the line.
    """
    judged: dict[str, set[int]] = {}
    for number, line in enumerate(_lines(path), 1):
        cells = line.decode("utf-8", "replace").split()
        if number == 1 and not cells[-1].lstrip("-").isdecimal():
            continue  # a heading
        try:
            name, page, relevance = cells if len(cells) == 3 else (cells[0], *cells[2:])
            if int(relevance) > 0:
                judged.setdefault(name, set()).add(int(page))
        except (ValueError, IndexError):
            raise BadRequest(f"{path}, line {number}: expected QUESTION PAGE RELEVANCE, found {line[:60]!r}") from None
    return judged


def _lines(path: Path) -> Iterable[bytes]:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as source:
            yield from (line for line in source if line.strip())
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadRequest(f"{path}: {reason}: expected a file of JSON lines or tabs, plain or .gz") from None


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most so many items, evenly spaced from the first to the last, in order."""
    if len(items) <= most:
        return list(items)
    return [items[number * len(items) // most] for number in range(most)]


def half_of(question_id: str) -> str:
    """Which half a question belongs to: `tuning`, to choose weights on, or `report`. The same in every process."""
    return "tuning" if hashlib.sha1(question_id.encode()).digest()[0] % 2 else "report"


# --- judging


def ranks(question: Question, pages: set[int], found: Sequence[Found]) -> dict[str, int]:
    """At which rank, from 1, each level that the question can be judged by is first met; 0 where it is not.

    Args:
        question: with the places that answer it.
        pages: the pages that answer it.
        found: the passages of an answer, best first.
    """
    met = {"page": _first(found, lambda f: f.page_id in pages)}
    if question.passage:
        start, end = question.passage
        met["passage"] = _first(found, lambda f: f.page_id in pages and f.start < end and start < f.end)
    if question.answers:
        met["answer"] = _first(
            found, lambda f: f.page_id in pages and any(f.start <= a.start < f.end for a in question.answers)
        )
    return met


def _first(found: Sequence[Found], fits: Any) -> int:
    return next((rank for rank, each in enumerate(found, 1) if fits(each)), 0)


def gains(pages: set[int], found: Sequence[Found]) -> list[int]:
    """1 where a right page is seen for the first time, else 0: what nDCG adds up."""
    seen: set[int] = set()
    gained = []
    for each in found:
        gained.append(int(each.page_id in pages and each.page_id not in seen))
        seen.add(each.page_id)
    return gained


def ndcg(gained: Sequence[int], relevant: int, at: int = 10) -> float:
    """Normalized discounted cumulative gain of the first `at` places, with `relevant` pages to be found; 0 to 1."""
    best = sum(1 / math.log2(rank + 1) for rank in range(1, min(relevant, at) + 1))
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gained[:at], 1)) / best if best else 0.0


def measures(met: Sequence[int]) -> dict[str, float]:
    """Recall at each cutoff, and the mean reciprocal rank within `DEPTH`, of ranks as `ranks` gives them."""
    n = max(1, len(met))
    found = {f"recall@{at}": sum(0 < rank <= at for rank in met) / n for at in CUTOFFS}
    return found | {"mrr": sum(1 / rank for rank in met if 0 < rank <= DEPTH) / n}


@dataclass
class Tally:
    """What one way of searching found, question by question."""

    met: dict[str, list[int]]
    ndcg: list[float]
    seconds: list[float]

    @classmethod
    def empty(cls) -> "Tally":
        """Before the first question."""
        return cls({level: [] for level in LEVELS}, [], [])

    def add(self, question: Question, pages: set[int], found: Sequence[Found], seconds: float) -> None:
        """Judge an answer."""
        for level, rank in ranks(question, pages, found).items():
            self.met[level].append(rank)
        self.ndcg.append(ndcg(gains(pages, found), len(pages)))
        self.seconds.append(seconds)

    def report(self) -> dict[str, Any]:
        """Measures by level, and latency in milliseconds; levels that no question can be judged by are left out."""
        levels: dict[str, Any] = {level: measures(met) | {"n": len(met)} for level, met in self.met.items() if met}
        if levels:
            levels["page"]["ndcg@10"] = float(np.mean(self.ndcg))
        return {**levels, "latency_ms": latency(self.seconds)}


def latency(seconds: Sequence[float]) -> dict[str, float]:
    """Percentiles, in milliseconds."""
    if not seconds:
        return {}
    p50, p90, p99 = np.percentile(np.asarray(seconds) * 1e3, [50, 90, 99])
    return {"p50": round(float(p50), 1), "p90": round(float(p90), 1), "p99": round(float(p99), 1)}


# --- approximate against exact


class ExactNeighbours:
    """The true nearest passages of some questions, found by reading every vector once, a batch at a time.

    Args:
        questions: float32 [n, dim] of unit length.
        k: how many.
    """

    def __init__(self, questions: NDArray[np.float32], k: int) -> None:
        self._questions = questions
        self._k = k
        self._scores = np.full((len(questions), k), -np.inf, np.float32)
        self._names = np.full((len(questions), k), "", object)

    def add(self, names: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Look at float32 [m, dim] vectors and their passage ids."""
        if not len(names):
            return
        scores = self._questions @ vectors.T
        few = min(self._k, len(names))
        new = np.argpartition(-scores, few - 1, axis=1)[:, :few]
        labels = np.concatenate([self._names, np.array(names, object)[new]], axis=1)
        scores = np.concatenate([self._scores, np.take_along_axis(scores, new, axis=1)], axis=1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, : self._k]
        self._scores = np.take_along_axis(scores, best, axis=1)
        self._names = np.take_along_axis(labels, best, axis=1)

    def recall(self, found: Sequence[Sequence[tuple[str, float]]]) -> float:
        """Share of the true neighbours that were found, the equally near counting as well; 0 to 1.

        Args:
            found: for each question the passages that were returned, and their cosine similarities.
        """
        hit = total = 0
        for row, near in enumerate(found):
            true = self._names[row] != ""
            names = set(self._names[row][true])
            least = float(self._scores[row][true].min()) - 1e-5 if names else 0.0
            hit += min(len(names), sum(name in names or score >= least for name, score in near[: self._k]))
            total += len(names)
        return hit / total if total else 1.0


# --- questions of its own


def known_items(
    pages: Sequence[Mapping[str, Any]], spans: Mapping[int, Sequence[tuple[int, int]]], n: int, seed: str
) -> list[Question]:
    """Sentences of pages, and their titles, as questions: each must lead back to where it stands.

    Args:
        pages: with page_id, title and text.
        spans: for each page the passages' first characters and ends.
        n: about how many questions; two thirds are sentences.
        seed: the same gives the same questions.
    """
    rng = random.Random(seed)
    questions: list[Question] = []
    chosen = rng.sample(list(pages), min(n, len(pages)))
    for number, page in enumerate(chosen):
        if number % 3 == 2:
            questions.append(Question(f"title-{page['page_id']}", page["title"], page["page_id"]))
            continue
        places = spans.get(page["page_id"], ())
        if not places:
            continue
        start, end = rng.choice(list(places))
        words = page["text"][start:end].split(" ")
        some = words if len(words) <= 18 else words[(first := rng.randrange(len(words) - 17)) : first + 18]
        text = " ".join(some).strip()[:400]
        if text:
            questions.append(Question(f"sentence-{page['page_id']}-{start}", text, page["page_id"], (start, end)))
    return questions


# --- showing it


def markdown(report: Mapping[str, Any]) -> str:
    """The report as a table for people."""
    lines = [
        f"# Retrieval on {report['collection']}",
        "",
        f"{report['questions']:,} questions ({report['source']}), {report['passages']:,} passages of "
        f"{report['pages']:,} pages, model {report['model']}.",
        "",
    ]
    for name, modes in report["sets"].items():
        levels = [level for level in LEVELS if any(level in found for found in modes.values())]
        lines += [f"## {name}", ""] if len(report["sets"]) > 1 else []
        head = ["mode", "looked for", "questions", *(f"R@{at}" for at in CUTOFFS), "MRR", "nDCG@10", "p50 ms", "p99 ms"]
        lines += ["| " + " | ".join(head) + " |", "| " + " | ".join(["---", "---"] + ["--:"] * (len(head) - 2)) + " |"]
        for mode, found in modes.items():
            for level in levels:
                if level not in found:
                    continue
                m, wait = found[level], found["latency_ms"]
                ndcg_shown = f"{m['ndcg@10']:.3f}" if "ndcg@10" in m else ""
                waits = [f"{wait['p50']:.1f}", f"{wait['p99']:.1f}"] if level == "page" and wait else ["", ""]
                cells = [mode, level, f"{m['n']:,}", *(f"{m[f'recall@{at}']:.3f}" for at in CUTOFFS)]
                lines.append("| " + " | ".join([*cells, f"{m['mrr']:.3f}", ndcg_shown, *waits]) + " |")
        lines.append("")
    if ann := report.get("ann"):
        lines += [
            f"Approximate search finds {ann['recall@10']:.3f} of the {ann['k']} true nearest passages "
            f"({ann['questions']:,} questions, {ann['vectors']:,} vectors).",
            "",
        ]
    return "\n".join(lines)


_COLOURS = {"hybrid": "#1b6ca8", "dense": "#d1603d", "lexical": "#5b8c5a"}


def svg(report: Mapping[str, Any]) -> str:
    """The report as a picture: recall at each cutoff, a panel for each thing looked for, a line for each mode."""
    modes: Mapping[str, Any] = next(iter(report["sets"].values()), {})
    levels = [level for level in LEVELS if any(level in found for found in modes.values())]
    width, height, left, top = 260, 220, 48, 46
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + (width + 40) * len(levels)} {height + 92}" '
        'font-family="sans-serif" font-size="12" role="img">',
        f"<title>Recall on {_escaped(report['collection'])}</title>",
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    lowest = min(
        (found[level]["recall@1"] for found in modes.values() for level in levels if level in found), default=0
    )
    floor = max(0.0, math.floor(lowest * 10 - 0.5) / 10)
    for number, level in enumerate(levels):
        x0 = left + number * (width + 40)
        parts.append(f'<text x="{x0}" y="24" font-weight="bold">right {level} within the first k</text>')
        for step in range(6):
            share = floor + (1 - floor) * step / 5
            y = top + height * (1 - step / 5)
            parts.append(f'<line x1="{x0}" x2="{x0 + width}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
            parts.append(f'<text x="{x0 - 6}" y="{y + 4:.1f}" text-anchor="end">{share:.2f}</text>')
        places = [x0 + 14 + i * (width - 28) / (len(CUTOFFS) - 1) for i in range(len(CUTOFFS))]
        for x, at in zip(places, CUTOFFS, strict=True):
            parts.append(f'<text x="{x:.1f}" y="{top + height + 18}" text-anchor="middle">{at}</text>')
        for mode, found in modes.items():
            if level not in found:
                continue
            points = [
                (x, top + height * (1 - (found[level][f"recall@{at}"] - floor) / (1 - floor)))
                for x, at in zip(places, CUTOFFS, strict=True)
            ]
            colour = _COLOURS.get(mode, "#555")
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
    for number, mode in enumerate(modes):
        x, y = left + number * 90, top + height + 38
        parts.append(f'<rect x="{x}" y="{y - 9}" width="10" height="10" fill="{_COLOURS.get(mode, "#555")}"/>')
        parts.append(f'<text x="{x + 15}" y="{y}">{_escaped(mode)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def as_json(report: Mapping[str, Any]) -> str:
    """The report for programs."""
    return json.dumps(report, indent=1, ensure_ascii=False) + "\n"
