"""Measures are what their definitions say; files of questions are read strictly; reports can be read."""

import gzip
import json
import math
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wiki_assets.errors import BadRequest
from wiki_assets.stages.evaluation import (
    ExactNeighbours,
    Found,
    Question,
    Span,
    Tally,
    as_json,
    gains,
    half_of,
    known_items,
    latency,
    markdown,
    measures,
    ndcg,
    ranks,
    read_qrels,
    read_questions,
    spread,
    svg,
)

QUESTION = Question("q", "Who?", 7, (100, 200), (Span(150, "me"),))
FOUND = [Found(3, 0, 90), Found(7, 0, 100), Found(7, 160, 300), Found(7, 100, 160), Found(7, 140, 160)]


def test_a_rank_is_that_of_the_first_passage_that_fits():
    assert ranks(QUESTION, {7}, FOUND) == {"page": 2, "passage": 3, "answer": 4}
    assert ranks(QUESTION, {3}, FOUND[:1]) == {"page": 1, "passage": 0, "answer": 0}
    assert ranks(Question("q", "Who?", 7), {7}, FOUND) == {"page": 2}


def test_measures_of_known_ranks():
    found = measures([1, 2, 0, 10])
    assert found == {
        "recall@1": 0.25,
        "recall@5": 0.5,
        "recall@10": 0.75,
        "recall@20": 0.75,
        "mrr": (1 + 0.5 + 0.1) / 4,
    }
    assert measures([])["mrr"] == 0


@given(st.lists(st.integers(0, 25), min_size=1))
def test_recall_grows_with_the_cutoff_and_bounds_the_reciprocal_rank(met):
    found = measures(met)
    rising = [found[f"recall@{at}"] for at in (1, 5, 10, 20)]
    assert rising == sorted(rising)
    assert rising[0] <= found["mrr"] <= rising[-1] <= 1


def test_gain_of_a_page_counts_once():
    found = [Found(3, 0, 9), Found(7, 0, 9), Found(7, 9, 20), Found(8, 0, 5)]
    assert gains({7, 8}, found) == [0, 1, 0, 1]
    assert ndcg([0, 1, 0, 1], 2) == pytest.approx((1 / math.log2(3) + 1 / math.log2(5)) / (1 + 1 / math.log2(3)))


@given(st.lists(st.integers(0, 1), max_size=15), st.integers(1, 5))
def test_ndcg_is_a_share(gained, relevant):
    gained = [int(g and sum(gained[:i]) < relevant) for i, g in enumerate(gained)]
    assert 0 <= ndcg(gained, relevant) <= 1 + 1e-9
    assert ndcg([1] * relevant, relevant) == pytest.approx(1)


def test_a_tally_leaves_out_what_no_question_can_be_judged_by():
    tally = Tally.empty()
    tally.add(Question("q", "Who?", 7), {7}, FOUND, 0.010)
    tally.add(Question("r", "Who?", 3), {3}, FOUND, 0.030)
    report = tally.report()
    assert set(report) == {"page", "latency_ms"}
    assert (report["page"]["n"], report["page"]["recall@1"], report["latency_ms"]["p50"]) == (2, 0.5, 20.0)
    assert latency([]) == {}


def test_halves_are_about_equal_and_always_the_same():
    halves = [half_of(f"question {i}") for i in range(2000)]
    assert 0.45 < halves.count("tuning") / len(halves) < 0.55
    assert half_of("5725b33f6a3fe71400b8952d") == half_of("5725b33f6a3fe71400b8952d")


