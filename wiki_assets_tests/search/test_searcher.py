"""Questions to the published tiny wiki: the right page, one whole build an answer, and mistakes in one line."""

import json
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wiki_assets.errors import BadRequest, DamagedArtifact, NotPublished, SchemaMismatch, WikiAssetsError
from wiki_assets.files import read_json, write_json
from wiki_assets.resources.store import Store
from wiki_assets.search import MODES, Filters, Mode, Searcher, ask
from wiki_assets.search import build as build_module
from wiki_assets.search.build import OpenBuild
from wiki_assets.search.questioner import Questioner
from wiki_assets.settings import Settings
from wiki_assets_tests.tinywiki.build import HERE

pytestmark = pytest.mark.chroma
QUESTIONS = [json.loads(line) for line in (HERE / "questions.jsonl").read_text("utf-8").splitlines()]
Copy = Callable[[], Settings]


def right(searcher: Searcher, mode: Mode, k: int) -> int:
    """Of the 36 questions, to how many the right page is among the first k passages."""
    answers = [searcher.search(q["question"], k=k, mode=mode) for q in QUESTIONS]
    return sum(q["page_id"] in [h.page_id for h in a.hits] for q, a in zip(QUESTIONS, answers, strict=True))


def test_both_ways_together_have_the_right_page_first_more_often_than_either(searcher: Searcher) -> None:
    first = {mode: right(searcher, mode, 1) for mode in MODES}
    assert first["hybrid"] > max(first["dense"], first["lexical"])
    assert right(searcher, "hybrid", 10) >= len(QUESTIONS) - 2


def test_a_hit_says_where_it_stands_and_in_which_revision(searcher: Searcher) -> None:
    answer = searcher.search("Which lake holds a fifth of the unfrozen fresh water?", k=5)
    assert (answer.wiki, answer.snapshot, answer.mode, answer.note) == ("tinywiki", "20250105", "hybrid", "")
    best = answer.hits[0]
    article = searcher.article(page_id=best.page_id)
    assert best.title == article.title == "Lake Baikal"
    for hit in answer.hits:
        page = searcher.article(page_id=hit.page_id)
        assert page.text[hit.start : hit.end].strip() == hit.passage
        assert hit.permalink == page.permalink
        assert hit.permalink.endswith(f"&oldid={hit.revision}")
        assert hit.permalink.startswith("https://tiny.wikipedia.org/w/index.php?title=")
    assert best.permalink == "https://tiny.wikipedia.org/w/index.php?title=Lake_Baikal&oldid=2112"
    assert json.loads(json.dumps(best.as_dict()))["title"] == "Lake Baikal"


def test_ranks_of_both_legs_are_told(searcher: Searcher) -> None:
    by_mode = {mode: searcher.search("Which animals spit?", k=20, mode=mode).hits for mode in MODES}
    place = {(hit.page_id, hit.start): hit for hit in by_mode["hybrid"]}
    for mode, attribute in (("dense", "dense_rank"), ("lexical", "lexical_rank")):
        for hit in by_mode[mode]:
            assert getattr(hit, attribute) == hit.rank
            if (both := place.get((hit.page_id, hit.start))) is not None:
                assert getattr(both, attribute) == hit.rank
    assert all(hit.similarity == hit.score for hit in by_mode["dense"])
    assert all(hit.similarity is None and hit.dense_rank is None for hit in by_mode["lexical"])


@pytest.mark.parametrize("mode", MODES)
def test_grouped_there_is_one_passage_a_page(searcher: Searcher, mode: Mode) -> None:
    question = "water and ice on mountains"
    grouped = searcher.search(question, k=10, mode=mode, group=True).hits
    pages = [hit.page_id for hit in grouped]
    assert len(set(pages)) == len(pages) == 10
    assert [hit.rank for hit in grouped] == list(range(1, 11))
    free = searcher.search(question, k=100, mode=mode).hits
    assert pages == list(dict.fromkeys(hit.page_id for hit in free))[:10]
    assert grouped[0].start == free[0].start


@pytest.mark.parametrize("mode", MODES)
def test_a_thousand_passages_can_be_asked_for(searcher: Searcher, mode: Mode) -> None:
    hits = searcher.search("the water of a lake", k=1000, mode=mode).hits
    assert len({(hit.page_id, hit.start) for hit in hits}) == len(hits) > 40
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


