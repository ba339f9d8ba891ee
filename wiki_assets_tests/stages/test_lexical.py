"""The index finds passages by their words, pages by their names, and only those that pass the filters."""

import io
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from wiki_assets.errors import BadRequest, DamagedArtifact
from wiki_assets.stages.lexical import Filters, LexicalIndex, Match, build_index, page_of

PAGES = [
    (1, "Italy", "Italy is a country in Europe. Rome is its capital and largest city.", ["Italia"], ["Lands"], 2026),
    (2, "Milan", "Milan is a city in Italy, with a population of 14 lakh. The population grew.", [], ["Cities"], 2025),
    (3, "Rome", "Rome has a population of 28 lakh. Its lakes are small.", ["Roma"], ["Cities", "Old_places"], 2024),
    (4, "Gone with the Wind (film)", "A film of 1939 by Victor Fleming.", ["GWTW"], ["Films"], None),
    (5, "Population", "A population is a group of living things of one kind.", [], [], 2023),
    (6, "Spitting", "Llamas spit at one another when food is short. Camels spit as well.", [], ["Habits"], 2022),
    (7, "Spit, Croatia", "A town by the sea that many have called Split.", [], ["Cities"], 2021),  # 11 sentences
]  # fmt: skip


def shard(pages) -> tuple[io.BytesIO, io.BytesIO]:
    """Articles and passages of some pages; a passage a sentence."""
    spans = []
    for page_id, _, text, *_ in pages:
        start = 0
        for number, sentence in enumerate(text.split(". ")):
            end = min(len(text), start + len(sentence) + 2)
            again = "-2" if sentence.startswith("Camels") else ""
            spans.append((f"{page_id}-{page_id:08x}{number:08x}{again}", page_id, start, end))
            start = end
    columns = zip(*pages, strict=True)
    ids, titles, texts, redirects, categories, years = columns
    articles = pa.table(
        {
            "page_id": ids, "title": titles, "text": texts, "redirects": redirects, "categories": categories,
            "revision": [10 * i for i in ids], "url": [f"https://x/wiki/{i}" for i in ids],
            "timestamp": pa.array(
                [datetime(y, 6, 15, 23, 59, tzinfo=UTC) if y else None for y in years], pa.timestamp("ms", "UTC")
            ),
        }
    )  # fmt: skip
    passages = pa.table(dict(zip(("passage_id", "page_id", "start", "end"), zip(*spans, strict=True), strict=True)))
    files = io.BytesIO(), io.BytesIO()
    for table, file in zip((articles, passages), files, strict=True):
        pq.write_table(table, file)
        file.seek(0)
    return files


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> LexicalIndex:
    folder = tmp_path_factory.mktemp("lexical")
    counts = build_index(folder, [shard(PAGES[:4]), shard(PAGES[4:])], language="en")
    assert counts == {"pages": 7, "documents": 11, "names": 11, "categories": 7}
    return LexicalIndex(folder, "en")


def pages_of(matches: list[Match]) -> list[int]:
    return list(dict.fromkeys(match.page_id for match in matches))


def test_every_passage_is_there(index):
    assert index.documents == 11
    assert len(index.page(2)) == 2
    assert index.page(99) == []


def test_a_passage_is_found_by_its_words_in_any_form(index):
    best = index.search("Which animals are spitting over lacking food?", 3)[0]
    row = index.rows([best])[0]
    assert row.text == "Llamas spit at one another when food is short."
    assert (row.page_id, row.title, row.url, row.revision, row.start) == (6, "Spitting", "https://x/wiki/6", 60, 0)
    assert (row.passage_id, best.passage_id) == (best.passage_id, f"6-{6:08x}{0:08x}")


def test_a_second_copy_of_a_passage_keeps_its_own_id(index):
    copy = next(match for match in index.page(6) if match.passage_id.count("-") == 2)
    assert copy.passage_id == f"6-{6:08x}{1:08x}-2"
    assert index.rows([copy])[0].passage_id == copy.passage_id
    assert page_of(copy.passage_id) == 6


def test_a_page_that_the_question_names_comes_before_pages_that_mention_it(index):
    assert pages_of(index.search("population of Italy", 10))[0] == 1
    assert pages_of(index.search("What is the population of Italia?", 10))[0] == 1, "by its redirect"