@given(st.lists(st.integers(), max_size=60), st.integers(1, 70))
def test_a_few_of_many_are_spread_from_end_to_end(items, most):
    places = spread(range(len(items)), most)
    assert len(places) == min(most, len(items))
    gaps = [b - a for a, b in pairwise([*places, len(items)])]
    assert all(len(items) // most <= gap <= -(-len(items) // most) for gap in gaps) or len(items) <= most
    assert spread(items, most) == [items[i] for i in places]


# Exact neighbours


@given(st.integers(1, 60), st.integers(1, 7), st.integers(1, 20), st.randoms(use_true_random=False))
def test_exact_neighbours_are_those_of_all_scores_at_once(n, k, batch, random):
    rng = np.random.default_rng(random.randrange(2**32))
    questions, vectors = rng.normal(size=(3, 8)).astype(np.float32), rng.normal(size=(n, 8)).astype(np.float32)
    names = [f"p{i}" for i in range(n)]
    exact = ExactNeighbours(questions, k)
    for start in range(0, n, batch):
        exact.add(names[start : start + batch], vectors[start : start + batch])
    scores = questions @ vectors.T
    best = [[(names[i], float(row[i])) for i in np.argsort(-row)[:k]] for row in scores]
    assert exact.recall(best) == 1.0
    assert exact.recall([[("other", -1e9)] * k] * 3) == 0.0
    half = [[*row[: len(row) // 2], *[("other", -1e9)] * k] for row in best]
    assert exact.recall(half) == pytest.approx((min(k, n) // 2) / min(k, n))


# Files


def test_questions_are_read_plain_or_compressed(tmp_path):
    lines = [
        {
            "id": "a",
            "question": "Who?",
            "page_id": 7,
            "passage": [1, 9],
            "answers": [{"text": "x", "start": 3}],
            "more": 1,
        },
        {"id": "b", "question": "What?", "impossible": True},
        {"id": "c", "question": "Où ?", "language": "fr"},
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n\n" for line in lines)
    plain, packed = tmp_path / "q.jsonl", tmp_path / "q.jsonl.gz"
    plain.write_text(text, "utf-8")
    packed.write_bytes(gzip.compress(text.encode()))
    assert read_questions(plain) == read_questions(packed)
    assert [q.id for q in read_questions(plain)] == ["a", "c"]
    assert read_questions(plain)[0].answers == (Span(3, "x"),)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no questions"),
        (b'{"id": "a", "question": "Who?"}\n{"id": 1}\n', "line 2"),
        (b'{"id": "a", "question": "Wh', "line 1"),
        (b"\xff\xfe\n", "line 1"),
        (b'{"id": "a", "question": "Who?", "page_id": "seven"}', "page_id"),
        (b"[]\n", "line 1"),
    ],
)
def test_a_file_that_holds_no_questions_is_refused_in_one_line(tmp_path, content, says):
    path = tmp_path / "q.jsonl"
    path.write_bytes(content)
    with pytest.raises(BadRequest, match=says) as refused:
        read_questions(path)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_or_not_compressed_is_refused(tmp_path):
    (tmp_path / "q.gz").write_bytes(b"not gzip")
    for name in ("nothing.jsonl", "q.gz", "."):
        with pytest.raises(BadRequest, match="expected a file"):
            read_questions(tmp_path / name)


def test_judgements_are_read_with_three_or_four_columns(tmp_path):
    path = tmp_path / "qrels.tsv"
    path.write_text("query-id\tcorpus-id\tscore\na\t7\t1\na\t8\t2\nb\t0\t9\t1\nc\t7\t0\n")
    assert read_qrels(path) == {"a": {7, 8}, "b": {9}}
    path.write_text("a\tseven\t1\n")
    with pytest.raises(BadRequest, match="line 1"):
        read_qrels(path)


# Questions of its own


def test_questions_of_its_own_stand_where_they_say():
    text = " ".join(f"word{i}" for i in range(300))
    pages = [{"page_id": i, "title": f"Page {i}", "text": f"{i} {text}"} for i in range(30)]
    spans = {i: [(0, 700), (700, len(pages[i]["text"]))] for i in range(30)}
    questions = known_items(pages, spans, 21, "seed")
    assert questions == known_items(pages, spans, 21, "seed")
    assert len(questions) == 21
    assert sum(q.id.startswith("title-") for q in questions) == 7
    for question in questions:
        if question.passage:
            start, end = question.passage
            assert question.question in pages[question.page_id or 0]["text"][start:end]


# Reports


def report(sets: int = 1) -> dict:
    tally = Tally.empty()
    for rank in range(4):
        tally.add(QUESTION, {7}, FOUND[rank:], 0.01)
    one = {mode: tally.report() for mode in ("hybrid", "dense", "lexical")}
    return {
        "collection": "tinywiki-20250105-1", "questions": 4, "source": "x", "passages": 5, "pages": 2, "model": "m",
        "sets": {f"l{i}": one for i in range(sets)}, "ann": {"recall@10": 0.99, "k": 10, "questions": 4, "vectors": 5},
    }  # fmt: skip


@pytest.mark.parametrize("sets", [1, 2])
def test_a_report_is_a_table_of_equal_columns(sets):
    lines = markdown(report(sets)).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1
    assert sum(row.startswith("| hybrid | page |") for row in rows) == sets
    assert any("0.990" in line for line in lines)


def test_a_plot_is_well_formed_and_inside_its_frame():
    root = ElementTree.fromstring(svg(report() | {"collection": "<&>"}))
    space = "{http://www.w3.org/2000/svg}"
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    assert len(root.findall(f"{space}polyline")) == 9, "three panels of three lines"
    for circle in root.findall(f"{space}circle"):
        assert 0 <= float(circle.attrib["cx"]) <= width
        assert 0 <= float(circle.attrib["cy"]) <= height


def test_a_report_as_json_is_read_back():
    assert json.loads(as_json(report())) == report()
