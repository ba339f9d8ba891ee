"""The sample of real dumps through split, merge and tokenize: nothing is lost, and layouts agree."""

import numpy as np
import pyarrow.compute as pc
import pytest

from wiki_assets.keys import Snapshot, shards_of
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