@pytest.mark.parametrize(
    ("name", "page"),
    [("italy", 1), ("Roma", 3), ("GWTW", 4), ("gone with the wind", 4), ("Population", 5), ("milan", 2)],
)
def test_a_title_or_redirect_alone_finds_its_page(index, name, page):
    assert pages_of(index.search(name, 5))[0] == page


def test_pages_are_known_by_their_names_titles_first(index):
    assert index.pages_named("ROMA") == [3]
    assert index.pages_named("rome") == [3]
    assert index.pages_named("Nowhere") == []


def test_words_that_stand_together_count_for_more(index):
    found = index.rows(index.search("largest city", 2))
    assert found[0].text == "Rome is its capital and largest city."


def test_what_no_passage_holds_finds_nothing(index):
    assert index.search("xylophone quintessence", 5) == []
    assert index.search("?!… ---", 5) == []


def test_no_more_are_returned_than_asked_for(index):
    assert len(index.search("population city", 2)) == 2
    assert len(index.search("population city", 1000)) <= 11


def test_passages_are_found_by_their_ids(index):
    ids = [match.passage_id for match in index.search("population", 4)]
    found = index.find([*ids, "2-00000000deadbeef", "99-0000000000000000"])
    assert set(found) == set(ids)
    assert [index.rows([found[name]])[0].passage_id for name in ids] == ids
    assert index.find([]) == {}


def test_many_pages_are_looked_through_as_few_are(index, monkeypatch):
    names = {match.passage_id for page in range(1, 8) for match in index.page(page)}
    few = index.find(names)
    assert [index.rows([match])[0].passage_id for match in few.values()] == list(few)
    monkeypatch.setattr("wiki_assets.stages.lexical._FEW_PAGES", 3)
    monkeypatch.setattr("wiki_assets.stages.lexical._FEW_PASSAGES", 2)
    assert set(index.find(names)) == set(few) == names
    assert len(index.page(2)) == 2


# Filters


@pytest.mark.parametrize(
    ("filters", "pages"),
    [
        (Filters(category="Cities"), {2, 3, 7}),
        (Filters(category="old places"), {3}),
        (Filters(category="Nothing"), set()),
        (Filters(updated_after=date(2025, 1, 1)), {1, 2}),
        (Filters(updated_after=date(2025, 6, 15)), {1, 2}),
        (Filters(updated_after=date(2025, 6, 16)), {1}),
        (Filters(updated_before=date(2022, 6, 15)), {6, 7}),
        (Filters("Cities", date(2024, 1, 1), date(2024, 12, 31)), {3}),
        (Filters(updated_after=date(1, 1, 1), updated_before=date(9999, 12, 31)), {1, 2, 3, 5, 6, 7}),
    ],
)
def test_only_pages_that_pass_are_found(index, filters, pages):
    question = "population city spit country town film one a"
    assert set(pages_of(index.search(question, 100, filters))) == pages
    assert {page_of(name) for name in index.passage_ids(filters, 100) or []} == pages
    assert index.passing(range(1, 20), filters) == pages


def test_too_many_passages_that_pass_are_not_listed(index):
    assert index.passage_ids(Filters(category="Cities"), 5) is not None
    assert index.passage_ids(Filters(category="Cities"), 4) is None


def test_a_filter_does_not_change_the_order(index):
    free = [m.passage_id for m in index.search("population of cities", 20) if m.page_id in (2, 3, 7)]
    assert [m.passage_id for m in index.search("population of cities", 20, Filters("Cities"))] == free


@pytest.mark.parametrize(
    ("filters", "says"),
    [
        (Filters(category=""), "category"),
        (Filters(category=" \n"), "category"),
        (Filters(category="x" * 10_000), "category"),
        (Filters(category="\ud800"), "surrogate"),
        (Filters(updated_after=date(2025, 1, 2), updated_before=date(2025, 1, 1)), "swap"),
    ],
)
def test_a_filter_that_cannot_be_is_refused(filters, says):
    with pytest.raises(BadRequest, match=says):
        filters.check()


