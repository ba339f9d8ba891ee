"""The sample of real dumps through split, merge and tokenize: nothing is lost, and layouts agree."""

from collections import Counter
from contextlib import nullcontext
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from wiki_assets.keys import Snapshot, shards_of
from wiki_assets.stages.delta import PAGE_COLUMNS, compare_pages
from wiki_assets.stages.embeddings import EmbeddingParams, embed_shard
from wiki_assets.stages.evaluation import Found, Question, measures, ranks, read_qrels, read_questions
from wiki_assets.stages.lexical import LexicalIndex, build_index
from wiki_assets_tests.chaos.plain import SmallEncoder
from wiki_assets_tests.pipeline import Made, dump_files, make_articles, make_tokens

pytestmark = pytest.mark.realdata
SHARDS = 4


@pytest.fixture(scope="module")
def make(sample_data, tmp_path_factory, encoding, tokenizer):
    """A function that makes a snapshot of the sample, once."""
    done: dict[tuple[str, str], Made] = {}

    def make(wiki: str, date: str, *, shards: int = SHARDS) -> Made:
        if (wiki, date) not in done:
            folder = tmp_path_factory.mktemp(f"{wiki}-{date}")
            articles = make_articles(
                dump_files(sample_data / "dumps", wiki, date), Snapshot(wiki, date), folder, shards=shards
            )
            done[wiki, date] = make_tokens(articles, encoding, tokenizer)
        return done[wiki, date]

    return make


@pytest.fixture(scope="module")
def enwiki(make) -> Made:
    return make("enwiki", "20260823")


def test_every_document_of_enwiki_is_accounted_for(enwiki):
    assert enwiki.ledger == {"documents": 9_816 + 45, "pages": 9_816, "filtered": {"redirect": 45}, "quarantined": {}}
    assert len(set(enwiki.table("articles")["page_id"].to_pylist())) == 9_816


def test_pages_are_in_their_shards_and_shards_are_even(enwiki):
    sizes = [counts["pages"] for counts in enwiki.merged]
    assert min(sizes) > 0.93 * max(sizes)
    ids = enwiki.table("articles")["page_id"].to_numpy()
    assert (shards_of(ids, SHARDS) == np.repeat(np.arange(SHARDS), sizes)).all()


def test_every_character_is_read_and_none_twice(enwiki):
    articles, passages = enwiki.table("articles"), enwiki.table("passages")
    n_characters = pc.sum(pc.utf8_length(articles["text"])).as_py()
    assert enwiki.total("text_chars") == enwiki.total("covered_chars") == n_characters
    assert pc.sum(pc.subtract(passages["end"], passages["start"])).as_py() == n_characters
    assert len(set(passages["passage_id"].to_pylist())) == len(passages)


def test_nothing_is_truncated(enwiki, tokenizer):
    assert enwiki.total("truncated") == 0
    assert pc.max(enwiki.table("passages")["n_word_pieces"]).as_py() <= 128 < tokenizer.max_pieces


def test_a_token_takes_at_most_1_75_bytes(enwiki):
    size = sum(map(len, enwiki.bytes("tokens")))
    assert size <= 1.75 * enwiki.total("tokens")


def test_the_ids_of_300_pages_are_those_of_tiktoken(enwiki, encoding):
    texts, tokens = enwiki.table("articles")["text"], enwiki.table("tokens")
    step = len(texts) // 300
    for row in range(0, 300 * step, step):
        text = texts[row].as_py()
        assert tokens["token_ids"][row].as_py() == encoding.encode_ordinary(text)
        assert encoding.decode(tokens["token_ids"][row].as_py()) == text


# The two layouts of one snapshot: in this sample not even a revision or a redirect differs


def differing(a: Made, b: Made) -> set[str]:
    """Columns of the articles that are not the same in both."""
    left, right = a.table("articles"), b.table("articles")
    return {name for name in left.column_names if not left[name].equals(right[name])}


def test_the_old_layout_gives_the_same_articles(enwiki, make):
    old = make("enwiki", "20251229")
    assert old.ledger == {"documents": 9_816, "pages": 9_816, "filtered": {}, "quarantined": {}}
    assert differing(enwiki, old) == set()