@pytest.mark.parametrize("mode", MODES)
def test_filters_keep_the_order_and_drop_the_rest(searcher: Searcher, mode: Mode) -> None:
    question, some = "animals that live in groups", searcher.search("animals", k=1).hits[0]
    category = searcher.article(page_id=some.page_id).categories[0]
    free = searcher.search(question, k=1000, mode=mode).hits
    kept = searcher.search(question, k=1000, mode=mode, filters=Filters(category=category)).hits
    passing = {h.page_id for h in free if category in searcher.article(page_id=h.page_id).categories}
    expected = [(h.page_id, h.start) for h in free if h.page_id in passing]
    assert passing
    assert {h.page_id for h in kept} == passing
    if mode != "hybrid":  # which weighs each passage against the others that are left
        assert [(h.page_id, h.start) for h in kept] == expected


def test_dates_are_filtered_by(searcher: Searcher) -> None:
    hits = searcher.search("water", k=1000).hits
    dates = {h.page_id: updated.date() for h in hits if (updated := searcher.article(page_id=h.page_id).updated)}
    middle = sorted(dates.values())[len(dates) // 2]
    after = {h.page_id for h in searcher.search("water", k=1000, filters=Filters(updated_after=middle)).hits}
    before = {h.page_id for h in searcher.search("water", k=1000, filters=Filters(updated_before=middle)).hits}
    assert after >= {page for page, day in dates.items() if day >= middle}
    assert not after & {page for page, day in dates.items() if day < middle}
    assert not before & {page for page, day in dates.items() if day > middle}
    assert searcher.search("water", filters=Filters("No such category")).hits == []


def test_so_many_pages_that_pass_are_looked_through_and_not_named(
    searcher: Searcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wiki_assets.search import build

    filters = Filters(updated_after=date(2000, 1, 1))
    named = searcher.search("water and ice", k=20, mode="dense", filters=filters).hits
    monkeypatch.setattr(build, "_FEW", 3)
    looked_through = searcher.search("water and ice", k=20, mode="dense", filters=filters).hits
    assert [h.as_dict() for h in looked_through] == [h.as_dict() for h in named]


# Pages


def test_pages_near_a_page_are_others(searcher: Searcher) -> None:
    llama = searcher.article(title="Llama")
    answer = searcher.similar(llama.page_id, k=5)
    pages = [hit.page_id for hit in answer.hits]
    assert len(set(pages)) == 5
    assert llama.page_id not in pages
    assert answer.mode == "dense"


@pytest.mark.parametrize("title", ["Llama", "llama", "LLAMA", "Lama glama", "lama_glama", " Llama "])
def test_a_page_is_read_by_its_title_or_a_redirect(searcher: Searcher, title: str) -> None:
    article = searcher.article(title=title)
    assert (article.page_id, article.title, article.wiki) == (3, "Llama", "tinywiki")
    assert article.as_dict()["text"].startswith(article.text[:50])
    assert json.loads(json.dumps(article.as_dict()))["revision"] == article.revision


@pytest.mark.parametrize(
    ("which", "says"),
    [
        ({"page_id": 10**12}, "has none such"),
        ({"page_id": -1}, "expected a page id"),
        ({"page_id": 2**63}, "expected a page id"),
        ({"title": "No page of that name"}, "has none such"),
        ({"title": "Llamas are nice"}, "has none such"),
        ({"title": ""}, "expected the title"),
        ({"title": "x" * 5000}, "expected the title"),
        ({"title": "\ud800"}, "expected the title"),
        ({}, "one of the two"),
        ({"title": "Llama", "page_id": 3}, "one of the two"),
    ],
)
def test_a_page_that_is_not_there_is_said(searcher: Searcher, which: dict[str, Any], says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        searcher.article(**which)


@pytest.mark.parametrize("page_id", [10**12, -1])
def test_pages_near_no_page_cannot_be_asked_for(searcher: Searcher, page_id: int) -> None:
    with pytest.raises(BadRequest):
        searcher.similar(page_id)


def test_texts_are_embedded_as_questions_are(searcher: Searcher) -> None:
    vectors = searcher.embed(["Which animals spit?", "x" * 8000])
    assert vectors.shape == (2, 384)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1], abs=1e-4)
    nearest = searcher.search("Which animals spit?", k=1, mode="dense").hits[0]
    assert vectors[0] @ searcher.embed([f"{nearest.title}: {nearest.passage}"])[0] == pytest.approx(
        nearest.score, abs=0.02
    )


# Mistakes


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"question": ""}, BadRequest),
        ({"question": " \0 \n"}, BadRequest),
        ({"question": "x" * 10_000_000}, BadRequest),
        ({"question": "why \ud800?"}, BadRequest),
        ({"question": "x", "k": 0}, BadRequest),
        ({"question": "x", "k": -1}, BadRequest),
        ({"question": "x", "k": 10**9}, BadRequest),
        ({"question": "x", "wiki": "../../etc"}, BadRequest),
        ({"question": "x", "mode": "best"}, BadRequest),
        ({"question": "x", "filters": Filters(category="")}, BadRequest),
        ({"question": "x", "filters": Filters(None, date(2025, 1, 2), date(2025, 1, 1))}, BadRequest),
        ({"question": "x", "wiki": "enwiki"}, NotPublished),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(searcher: Searcher, asked: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error) as refused:
        searcher.search(**asked)
    assert len(str(refused.value).splitlines()) == 1
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    "question", ["\0llama\0", "🦙", "???", "a" * 8192, "' OR 1=1 --", "llama AND (NOT title:", "ＬＬＡＭＡ"]
)
@pytest.mark.parametrize("mode", MODES)
def test_what_can_be_asked_is_answered(searcher: Searcher, question: str, mode: Mode) -> None:
    assert len(searcher.search(question, k=3, mode=mode).hits) <= 3


