"""How the legs of a hybrid search are best mixed, tried on the tuning half of some questions.

    python -m wiki_assets_tests.bench.fusion --root ROOT --wiki enwiki --questions A.jsonl.gz --questions B.jsonl.gz

asks both legs once, mixes what they return in every way of a grid, and prints for each file of questions how often
the right page, and the right passage, come first. The figures to report are those of the other half: `wiki-assets
eval --half report`.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from wiki_assets.resources.store import Store
from wiki_assets.search.build import OpenBuild
from wiki_assets.settings import Settings
from wiki_assets.stages import lexical
from wiki_assets.stages.evaluation import DEPTH, Found, Question, half_of, measures, ranks, read_questions
from wiki_assets.stages.fusion import Leg, Weights, fuse
from wiki_assets.stages.index import Row, nearest_passages
from wiki_assets.stages.lexical import page_of

LIMIT = 2_000  # questions of a file
DEPTH_OF_LEGS = 100


@dataclass
class Asked:
    """A question, and what each leg returned."""

    question: Question
    dense: Leg
    lexical: Leg
    possible: float
    usual: float


Mix = Callable[[Asked], list[str]]


def ask(build: OpenBuild, questions: Sequence[Question]) -> list[Asked]:
    """Both legs, each to its depth."""
    index = build.lexical
    assert index is not None, "published without a lexical index"
    asked = []
    for question in questions:
        vector = build.questioner.vectors([question.question])[0]
        worded = [(match.passage_id, match.score) for match in index.search(question.question, DEPTH_OF_LEGS)]
        near = nearest_passages(build.collection, vector, DEPTH_OF_LEGS)
        usual = float(vector @ build.middle)
        asked.append(Asked(question, near, worded, index.possible(question.question), usual))
    return asked


def mixes() -> Iterator[tuple[str, Mix]]:
    """Every way of mixing that is tried."""
    yield "dense alone", lambda a: [name for name, _ in a.dense]
    yield "lexical alone", lambda a: [name for name, _ in a.lexical]
    for dense, c in product((0.3, 0.5, 0.7, 1.0), (5, 10, 20, 60)):
        yield f"reciprocal ranks, dense {dense}, c {c}", _by_ranks(dense, c)
    for dense, page in product((0.3, 0.35, 0.4, 0.5, 0.6), (0.0, 0.4, 0.6)):
        weights = Weights(dense, page)
        yield f"shares of the best, dense {dense}, page {page}", _by_scores(weights)
        yield f"and of the possible, dense {dense}, page {page}", _by_scores(weights, possible=True)
    for dense, page in product((0.3, 0.35, 0.4, 0.45, 0.5), (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8)):
        weights = Weights(dense, page)
        yield f"and above the usual, dense {dense}, page {page}", _by_scores(weights, possible=True, usual=True)


def _by_ranks(dense: float, c: int) -> Mix:
    def mix(asked: Asked) -> list[str]:
        scores: dict[str, float] = {}
        for weight, leg in ((1.0, asked.lexical), (dense, asked.dense)):
            for rank, (name, _) in enumerate(leg, 1):
                scores[name] = scores.get(name, 0.0) + weight / (c + rank)
        return sorted(scores, key=lambda name: -scores[name])

    return mix


def _by_scores(weights: Weights, *, possible: bool = False, usual: bool = False) -> Mix:
    def mix(asked: Asked) -> list[str]:
        bounds: dict[str, float] = {"possible": asked.possible} if possible else {}
        bounds |= {"usual": asked.usual} if usual else {}
        return [fused.passage_id for fused in fuse(asked.dense, asked.lexical, page_of, weights, **bounds)]

    return mix


def judge(asked: Sequence[Asked], mix: Mix, places: dict[str, Row]) -> dict[str, dict[str, float]]:
    """Recall and reciprocal rank by what is looked for."""
    met: dict[str, list[int]] = {}
    for each in asked:
        rows = [places[name] for name in mix(each)[:DEPTH]]
        pages = {each.question.page_id or 0}
        for level, rank in ranks(each.question, pages, [Found(r.page_id, r.start, r.end) for r in rows]).items():
            met.setdefault(level, []).append(rank)
    return {level: measures(found) for level, found in met.items()}


def places_of(build: OpenBuild, asked: Sequence[Asked]) -> dict[str, Row]:
    """Where every passage stands that any leg returned."""
    index = build.lexical
    assert index is not None
    names = list({name for each in asked for leg in (each.dense, each.lexical) for name, _ in leg})
    places: dict[str, Row] = {}
    for start in range(0, len(names), 1000):
        matches = index.find(names[start : start + 1000])
        places |= dict(zip(matches, index.rows(list(matches.values())), strict=True))
    return places


def main() -> None:
    """Print the grid."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True)
    parser.add_argument("--wiki")
    parser.add_argument("--questions", type=Path, action="append", required=True)
    parser.add_argument("--name-weight", type=float, default=lexical.NAME_WEIGHT)
    chosen = parser.parse_args()
    lexical.NAME_WEIGHT = chosen.name_weight
    settings = Settings(root=chosen.root)
    build = OpenBuild(Store(settings.root).published(chosen.wiki), settings)
    files = {}
    for path in chosen.questions:
        tuning = [question for question in read_questions(path) if half_of(question.id) == "tuning"]
        step = -(-len(tuning) // LIMIT)
        files[path.name.partition(".")[0]] = ask(build, tuning[::step])
    places = {name: places_of(build, asked) for name, asked in files.items()}
    rows = []
    for label, mix in mixes():
        found = {name: judge(asked, mix, places[name]) for name, asked in files.items()}
        mean = sum(levels["page"]["mrr"] for levels in found.values()) / len(found)
        cells = [
            f"{name} {level} {m['recall@1']:.3f} {m['recall@10']:.3f}"
            for name, levels in found.items()
            for level, m in levels.items()
        ]
        rows.append((mean, f"{mean:.4f}  {label:44}  " + "  ".join(cells)))
    print(f"name weight {lexical.NAME_WEIGHT}; mean of the files' page MRR, then recall@1 and @10 of each")
    for _, line in sorted(rows, reverse=True):
        print(line)
    build.close()


if __name__ == "__main__":
    main()