@pytest.mark.parametrize("artifact", ["tokens", "passages"])
def test_the_old_layout_gives_the_same_bytes_of_tokens_and_passages(enwiki, make, artifact):
    assert make("enwiki", "20251229").bytes(artifact) == enwiki.bytes(artifact)


@pytest.mark.parametrize("date", ["20240101", "20251229"])
def test_earlier_layouts_of_testwiki_give_the_same_text(make, date):
    old, new = make("testwiki", date), make("testwiki", "20260823")
    assert (old.ledger["pages"], old.ledger["quarantined"]) == (148, {})
    assert new.ledger == {"documents": 193, "pages": 148, "filtered": {"redirect": 45}, "quarantined": {}}
    assert differing(old, new) == set()
    assert old.bytes("tokens") == new.bytes("tokens")
    assert old.bytes("passages") == new.bytes("passages")


# From one week to the next


def pairs(made: Made, artifact: str, *columns: str):
    return zip(*(made.table(artifact)[name].to_pylist() for name in columns), strict=True)


def test_pages_that_did_not_change_keep_their_shards_and_their_passages(enwiki, make):
    before = make("enwiki", "20260816")
    assert before.ledger["pages"] == 9_803
    texts = [dict(pairs(made, "articles", "page_id", "text")) for made in (before, enwiki)]
    kept = texts[0].keys() & texts[1].keys()
    assert (len(texts[1].keys() - kept), len(texts[0].keys() - kept)) == (295, 282)
    same = {page_id for page_id in kept if texts[0][page_id] == texts[1][page_id]}
    assert len(kept - same) == 50
    passages = [
        {passage_id for page_id, passage_id in pairs(made, "passages", "page_id", "passage_id") if page_id in same}
        for made in (before, enwiki)
    ]
    assert passages[0] == passages[1]


def test_the_ledger_of_the_week_says_what_came_what_changed_and_what_went(enwiki, make):
    before = make("enwiki", "20260816")
    found: Counter[str] = Counter()
    for shard in range(SHARDS):
        now = pq.read_table(enwiki.path("articles", shard), columns=list(PAGE_COLUMNS))
        with before.path("articles", shard).open("rb") as source:
            found.update(compare_pages(now, source))
    assert dict(found) == {
        "pages_added": 295,
        "pages_changed": 50,
        "pages_moved": 0,
        "pages_gone": 282,
        "pages_unchanged": 9_471,
    }


def embedded(made: Made, known: Made | None = None) -> list[dict[str, Any]]:
    """Embed every shard of a snapshot, by a stand-in for the model; the counts of each."""
    counts = []
    for shard in range(SHARDS):
        with (
            made.path("passages", shard).open("rb") as passages,
            made.path("embeddings", shard).open("wb") as out,
            known.path("embeddings", shard).open("rb") if known else nullcontext() as before,
        ):
            counts.append(
                embed_shard(
                    passages, out, encoder=SmallEncoder(), params=EmbeddingParams("small", "0" * 64, 384), metadata={},
                    known=[before] if before else [],
                )
            )  # fmt: skip
    return counts


def test_only_passages_that_changed_are_embedded_again(enwiki, make, record_property):
    before = make("enwiki", "20260816")
    first, second = embedded(before), embedded(enwiki, known=before)
    assert sum(counts["passages_reused"] for counts in first) == 0
    texts = [dict(pairs(made, "articles", "page_id", "text")) for made in (before, enwiki)]
    same = {page_id for page_id in texts[0].keys() & texts[1].keys() if texts[0][page_id] == texts[1][page_id]}
    of_same = sum(page_id in same for page_id, _ in pairs(enwiki, "passages", "page_id", "passage_id"))
    reused = sum(counts["passages_reused"] for counts in second)
    assert reused >= of_same, "every passage of a page that did not change"
    vectors = dict(pairs(before, "embeddings", "input_hash", "vector"))
    taken = [
        (old, now) for key, now in pairs(enwiki, "embeddings", "input_hash", "vector") if (old := vectors.get(key))
    ]
    assert len(taken) == reused
    assert all(old == now for old, now in taken)
    record_property("passages", len(enwiki.table("passages")))
    record_property("reused", reused)


# Other languages