def test_another_model_than_the_indexs_is_refused_but_words_still_answer(copy: Copy) -> None:
    settings = copy()
    path = Path(settings.root) / "tinywiki" / "published.json"
    pointer = read_json(path)
    write_json(
        path, {**{k: v for k, v in pointer.items() if k != "seal"}, "model": pointer["model"] | {"sha256": "0" * 64}}
    )
    searcher = Searcher(settings)
    with pytest.raises(SchemaMismatch, match="WIKI_ASSETS_MODEL"):
        searcher.search("llama")
    assert searcher.search("llama", mode="lexical").hits[0].title == "Llama"
    searcher.close()
    with pytest.raises(BadRequest, match="closed"):
        searcher.search("llama", mode="lexical")


# Builds


def test_an_index_published_without_words_answers_by_meaning_and_says_so(copy: Copy) -> None:
    settings = copy()
    path = Path(settings.root) / "tinywiki" / "published.json"
    write_json(path, {k: v for k, v in read_json(path).items() if k not in ("lexical", "seal")})
    searcher = Searcher(settings)
    answer = searcher.search("Which lake holds a fifth of the unfrozen fresh water?", k=3, group=True)
    assert (answer.mode, answer.hits[0].title) == ("dense", "Lake Baikal")
    assert "no lexical index" in answer.note
    assert answer.hits[0].permalink.endswith("oldid=2112")
    assert searcher.article(title="Lama glama").page_id == 3
    assert searcher.similar(3, k=2).hits
    for refused in ({"mode": "lexical"}, {"filters": Filters("Lakes")}):
        with pytest.raises(NotPublished, match="without a lexical index: run wiki-assets materialize"):
            searcher.search("lakes", **refused)
    searcher.close()


def test_a_lexical_index_that_is_gone_is_named(copy: Copy) -> None:
    settings = copy()
    wiki = Path(settings.root) / "tinywiki"
    folder = wiki / read_json(wiki / "published.json")["lexical"]["folder"]
    next(folder.glob("*.store")).unlink()
    searcher = Searcher(settings)
    with pytest.raises(DamagedArtifact, match="materialize lexical_index"):
        searcher.search("llama")
    shutil.rmtree(folder)
    with pytest.raises(DamagedArtifact, match="materialize lexical_index"):
        searcher.search("llama")
    searcher.close()


