"""A build is measured before anybody is sent to it, and what answers worse than it must is not published."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import dagster as dg
import msgspec
import pytest

from wiki_assets.defs import evaluation
from wiki_assets.defs.evaluation import (
    evaluation_line,
    evaluation_recipe,
    examine_evaluation,
    made_evaluation,
    make_evaluation,
)
from wiki_assets.defs.headless import Outcome
from wiki_assets.defs.instance import open_instance
from wiki_assets.defs.publish import examine
from wiki_assets.defs.recipes import Blocked
from wiki_assets.defs.report import snapshot_rows
from wiki_assets.defs.upkeep.reconcile import reconcile
from wiki_assets.defs.upkeep.verify import verify
from wiki_assets.defs.wikis import wiki_config
from wiki_assets.errors import BadRequest, Superseded
from wiki_assets.files import read_json, read_manifest, verify_files
from wiki_assets.resources.chroma import open_store
from wiki_assets.resources.store import Store
from wiki_assets.search.gate import keep_questions
from wiki_assets.settings import Settings
from wiki_assets.stages.evaluation import read_questions
from wiki_assets_tests.defs.conftest import SNAPSHOT, Deployment
from wiki_assets_tests.tinywiki.build import HERE

pytestmark = pytest.mark.chroma
QUESTIONS = read_questions(HERE / "questions.jsonl")


class Wiki(Deployment):
    """A copy of the published tiny wiki, and a Dagster instance that knows nothing of it yet."""

    @property
    def folder(self) -> Path:
        return Path(self.settings.root) / "tinywiki" / "eval"

    def make(self) -> None:
        make_evaluation(evaluation_recipe(self.book, SNAPSHOT), self.store, self.settings)

    def examine(self, published: dict | None = None) -> tuple[bool, dict]:
        return examine_evaluation(self.book, SNAPSHOT, self.settings, published)

    def finish(self, since: str = "chroma_collection") -> Outcome:
        """The stages that need no Ray."""
        return self.materialize(since=since)


@pytest.fixture
def wiki(tinywiki: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wiki]:
    shutil.copytree(tinywiki.root, tmp_path / "root")
    settings = replace(tinywiki, root=str(tmp_path / "root"))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    with open_instance(settings) as instance:
        config = wiki_config("tinywiki", settings, Store(settings.root))
        yield Wiki(settings, msgspec.structs.replace(config, own_questions=30), instance)


def test_a_build_is_asked_for_its_own_sentences_and_the_report_is_vouched_for(wiki: Wiki) -> None:
    assert made_evaluation(wiki.book, SNAPSHOT) is None, "none was asked when the tiny wiki was made"
    wiki.make()
    manifest = made_evaluation(wiki.book, SNAPSHOT)
    assert manifest is not None
    verify_files(wiki.store.wiki("tinywiki"), manifest)
    assert sorted(manifest.files) == [f"eval/20250105/report.{ending}" for ending in ("json", "md", "svg")]
    report = read_json(wiki.folder / "20250105" / "report.json")
    assert report is not None
    assert set(report["sets"]["all"]) == {"hybrid", "dense", "lexical"}
    page = manifest.counts["measures"]["hybrid"]["page"]
    assert page == report["sets"]["all"]["hybrid"]["page"]
    assert 25 <= page["n"] == manifest.counts["questions"] <= 35
    assert page["recall@10"] >= 0.95
    assert manifest.counts["ann_recall@10"] == 1.0
    assert evaluation_line(manifest) == f"R@10 {page['recall@10']:.3f} of {page['n']} questions"
    row = next(r for r in snapshot_rows(SNAPSHOT, wiki.settings, wiki.store) if r["asset"] == "evaluation")
    assert (row["done"], row["of"]) == (0, 1), "by default more are asked"
    passed, facts = wiki.examine()
    assert passed
    assert facts["recall@10"] == page["recall@10"]
    assert "wiki-assets eval --gate keeps some" in facts["note"]


CHANGES: dict[str, Callable[[Wiki], object]] = {
    "other questions": lambda wiki: keep_questions(wiki.store, "tinywiki", QUESTIONS, None, 0.5),
    "another build": lambda wiki: wiki.book.give_up_build(SNAPSHOT, 1, "another one was asked for"),
    "other words": lambda wiki: (wiki.store.lexical(SNAPSHOT) / "manifest.json").unlink(),
    "no manifest": lambda wiki: (wiki.folder / "20250105" / "manifest.json").unlink(),
    "no report": lambda wiki: (wiki.folder / "20250105" / "report.json").unlink(),
    "more of its own": lambda wiki: setattr(wiki, "config", msgspec.structs.replace(wiki.config, own_questions=31)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_evaluation_of_something_else_opens_no_gate(wiki: Wiki, change: str) -> None:
    wiki.make()
    assert made_evaluation(wiki.book, SNAPSHOT) is not None
    CHANGES[change](wiki)
    assert made_evaluation(wiki.book, SNAPSHOT) is None
    passed, facts = wiki.examine()
    assert not passed
    assert facts["next"] == "materialize evaluation, then published_index"


def test_other_weights_ask_for_another_evaluation(wiki: Wiki, monkeypatch: pytest.MonkeyPatch) -> None:
    wiki.make()
    monkeypatch.setattr(evaluation, "WEIGHTS", replace(evaluation.WEIGHTS, dense=0.5))
    assert made_evaluation(wiki.book, SNAPSHOT) is None


def test_kept_questions_open_the_gate_or_hold_it(wiki: Wiki, monkeypatch: pytest.MonkeyPatch) -> None:
    pointer = wiki.store.published("tinywiki")
    keep_questions(wiki.store, "tinywiki", QUESTIONS, None, 0.9)
    wiki.make()
    passed, facts = wiki.examine(pointer)
    assert passed
    assert (facts["questions"], facts["floor"]) == (36, 0.9)
    assert facts["published_recall@10"] == facts["recall@10"], "the same build"
    monkeypatch.setattr(evaluation, "recall_of", lambda *_: 1.5)
    passed, facts = wiki.examine(pointer)
    assert not passed
    assert "that of tinywiki-20250105-1 is 1.500: expected at most 0.02 less" in facts["found"]
    assert "max_recall_drop" in facts["next"]
    assert wiki.examine(pointer | {"snapshot": "20991231"})[0], "a newer one is not compared with"
    monkeypatch.setattr(evaluation, "recall_of", lambda *_: None)
    passed, facts = wiki.examine(pointer)
    assert passed
    assert "could not be asked" in facts["note"]
    keep_questions(wiki.store, "tinywiki", QUESTIONS, {question.id: {999} for question in QUESTIONS}, 0.5)
    wiki.make()
    gate = examine(wiki.book, SNAPSHOT, wiki.settings)
    assert not gate.passed
    assert "questions_answered: recall@10 of the kept questions is 0.000: expected 0.5 or more" in gate.reasons
    (wiki.folder / "questions.jsonl").write_bytes(b"nothing of the kind")
    passed, facts = wiki.examine(pointer)
    assert not passed
    assert "wiki-assets eval --gate again" in facts["found"]


def test_without_an_index_it_says_what_to_make_first(wiki: Wiki) -> None:
    (wiki.store.manifest_path("index", wiki.book.shards(SNAPSHOT)[1], 1)).unlink()
    with pytest.raises(Blocked, match="chroma_collection of tinywiki-20250105/00001 is not there"):
        evaluation_recipe(wiki.book, SNAPSHOT)
    outcome = wiki.finish(since="evaluation")
    assert outcome.failures == [
        "evaluation: chroma_collection of tinywiki-20250105/00001 is not there: materialize chroma_collection first"
    ]


def test_dagster_shows_the_measures_and_the_table_and_a_second_run_takes_them_over(wiki: Wiki) -> None:
    assert wiki.finish().made == {"chroma_collection": 2, "evaluation": 1, "published_index": 1}
    assert wiki.finish().nothing_to_do
    shown = wiki.events("evaluation")[0].metadata
    assert {"page_recall@1", "page_recall@10", "page_mrr", "page_ndcg@10", "passage_recall@10"} <= set(shown)
    assert {"latency_p50_ms", "latency_p99_ms", "ann_recall@10", "questions", "source", "collection"} <= set(shown)
    assert isinstance(shown["report"], dg.MarkdownMetadataValue)
    assert "| hybrid | page |" in str(shown["report"].value)
    assert shown["reused"].value is False
    before = (wiki.folder / "20250105" / "report.json").stat().st_mtime_ns
    wiki.instance.wipe_assets([dg.AssetKey(["tinywiki", "evaluation"])])
    assert wiki.finish().made == {"evaluation": 1}
    assert wiki.events("evaluation")[0].metadata["reused"].value is True
    assert (wiki.folder / "20250105" / "report.json").stat().st_mtime_ns == before


def test_a_build_that_is_worse_than_it_must_be_is_not_published(wiki: Wiki) -> None:
    before = wiki.store.published("tinywiki")
    wiki.book.give_up_build(SNAPSHOT, 1, "another one was asked for")
    keep_questions(wiki.store, "tinywiki", QUESTIONS, {question.id: {999} for question in QUESTIONS}, 0.9)
    outcome = wiki.finish()
    assert outcome.made == {"chroma_collection": 2, "evaluation": 1}
    assert "recall@10 of the kept questions is 0.000: expected 0.9 or more" in outcome.failures[0]
    assert wiki.store.published("tinywiki") == before
    keep_questions(wiki.store, "tinywiki", QUESTIONS, None, 0.9)
    assert wiki.finish().made == {"evaluation": 1, "published_index": 1}
    assert wiki.store.published("tinywiki")["build"] == 2


def test_an_index_that_cannot_be_asked_is_given_up_and_made_again(wiki: Wiki) -> None:
    assert wiki.finish().failures == []
    (wiki.folder / "20250105" / "manifest.json").unlink()
    with open_store(wiki.store.build(SNAPSHOT, 1) / "chroma", write=True) as client:
        client.delete_collection("tinywiki-20250105-1")
    outcome = wiki.finish()
    assert len(outcome.failures) == 1
    assert "cannot be evaluated" in outcome.failures[0]
    assert "build 1 is given up; materialize chroma_collection again" in outcome.failures[0]
    assert wiki.finish().made == {"chroma_collection": 2, "evaluation": 1, "published_index": 1}


def test_a_report_that_somebody_changed_is_found_and_made_again(wiki: Wiki) -> None:
    assert wiki.finish().failures == []
    report = wiki.folder / "20250105" / "report.json"
    report.write_bytes(report.read_bytes().replace(b'"recall@10": 1.0', b'"recall@10": 1.1', 1))
    found = verify("tinywiki", wiki.settings, wiki.store, instance=wiki.instance)
    assert [proof.name for proof in found.damaged()] == ["tinywiki evaluation 20250105"]
    _, changes = reconcile("tinywiki", wiki.settings, wiki.store, instance=wiki.instance)
    assert changes.set_aside == ["eval/20250105/manifest.json"]
    assert changes.forgotten == {"evaluation": ["20250105"]}
    assert wiki.finish().made == {"evaluation": 1}
    assert verify("tinywiki", wiki.settings, wiki.store, instance=wiki.instance).whole


def test_a_superseded_run_leaves_no_report_of_its_own(wiki: Wiki, monkeypatch: pytest.MonkeyPatch) -> None:
    real = evaluation.evaluate

    def overtaken(*args, **kwargs):
        report = real(*args, **kwargs)
        monkeypatch.setattr(evaluation, "evaluate", real)
        wiki.make()
        return report

    monkeypatch.setattr(evaluation, "evaluate", overtaken)
    with pytest.raises(Superseded):
        wiki.make()
    manifest = read_manifest(wiki.folder / "20250105" / "manifest.json")
    assert manifest is not None
    verify_files(wiki.store.wiki("tinywiki"), manifest)


@pytest.mark.parametrize("n", [-1, 10_001])
def test_a_wikis_own_questions_are_of_a_sensible_number(wiki: Wiki, n: int) -> None:
    with pytest.raises(BadRequest, match="own_questions"):
        msgspec.structs.replace(wiki.config, own_questions=n)
