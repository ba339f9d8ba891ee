"""A build is measured in every mode, on questions of one's own or its own, and kept questions hold the gate."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from wiki_assets.errors import BadRequest, DamagedArtifact
from wiki_assets.resources.store import Store
from wiki_assets.search.build import OpenBuild
from wiki_assets.search.gate import keep_questions, kept_questions, recall_of
from wiki_assets.search.measure import evaluate, questions_of_its_own
from wiki_assets.settings import Settings
from wiki_assets.stages.evaluation import Question, markdown, read_questions, svg
from wiki_assets_tests.tinywiki.build import HERE

pytestmark = pytest.mark.chroma
QUESTIONS = read_questions(HERE / "questions.jsonl")


def test_a_report_says_how_often_and_how_fast_in_every_mode(build: OpenBuild, tinywiki: Settings) -> None:
    report = evaluate(build, QUESTIONS, source="ours", store=Store(tinywiki.root), neighbours=10)
    modes = report["sets"]["all"]
    assert set(modes) == {"hybrid", "dense", "lexical"}
    assert modes["hybrid"]["page"]["recall@1"] > max(modes[m]["page"]["recall@1"] for m in ("dense", "lexical"))
    for found in modes.values():
        assert set(found) == {"page", "latency_ms"}
        assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["p99"]
        assert found["page"]["n"] == 36
    assert report["ann"] == {"recall@10": 1.0, "k": 10, "questions": 10, "vectors": report["passages"]}
    assert json.loads(json.dumps(report)) == report


def test_judgements_win_over_the_questions_own_pages(build: OpenBuild) -> None:
    none_right = {question.id: {999} for question in QUESTIONS[:5]}
    report = evaluate(build, QUESTIONS, none_right, modes=["lexical"])
    assert report["questions"] == 5
    assert report["sets"]["all"]["lexical"]["page"]["recall@20"] == 0


def test_questions_of_several_languages_are_told_apart(build: OpenBuild) -> None:
    some = [Question("a", "llama", 3, language="en"), Question("b", "Lama", 3, language="de")]
    report = evaluate(build, some, modes=["lexical"])
    assert {name: modes["lexical"]["page"]["n"] for name, modes in report["sets"].items()} == {"de": 1, "en": 1}


def test_questions_without_pages_cannot_be_judged(build: OpenBuild) -> None:
    with pytest.raises(BadRequest, match="none names its page"):
        evaluate(build, [Question("a", "llama")])


def test_a_wiki_asks_itself_and_finds_its_sentences(build: OpenBuild, tinywiki: Settings) -> None:
    questions = questions_of_its_own(build, Store(tinywiki.root), 45)
    report = evaluate(build, questions, modes=["hybrid"])
    assert report["questions"] >= 40
    assert report["sets"]["all"]["hybrid"]["page"]["recall@5"] >= 0.95
    assert report["sets"]["all"]["hybrid"]["passage"]["recall@10"] >= 0.9


def test_without_questions_nothing_is_opened_and_the_report_says_so(tinywiki: Settings) -> None:
    pointer = Store(tinywiki.root).published("tinywiki") | {"collection": "no such", "lexical": {"folder": "nowhere"}}
    report = evaluate(OpenBuild(pointer, tinywiki), [], store=Store(tinywiki.root))
    assert (report["questions"], report["sets"]) == (0, {})
    assert "0 questions" in markdown(report)
    assert svg(report).startswith("<svg ")


def test_kept_questions_come_back_as_they_were(copy: Callable[[], Settings]) -> None:
    settings = copy()
    store = Store(settings.root)
    assert kept_questions(store, "tinywiki") is None
    assert keep_questions(store, "tinywiki", QUESTIONS, None, 0.9) == 36
    kept = kept_questions(store, "tinywiki")
    assert kept is not None
    assert {q.id: q.question for q in kept.questions} == {q.id: q.question for q in QUESTIONS}
    assert kept.qrels == {q.id: {q.page_id} for q in QUESTIONS}
    assert kept.floor == 0.9
    pointer = store.published("tinywiki")
    assert (recall_of(pointer, kept, settings) or 0) >= 0.9
    assert recall_of(pointer | {"collection": "no such"}, kept, settings) is None, "cannot be asked"
    keep_questions(store, "tinywiki", QUESTIONS[:5], None, 0.9)
    fewer = kept_questions(store, "tinywiki")
    assert fewer is not None
    assert fewer.sha256 != kept.sha256


@pytest.mark.parametrize("spoilt", [b"", b"nothing of the kind", b"[1]", b'{"id": "a"}', b"\xff"])
def test_kept_questions_that_cannot_be_read_say_what_to_do(copy: Callable[[], Settings], spoilt: bytes) -> None:
    settings = copy()
    store = Store(settings.root)
    keep_questions(store, "tinywiki", QUESTIONS, None, 0.9)
    (Path(settings.root) / "tinywiki" / "eval" / "questions.jsonl").write_bytes(spoilt)
    with pytest.raises(DamagedArtifact, match="wiki-assets eval --gate again"):
        kept_questions(store, "tinywiki")


@pytest.mark.parametrize("floor", [-0.1, 1.1, float("nan")])
def test_a_floor_is_a_share(tinywiki: Settings, floor: float) -> None:
    with pytest.raises(BadRequest, match="0 to 1"):
        keep_questions(Store(tinywiki.root), "tinywiki", QUESTIONS, None, floor)
