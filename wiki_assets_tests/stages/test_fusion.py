"""Two rankings become one, in which no passage is lost or twice, and what both legs like is first."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wiki_assets.stages.fusion import WEIGHTS, Weights, best_of_each_page, fuse
from wiki_assets.stages.lexical import page_of

LEVEL = Weights(page=0.0)


def leg(*names: str, scores: list[float] | None = None) -> list[tuple[str, float]]:
    return list(zip(names, scores or [1 / rank for rank in range(1, len(names) + 1)], strict=True))


def names_of(ranking) -> list[str]:
    return [fused.passage_id for fused in ranking]


@st.composite
def legs(draw):
    """A ranking of distinct passages of some pages, by falling score."""
    names = draw(st.lists(st.builds("{}-{}".format, st.integers(1, 6), st.integers(0, 9)), unique=True, max_size=20))
    scores = draw(st.lists(st.floats(-1, 50, allow_nan=False), min_size=len(names), max_size=len(names)))
    return list(zip(names, sorted(scores, reverse=True), strict=True))


@given(legs(), legs())
def test_every_passage_of_either_leg_is_there_once_with_its_ranks(dense, lexical):
    ranking = fuse(dense, lexical, page_of)
    assert sorted(names_of(ranking)) == sorted({name for name, _ in [*dense, *lexical]})
    assert [fused.score for fused in ranking] == sorted((fused.score for fused in ranking), reverse=True)
    for fused in ranking:
        for found, rank in ((dense, fused.dense_rank), (lexical, fused.lexical_rank)):
            assert found[rank - 1][0] == fused.passage_id if rank else fused.passage_id not in dict(found)


def by_the_book(dense, lexical, possible, usual):
    """The mix as its description has it, passage by passage."""
    best = [max((score for _, score in leg), default=0.0) for leg in (dense, lexical)]
    whole = [best[0] - usual, (best[1] * possible) ** 0.5 if possible and best[1] > 0 else best[1]]
    shares = [
        {name: max(0.0, (score - floor) / unit) if unit > 0 else 0.0 for name, score in leg}
        for leg, unit, floor in zip((dense, lexical), whole, (usual, 0.0), strict=True)
    ]
    least = [min(share.values(), default=0.0) for share in shares]
    mixed = {
        name: WEIGHTS.dense * shares[0].get(name, least[0]) + (1 - WEIGHTS.dense) * shares[1].get(name, least[1])
        for name in {**shares[0], **shares[1]}
    }
    for name, score in mixed.items():
        own = sorted((s for other, s in mixed.items() if page_of(other) == page_of(name)), reverse=True)
        above = [s - min(mixed.values()) for s in own[1:3]]
        yield name, score + WEIGHTS.page * sum(above) / 2


@given(legs(), legs(), st.none() | st.floats(0.1, 100), st.floats(-1, 20))
def test_scores_are_mixed_as_described(dense, lexical, possible, usual):
    expected = dict(by_the_book(dense, lexical, possible, usual))
    found = {f.passage_id: f.score for f in fuse(dense, lexical, page_of, possible=possible, usual=usual)}
    assert found == pytest.approx(expected)


@given(legs(), legs())
def test_a_passage_that_is_first_in_both_legs_is_first(dense, lexical):
    top = [("77-1", 60.0)]
    assert names_of(fuse(top + dense, top + lexical, page_of, LEVEL))[0] == "77-1"


@given(legs())
def test_a_leg_that_found_nothing_leaves_the_other_as_it_is(found):
    positive = [(name, score) for name, score in found if score > 0]
    assert names_of(fuse(positive, [], page_of, LEVEL)) == [name for name, _ in positive]
    assert names_of(fuse([], positive, page_of, LEVEL)) == [name for name, _ in positive]


@given(legs(), legs(), st.floats(0.01, 100))
def test_the_unit_of_a_legs_scores_does_not_matter(dense, lexical, unit):
    scaled = [(name, score * unit) for name, score in lexical]
    one, other = fuse(dense, lexical, page_of), fuse(dense, scaled, page_of)
    scores = {fused.passage_id: fused.score for fused in other}
    assert [fused.score for fused in one] == pytest.approx([scores[name] for name in names_of(one)])


@given(legs(), legs(), st.integers(1, 8), st.integers(-8, 8), st.integers(-4, 4))
def test_where_a_models_cosines_lie_does_not_matter(dense, lexical, unit, shift, usual):
    wide = [(name, float(round(score))) for name, score in dense]
    narrow = [(name, score / unit + shift) for name, score in wide]
    one = fuse(wide, lexical, page_of, usual=usual)
    other = fuse(narrow, lexical, page_of, usual=usual / unit + shift)
    assert {f.passage_id: f.score for f in one} == pytest.approx({f.passage_id: f.score for f in other})


def test_what_is_nearest_counts_in_a_model_whose_cosines_lie_close_together():
    dense = leg("1-a", "2-a", "3-a", scores=[0.91, 0.83, 0.82])
    lexical = leg("2-a", "3-a", scores=[6.0, 5.0])
    assert names_of(fuse(dense, lexical, page_of, LEVEL, possible=60.0))[0] == "2-a"
    assert names_of(fuse(dense, lexical, page_of, LEVEL, possible=60.0, usual=0.8))[0] == "1-a"


def test_a_first_place_far_ahead_outweighs_one_that_is_not():
    dense = leg("1-a", "2-a", scores=[0.60, 0.59])
    lexical = leg("2-a", "1-a", scores=[30.0, 8.0])
    assert names_of(fuse(dense, lexical, page_of, LEVEL)) == ["2-a", "1-a"]


def test_a_page_with_more_to_say_comes_before_one_without():
    dense = leg("1-a", "2-a", "2-b", "2-c", "3-a", scores=[0.61, 0.60, 0.55, 0.55, 0.30])
    assert names_of(fuse(dense, [], page_of, LEVEL))[0] == "1-a"
    assert names_of(fuse(dense, [], page_of, WEIGHTS))[0] == "2-a"


def test_weights_of_one_leg_follow_that_leg():
    dense, lexical = leg("1-a", "2-a"), leg("2-a", "1-a")
    assert names_of(fuse(dense, lexical, page_of, Weights(dense=0.9, page=0)))[0] == "1-a"
    assert names_of(fuse(dense, lexical, page_of, Weights(dense=0.1, page=0)))[0] == "2-a"


@given(legs(), legs(), st.integers(1, 10))
def test_grouped_there_is_the_best_passage_of_each_page(dense, lexical, k):
    ranking = fuse(dense, lexical, page_of)
    grouped = best_of_each_page(ranking, page_of, k)
    pages = list(dict.fromkeys(page_of(name) for name in names_of(ranking)))
    assert [page_of(name) for name in names_of(grouped)] == pages[:k]
    for fused in grouped:
        own = [other for other in ranking if page_of(other.passage_id) == page_of(fused.passage_id)]
        assert fused == own[0]