def test_every_document_of_a_whole_small_wiki_is_accounted_for(make):
    made = make("ltgwiki", "20260823", shards=2)
    filtered = {"redirect": 147, "no_text": 7}
    assert made.ledger == {"documents": 903 + 147, "pages": 903 - 7, "filtered": filtered, "quarantined": {}}
    assert make("ltgwiki", "20251229", shards=2).bytes("articles") == made.bytes("articles")
    assert set(made.table("articles")["language"].to_pylist()) == {"ltg"}


@pytest.mark.parametrize(("wiki", "n_pages"), [("jawiki", 1_000), ("frwiki", 1_500), ("dewiki", 1_000)])
def test_other_languages_are_read_whole(make, tokenizer, wiki, n_pages):
    made = make(wiki, "20260823", shards=1)
    assert made.ledger["pages"] + sum(made.ledger["filtered"].values()) == made.ledger["documents"]
    assert made.ledger["pages"] == n_pages
    assert made.total("covered_chars") == made.total("text_chars")
    assert made.total("truncated") == 0


# Questions, by their words alone: no vector is needed


@pytest.fixture(scope="module")
def words(enwiki, tmp_path_factory) -> LexicalIndex:
    folder = tmp_path_factory.mktemp("enwiki-lexical")
    shards = [(enwiki.path("articles", n).open("rb"), enwiki.path("passages", n).open("rb")) for n in range(SHARDS)]
    counts = build_index(folder, shards, language="en")
    for files in shards:
        for file in files:
            file.close()
    assert (counts["pages"], counts["documents"]) == (9_816, enwiki.total("passages"))
    return LexicalIndex(folder, "en")


def asked(words: LexicalIndex, questions: list[Question], qrels: dict[str, set[int]]) -> dict[str, dict[str, float]]:
    """Measures by what is looked for."""
    met: dict[str, list[int]] = {}
    for question in questions:
        rows = words.rows(words.search(question.question, 10))
        found = [Found(row.page_id, row.start, row.end) for row in rows]
        for level, rank in ranks(question, qrels[question.id], found).items():
            met.setdefault(level, []).append(rank)
    return {level: measures(found) for level, found in met.items()}


def test_words_alone_find_the_page_and_the_paragraph(words, sample_data):
    qrels = read_qrels(sample_data / "retrieval" / "qrels.tsv")
    questions = read_questions(sample_data / "retrieval" / "squad_questions.jsonl.gz")
    assert len(questions) == 6_841, "those that no passage answers are left out"
    found = asked(words, questions[::4], qrels)
    assert found["page"]["recall@1"] >= 0.88
    assert found["page"]["recall@10"] >= 0.97
    assert found["passage"]["recall@1"] >= 0.73
    assert found["passage"]["recall@10"] >= 0.94
    assert found["answer"]["recall@10"] >= 0.91


def test_a_short_question_finds_the_page_it_names(words, sample_data):
    qrels = read_qrels(sample_data / "retrieval" / "qrels.tsv")
    found = asked(words, read_questions(sample_data / "retrieval" / "fanout_questions.jsonl.gz"), qrels)
    assert found["page"]["recall@1"] >= 0.65
    assert found["page"]["recall@10"] >= 0.92


def test_titles_and_redirects_find_their_pages(words, enwiki):
    rows = list(pairs(enwiki, "articles", "page_id", "title", "redirects"))
    named = [(page, title) for page, title, _ in rows[::29]] + [(page, t) for page, _, names in rows for t in names[:1]]
    first = [words.search(name, 1)[0].page_id == page for page, name in named]
    assert sum(first) >= 0.97 * len(first)


@pytest.mark.parametrize(("wiki", "language"), [("jawiki", "ja"), ("frwiki", "fr"), ("dewiki", "de")])
def test_in_other_languages_what_a_page_begins_with_leads_back_to_it(make, tmp_path, wiki, language):
    made = make(wiki, "20260823", shards=1)
    with made.path("articles", 0).open("rb") as articles, made.path("passages", 0).open("rb") as passages:
        build_index(tmp_path, [(articles, passages)], language=language)
    index = LexicalIndex(tmp_path, language)
    pages = list(pairs(made, "articles", "page_id", "text"))[::7]
    start, end = (1, 25) if language == "ja" else (4, 70)  # from the middle of its first word
    found = [page in [match.page_id for match in index.search(text[start:end], 3)] for page, text in pages]
    # the Japanese sample has chemical compounds that all begin with the same words
    assert sum(found) >= (0.88 if language == "ja" else 0.95) * len(found)
