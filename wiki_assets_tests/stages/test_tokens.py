"""Token ids are tiktoken's, whatever the text; what a shard's files hold is what was counted."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from wiki_assets.keys import Snapshot
from wiki_assets.stages.dump import Document
from wiki_assets.stages.tokens import PASSAGES_SCHEMA, TOKENS_SCHEMA, encode_page
from wiki_assets_tests.pipeline import Made, dump_files, make_articles, make_tokens, merge_documents

TINYWIKI = Path(__file__).parent.parent / "tinywiki" / "dumps"
SNAPSHOT = Snapshot("tinywiki", "20250105")
SPECIAL = ["<|endoftext|>", "<|fim_prefix|>", "<|endofprompt|> <|endoftext|>", "a<|endoftext|>b"]
MANY = 1_000_000
POISON = {
    "spaces": " " * MANY + "x",
    "tabs": "\t" * MANY + "x",
    "no-break spaces": "\u00a0" * MANY + "x",
    "blanks of all kinds": " \t\u3000\n" * (MANY // 4) + "x",
    "blanks in the middle": "Before." + " " * MANY + "After.",
    "line ends": "x" + "\n" * MANY,
    "a long word": "a" * 100_000,
    "combining marks": "e" + "\u0301" * MANY,
    "a family of emoji": "👩‍👩‍👧‍👦" * 50_000,
    "Han without end": "漢" * 200_000,
    "right to left": "\u202eשלום مرحبا " * 20_000,
    "NUL": "a\0b" * 10_000,
    "digits": "1234567890" * 50_000,
    "special tokens": "<|endoftext|>" * 20_000,
}
HUGE = {
    "a word of 5 M letters": "a" * (5 * MANY),
    "10 MB": "The quick brown fox jumps over the lazy dog. " * 230_000,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory, encoding, tokenizer) -> Made:
    """Tinywiki, tokenized."""
    files = dump_files(TINYWIKI, "tinywiki", "20250105")
    articles = make_articles(files, SNAPSHOT, tmp_path_factory.mktemp("made"), shards=2)
    return make_tokens(articles, encoding, tokenizer)


def texts_of(made: Made) -> dict[int, str]:
    articles = made.table("articles")
    return dict(zip(articles["page_id"].to_pylist(), articles["text"].to_pylist(), strict=True))


# Ids


def test_the_ids_of_tinywiki_are_those_of_tiktoken(made, encoding):
    texts = texts_of(made)
    for row in made.table("tokens").to_pylist():
        assert row["token_ids"] == encoding.encode_ordinary(texts[row["page_id"]])
        assert row["n_tokens"] == len(row["token_ids"])


@pytest.mark.parametrize("text", SPECIAL)
def test_special_tokens_are_plain_text(encoding, text):
    ids, was_split = encode_page(text, encoding)
    assert ids.tolist() == encoding.encode_ordinary(text)
    assert encoding.decode(ids.tolist()) == text
    assert not was_split
    assert not set(ids.tolist()) & {encoding.encode_single_token(name) for name in encoding.special_tokens_set}


any_text = st.text(st.characters(codec="utf-8")) | st.text("<|endoftxfimpr_> ")
woven = st.lists(st.sampled_from([*SPECIAL, " ", "\n"])).map("".join)


@given(text=any_text | woven)
@settings(max_examples=300)
def test_the_ids_of_any_text_are_those_of_tiktoken(encoding, text):
    ids, was_split = encode_page(text, encoding)
    assert ids.tolist() == encoding.encode_ordinary(text)
    assert ids.dtype == np.uint32
    assert not was_split


@pytest.mark.parametrize("name", POISON)
def test_no_text_is_too_odd_to_be_encoded(encoding, name):
    ids, was_split = encode_page(POISON[name], encoding)
    assert encoding.decode(ids.tolist()) == POISON[name]
    assert was_split or ids.tolist() == encoding.encode_ordinary(POISON[name])


def test_where_tiktoken_gives_up_the_text_is_cut_and_the_cut_is_told(encoding):
    assert encode_page(POISON["spaces"], encoding)[1]
    assert not encode_page(" " * 90_000 + "x", encoding)[1]


def test_the_encoding_is_the_one_that_the_world_knows(encoding):
    assert encoding.encode_ordinary("hello world") == [15339, 1917]
    assert (encoding.name, encoding.n_vocab) == ("cl100k_base", 100_277)
    assert isinstance(encoding, tiktoken.Encoding)


# Shards


def test_the_ledger_counts_what_lies_there(made):
    tokens, passages, texts = made.table("tokens"), made.table("passages"), texts_of(made)
    assert made.total("pages") == len(tokens) == len(texts) == 53
    assert made.total("tokens") == sum(tokens["n_tokens"].to_pylist())
    assert made.total("passages") == len(passages)
    assert made.total("word_pieces") == sum(passages["n_word_pieces"].to_pylist())
    assert made.total("text_chars") == made.total("covered_chars") == sum(map(len, texts.values()))
    assert made.total("truncated") == made.total("split_texts") == 0


def test_files_have_the_columns_they_promise(made):
    assert made.table("tokens").schema.equals(TOKENS_SCHEMA)
    assert made.table("passages").schema.equals(PASSAGES_SCHEMA)
    assert made.table("tokens")["page_id"].to_pylist() == made.table("articles")["page_id"].to_pylist()


def test_passages_of_a_page_are_numbered_and_tile_its_text(made):
    ends: dict[int, tuple[int, int]] = {}
    for row in made.table("passages").to_pylist():
        number, start = ends.get(row["page_id"], (0, 0))
        assert (row["ordinal"], row["start"]) == (number, start)
        assert row["n_word_pieces"] == len(row["input_ids"])
        ends[row["page_id"]] = number + 1, row["end"]
    assert {page_id: end for page_id, (_, end) in ends.items()} == {i: len(text) for i, text in texts_of(made).items()}


def test_the_same_shard_gives_the_same_bytes(made, tmp_path, encoding, tokenizer):
    articles = make_articles(dump_files(TINYWIKI, "tinywiki", "20250105"), SNAPSHOT, tmp_path, shards=2)
    again = make_tokens(articles, encoding, tokenizer)
    assert (again.bytes("tokens"), again.bytes("passages")) == (made.bytes("tokens"), made.bytes("passages"))


def test_a_shard_without_pages_has_files_without_rows(tmp_path, encoding, tokenizer):
    empty = make_tokens(merge_documents([[]], SNAPSHOT, tmp_path), encoding, tokenizer)
    assert (len(empty.table("tokens")), len(empty.table("passages"))) == (0, 0)
    assert empty.total("pages") == empty.total("tokens") == 0


def test_odd_texts_in_a_shard_cost_their_neighbours_nothing(tmp_path, encoding, tokenizer):
    texts = {}
    for place, poison in enumerate([*POISON.values(), *HUGE.values()]):
        texts |= {2 * place + 1: poison, 2 * place + 2: f"An ordinary page, number {place}."}
    documents = [Document(page_id=i, title=f"Page {i}", namespace=0, text=text, version=1) for i, text in texts.items()]
    made = make_tokens(merge_documents([documents], SNAPSHOT, tmp_path), encoding, tokenizer)
    tokens = pq.read_table(made.path("tokens", 0))
    assert tokens["page_id"].to_pylist() == list(texts)
    for page_id, ids in zip(tokens["page_id"].to_pylist(), tokens["token_ids"], strict=True):
        assert encoding.decode(ids.values.to_pylist()) == texts[page_id]
    assert made.total("covered_chars") == made.total("text_chars") == sum(map(len, texts.values()))
    assert made.total("truncated") == 0
    assert max(made.table("passages")["n_word_pieces"].to_pylist()) <= tokenizer.max_pieces
    assert made.total("split_texts") >= 4


@pytest.mark.realdata
def test_tokens_of_real_text_are_small(sample_data, tmp_path, encoding, tokenizer):
    files = dump_files(sample_data / "dumps", "testwiki", "20260823")
    made = make_articles(files, Snapshot("testwiki", "20260823"), tmp_path, shards=1)
    make_tokens(made, encoding, tokenizer)
    assert made.path("tokens", 0).stat().st_size <= 1.75 * made.total("tokens")
