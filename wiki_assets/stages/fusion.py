"""Two rankings of passages to one: by meaning (vectors) and by words (BM25).

Each leg's scores are divided by its best one, so that they run from one downwards, and mixed; a passage that one leg
did not return gets that leg's lowest score. Of cosines only what is above the mean counts, which any passage has: it
is 0.02 with one model, and 0.73 with another, whose best is 0.87. The words count for less the fewer of the
question's words even their best passage has: a question in other words than the page's, or in another language, is
left to the vectors. Passages then gain by what else their page has to offer: two more that answer say that the page
is about the question.

Scores, not ranks: a first place that is far ahead counts for more than one that is not, which reciprocal rank fusion
cannot see (docs/decisions/0010-hybrid-search.md has both measured).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter

import msgspec

CODE_VERSION = "fusion-2"
Leg = Sequence[tuple[str, float]]  # passage ids and scores, best first


@dataclass(frozen=True)
class Weights:
    """How the legs are mixed: chosen on one half of the evaluation questions, reported on the other."""

    dense: float = 0.35  # the rest is the lexical leg's
    page: float = 0.6  # of the mean of the page's second and third best passage
    depth: int = 100  # passages that are asked of each leg


WEIGHTS = Weights()


class Fused(msgspec.Struct, frozen=True):
    """A passage in the mixed ranking, and its rank in each leg, from 1; None where the leg did not return it."""

    passage_id: str
    score: float
    dense_rank: int | None
    lexical_rank: int | None


def fuse(
    dense: Leg,
    lexical: Leg,
    page_of: Callable[[str], int],
    weights: Weights = WEIGHTS,
    *,
    possible: float | None = None,
    usual: float = 0.0,
) -> list[Fused]:
    """Mix two rankings.

    Args:
        dense: passages by cosine similarity, best first.
        lexical: passages by BM25, best first.
        page_of: the page of a passage.
        weights: how much each counts.
        possible: the BM25 score of a passage that has every word of the question; the lexical leg's own best, if not
            given.
        usual: the mean cosine of the question with the passages of the collection.

    Returns:
        Every passage of either ranking once, best first; of equal ones the earlier in the dense ranking first.
    """
    near, worded = _share_of_best(dense, above=usual), _share_of_best(lexical, possible)
    near_least, worded_least = min(near.values(), default=0.0), min(worded.values(), default=0.0)
    meaning, words = weights.dense, 1 - weights.dense
    mixed = {
        name: meaning * near.get(name, near_least) + words * worded.get(name, worded_least)
        for name in dict.fromkeys([*near, *worded])
    }
    pages = {name: page_of(name) for name in mixed}
    support = _support(mixed, pages)
    dense_rank, lexical_rank = ({name: rank for rank, (name, _) in enumerate(leg, 1)} for leg in (dense, lexical))
    share = weights.page
    scored = [(name, score + share * support[pages[name]]) for name, score in mixed.items()]
    scored.sort(key=itemgetter(1), reverse=True)
    return [Fused(name, score, dense_rank.get(name), lexical_rank.get(name)) for name, score in scored]


def _share_of_best(leg: Leg, possible: float | None = None, *, above: float = 0.0) -> dict[str, float]:
    """Scores above a floor, as shares of the leg's best, or of the geometric mean of that and what is possible.

    A leg without a score above it says nothing, and is all zeros.
    """
    best = max((score for _, score in leg), default=above) - above
    if best <= 0:
        return dict.fromkeys((name for name, _ in leg), 0.0)
    whole = math.sqrt(best * possible) if possible else best
    return {name: (score - above) / whole if score > above else 0.0 for name, score in leg}


def _support(mixed: Mapping[str, float], pages: Mapping[str, int]) -> dict[int, float]:
    """By page, how far its second and third best passage stand above the worst passage of all, on average."""
    least = min(mixed.values(), default=0.0)
    by_page: dict[int, list[float]] = {}
    for name, score in mixed.items():
        by_page.setdefault(pages[name], []).append(score - least)
    return {
        page: sum(sorted(scores, reverse=True)[1:3]) / 2 if len(scores) > 1 else 0.0 for page, scores in by_page.items()
    }


def best_of_each_page(ranking: Sequence[Fused], page_of: Callable[[str], int], k: int) -> list[Fused]:
    """The best passage of each of the first k pages of a ranking."""
    first: dict[int, Fused] = {}
    for fused in ranking:
        first.setdefault(page_of(fused.passage_id), fused)
    return list(islice(first.values(), k))