def test_filters_that_filter_nothing_are_none():
    assert not Filters()
    assert Filters().check() == Filters()
    assert Filters(category="Cities")


# What people type


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=300))
def test_any_question_is_answered(index, question):
    matches = index.search(question, 5)
    assert len(matches) <= 5
    assert [m.score for m in matches] == sorted((m.score for m in matches), reverse=True)
    assert index.pages_named(question) is not None


@pytest.mark.parametrize(
    "question",
    [
        "population " * 700,
        "wort" * 2000,
        "東京" * 1300,
        " ".join(f"w{i}" for i in range(1500)),
        "AND OR NOT +( title:x ^2 ~",
    ],
)
def test_a_question_of_8_kib_is_answered(index, question):
    assert isinstance(index.search(question, 10), list)


# Other languages


@pytest.mark.parametrize(
    ("language", "pages", "asked", "expected"),
    [
        ("ja", [(1, "琵琶湖", "滋賀県にある日本最大の湖である。", ["びわ湖"], [], 2020),
                (2, "富士山", "静岡県と山梨県にまたがる日本で最も高い山である。", [], [], 2020),
                (3, "緑茶", "茶の葉から作る飲み物である。静岡県が産地である。", [], [], 2020)],
         [("日本最大の湖は？", 1), ("富士山の高さ", 2), ("びわ湖", 1), ("茶", 3), ("静岡県の飲み物", 3)], 5),
        ("zh", [(1, "长江", "长江是亚洲最长的河流。", [], [], 2020),
                (2, "黄山", "黄山在安徽省，以奇松闻名。", [], [], 2020)],
         [("亚洲最长的河是什么", 1), ("安徽的山", 2)], 2),
        ("th", [(1, "กรุงเทพมหานคร", "เป็นเมืองหลวงของประเทศไทย", [], [], 2020),
                (2, "แม่น้ำเจ้าพระยา", "เป็นแม่น้ำสายหลักที่ไหลผ่านภาคกลาง", [], [], 2020)],
         [("เมืองหลวงของไทย", 1), ("แม่น้ำสายหลัก", 2), ("กรุงเทพ", 1)], 3),
        ("de", [(1, "Bodensee", "Der größte See Deutschlands grenzt an drei Länder.", [], [], 2020),
                (2, "Zugspitze", "Der höchste Berg des Landes liegt in den Bayerischen Alpen.", [], [], 2020)],
         [("Welcher Berg ist am höchsten?", 2), ("grosser See", 1), ("Bayerns Alpe", 2)], 3),
        ("hi", [(1, "गंगा", "गंगा भारत की सबसे लंबी नदी है।", [], [], 2020),
                (2, "हिमालय", "हिमालय पर्वत ऊँचा है।", [], [], 2020)],
         [("भारत की लंबी नदी", 1), ("ऊँचा पर्वत", 2)], 2),
    ],
)  # fmt: skip
def test_questions_in_other_languages_find_their_pages(tmp_path: Path, language, pages, asked, expected):
    build_index(tmp_path, [shard(pages)], language=language)
    index = LexicalIndex(tmp_path, language)
    right = sum(pages_of(index.search(question, 5))[:1] == [page] for question, page in asked)
    assert right == expected == len(asked)


# Files


def test_a_folder_without_an_index_is_named(tmp_path):
    with pytest.raises(DamagedArtifact, match="materialize lexical_index"):
        LexicalIndex(tmp_path, "en")


def test_an_index_of_no_pages_answers_nothing(tmp_path):
    build_index(tmp_path, [], language="en")
    index = LexicalIndex(tmp_path, "en")
    assert index.search("anything", 5) == []
    assert index.page(1) == index.pages_named("x") == []
    assert index.passage_ids(Filters("Cities"), 5) == []


@pytest.mark.parametrize("threads", [1, 3])
def test_what_is_found_does_not_depend_on_the_threads(tmp_path, threads, index):
    build_index(tmp_path, [shard(PAGES)], language="en", threads=threads)
    other = LexicalIndex(tmp_path, "en")
    for question in ("population of Italy", "capital city", "spit"):
        one, two = ({m.passage_id: m.score for m in i.search(question, 20)} for i in (index, other))
        assert one == pytest.approx(two)