def test_a_folder_that_cannot_be_written_to_is_read_from_a_checked_copy(
    copy: Copy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from wiki_assets.resources import local_copy

    settings = replace(copy(), cache=str(tmp_path / "cache"))
    wiki = Path(settings.root) / "tinywiki"
    folder = wiki / read_json(wiki / "published.json")["lexical"]["folder"]
    monkeypatch.setattr(local_copy.os, "access", lambda path, mode: False)
    searcher = Searcher(settings)
    assert searcher.search("llama", mode="lexical").hits[0].title == "Llama"
    searcher.close()
    copies = list((settings.cache_folder / "lexical_index" / "tinywiki").iterdir())
    assert len(copies) == 1
    assert {f.name for f in copies[0].iterdir()} >= {f.name for f in folder.glob("*.store")}
    shutil.rmtree(copies[0])
    store = next(folder.glob("*.store"))
    store.write_bytes(b"\0" * store.stat().st_size)
    searcher = Searcher(settings)
    with pytest.raises(DamagedArtifact, match="SHA-256"):
        searcher.search("llama", mode="lexical")
    assert not list((settings.cache_folder / "lexical_index" / "tinywiki").iterdir()), "nothing half-copied stays"
    searcher.close()


def test_the_pointer_is_followed_and_answers_under_way_keep_their_build(copy: Copy) -> None:
    settings = copy()
    path = Path(settings.root) / "tinywiki" / "published.json"
    first = {k: v for k, v in read_json(path).items() if k != "seal"}
    searcher = Searcher(settings)
    assert searcher.search("llama", k=1).build == first["build"]
    with searcher._build("tinywiki") as under_way:
        write_json(path, {**first, "published_at": "later"})
        assert searcher.search("llama", k=1).hits
        current = searcher._wikis["tinywiki"].current
        assert current is not under_way
        assert under_way.search("llama", 1, "hybrid")[0][0].title == "Llama", "it is open until its answer is given"
    assert set(searcher._users) == {current}
    searcher.close()
    assert not searcher._users


def test_a_build_that_does_not_open_leaves_the_one_before_in_place(copy: Copy) -> None:
    settings = copy()
    path = Path(settings.root) / "tinywiki" / "published.json"
    good = {k: v for k, v in read_json(path).items() if k != "seal"}
    searcher = Searcher(settings)
    searcher.warm()
    write_json(path, {**good, "build": 99, "collection": "tinywiki-20250105-99"})
    answer = searcher.search("llama", k=1)
    assert (answer.build, answer.hits[0].title) == (good["build"], "Llama")
    searcher.close()
    with pytest.raises(NotPublished):
        ask("llama", settings)


def test_many_threads_ask_while_the_pointer_moves_and_each_answer_is_of_one_build(copy: Copy) -> None:
    settings = copy()
    path = Path(settings.root) / "tinywiki" / "published.json"
    pointer = {k: v for k, v in read_json(path).items() if k != "seal"}
    alone = Searcher(settings)
    expected = {q["question"]: [h.as_dict() for h in alone.search(q["question"], k=3).hits] for q in QUESTIONS[:12]}
    alone.close()
    searcher = Searcher(settings)
    moved = threading.Event()

    def keep_asking(number: int) -> Counter[bool]:
        same: Counter[bool] = Counter()
        while not moved.is_set() or not same:
            question = QUESTIONS[number % 12]["question"]
            same[[h.as_dict() for h in searcher.search(question, k=3).hits] == expected[question]] += 1
            number += 1
        return same

    with ThreadPoolExecutor(6) as threads:
        asking = [threads.submit(keep_asking, number) for number in range(6)]
        try:
            for turn in range(4):
                write_json(path, {**pointer, "published_at": str(turn)})
                searcher.search("llama", k=1)
        finally:
            moved.set()
        answers = sum((task.result() for task in asking), Counter())
    assert set(answers) == {True}
    searcher.close()
    assert not searcher._users


def test_a_crowd_gets_the_answers_that_one_gets_alone(searcher: Searcher) -> None:
    """Questions that come together are one batch; those that filter, group or want many passages stay apart."""
    kinds: list[dict[str, Any]] = [
        {}, {"mode": "dense"}, {"mode": "lexical"}, {"k": 40, "group": True}, {"filters": Filters(category="Mammals")},
    ]  # fmt: skip
    asked = [(q["question"], kind) for q in QUESTIONS for kind in kinds]

    def hits(one: tuple[str, dict[str, Any]]) -> list[tuple[int, int]]:
        return [(hit.page_id, hit.start) for hit in searcher.search(one[0], **{"k": 3, **one[1]}).hits]

    alone = [hits(one) for one in asked]
    with ThreadPoolExecutor(12) as threads:
        assert list(threads.map(hits, asked)) == alone


def test_a_question_that_comes_back_is_not_computed_again(tinywiki: Settings) -> None:
    build = OpenBuild(Store(tinywiki.root).published("tinywiki"), tinywiki)
    questioner, batches = build.questioner, list[int]()
    encode = questioner.encoder.encode

    class Counting:
        dim, engine, batch_pieces = questioner.encoder.dim, questioner.encoder.engine, questioner.encoder.batch_pieces

        def encode(self, input_ids: Any, attention_mask: Any) -> Any:
            batches.append(len(input_ids))
            return encode(input_ids, attention_mask)

    counting = Questioner(questioner.model, Counting())
    first = counting.remembered(["spitting llamas", "deep lakes"])
    again = counting.remembered(["deep lakes", "wide rivers", "spitting llamas", "deep lakes"])
    assert batches == [2, 1]
    assert again[[2, 0, 3]].tolist() == first[[0, 1, 1]].tolist()
    first[:] = 0
    assert counting.vectors(["deep lakes"]).tolist() == again[:1].tolist(), "what is given away is a copy"
    build.close()


def test_another_pointer_is_seen_at_once_and_none_at_all_too(copy: Copy) -> None:
    settings = copy()
    path = Path(settings.root) / "tinywiki" / "published.json"
    pointer = {k: v for k, v in read_json(path).items() if k != "seal"}
    searcher = Searcher(settings)
    assert searcher._pointer("tinywiki") is searcher._pointer("tinywiki"), "it is read once"
    for turn in range(5):
        write_json(path, {**pointer, "published_at": str(turn)})
        assert searcher._pointer("tinywiki")["published_at"] == str(turn)
    path.write_bytes(path.read_bytes().replace(b'"4"', b'"5"'))
    assert searcher._pointer("tinywiki")["published_at"] == "5", "written in place"
    path.unlink()
    with pytest.raises(NotPublished):
        searcher._pointer("tinywiki")
    searcher.close()


def test_several_published_wikis_are_told_apart(copy: Copy) -> None:
    settings = copy()
    root = Path(settings.root)
    shutil.copytree(root / "tinywiki", root / "otherwiki")
    pointer = {k: v for k, v in read_json(root / "otherwiki" / "published.json").items() if k != "seal"}
    write_json(root / "otherwiki" / "published.json", {**pointer, "wiki": "otherwiki"})
    searcher = Searcher(settings)
    with pytest.raises(BadRequest, match="several wikis"):
        searcher.search("llama")
    assert [p["wiki"] for p in searcher.wikis()] == ["otherwiki", "tinywiki"]
    answers = [searcher.search("llama", wiki=wiki, k=1) for wiki in ("otherwiki", "tinywiki")]
    assert [(a.wiki, a.hits[0].wiki, a.hits[0].title) for a in answers] == [
        ("otherwiki", "otherwiki", "Llama"),
        ("tinywiki", "tinywiki", "Llama"),
    ]
    searcher.close()


def test_a_build_is_closed_once(tinywiki: Settings) -> None:
    build = OpenBuild(Store(tinywiki.root).published("tinywiki"), replace(tinywiki, engine="auto"))
    assert build.search("llama", 1, "lexical")[0]
    build.close()
    build.close()


def test_where_nothing_is_published_the_next_step_is_told(tmp_path: Path) -> None:
    searcher = Searcher(Settings(root=str(tmp_path)))
    searcher.warm()
    assert searcher.wikis() == []
    with pytest.raises(WikiAssetsError, match="run wiki-assets materialize"):
        searcher.search("llama")


def test_a_part_that_many_threads_want_first_is_made_once(tinywiki: Settings) -> None:
    build = OpenBuild(Store(tinywiki.root).published("tinywiki"), tinywiki)
    together = threading.Barrier(8)

    def middle(_: int) -> Any:
        together.wait(30)
        return build.middle

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(middle, range(8)))
    build.close()
    assert all(each is found[0] for each in found)


def test_of_a_cosine_only_what_is_above_the_mean_is_mixed(build: OpenBuild, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    real = build_module.fuse

    def watched(*args: Any, usual: float, **kwargs: Any) -> Any:
        given.append(usual)
        return real(*args, usual=usual, **kwargs)

    monkeypatch.setattr(build_module, "fuse", watched)
    build.search("Which animals spit?", 3, "hybrid")
    vectors = np.asarray(build.collection.get(include=["embeddings"])["embeddings"], np.float32)
    (question,) = build.questioner.vectors(["Which animals spit?"])
    assert len(vectors) < build_module._SOME_VECTORS, "so few that all of them are looked at"
    assert given == [pytest.approx(float((vectors @ question).mean()), abs=1e-5)]
