"""Word by word gives the word pieces that the model's own tokenizer gives, for any text."""

import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from wiki_assets.keys import Snapshot
from wiki_assets.stages.word_pieces import WordPieceTokenizer
from wiki_assets_tests.pipeline import dump_files, make_articles

TINYWIKI = Path(__file__).parent.parent / "tinywiki" / "dumps"
unicode = st.text(st.characters(codec="utf-8"))
pieces = st.sampled_from(
    [" ", "  ", "\t", "\n", "\u00a0", "\u3000", "\u200b", "\u00ad", "\0", "\ufffd", ".", ",", "'", '"', ")", "...",
     "?!", "'s", "-", "_", "$", "^", "`", "[SEP]", "[CLS]", "[MASK]", "[PAD]", "[UNK]", "[sep]", "[", "]", "##s", "#",
     "unaffable", "Straße", "ΟΔΟΣ", "İstanbul", "naïve", "\u0301", "e\u0301", "ﬁ", "漢字", "日本語", "สวัสดี", "مرحبا",
     "नमस्ते", "한국어", "👩‍👩‍👧‍👦", "½", "x" * 99, "x" * 100, "x" * 101, "é" * 100, "A", "a", "7", "1879–1955"]
)  # fmt: skip
woven = st.lists(pieces | unicode, max_size=30).map("".join)


@pytest.fixture(scope="module")
def library(model) -> Tokenizer:
    """The model's tokenizer as its authors run it."""
    tokenizer = Tokenizer.from_file(str(model.tokenizer_file))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


@given(text=woven)
@example("[SEP]")
@example("a[SEP]b [CLS]. [MASK]")
@example('He said (in 1879): "So?!"...')
@example(" .  . ")
@example("x" * 101 + ".")
@settings(max_examples=1_000)
def test_ids_are_those_of_the_library(tokenizer, library, text):
    assert tokenizer.ids(text) == library.encode(text, add_special_tokens=False).ids


@given(text=unicode)
@settings(max_examples=300)
def test_what_the_model_reads_is_what_the_library_would_give_it(tokenizer, library, text):
    assert tokenizer.wrapped(tokenizer.ids(text)) == library.encode(text).ids


@pytest.mark.parametrize("character", [chr(n) for n in range(0x2000, 0x2070)], ids=ascii)
def test_odd_spaces_and_format_characters_are_read_as_the_library_does(tokenizer, library, character):
    for text in (character, f"a{character}b", f"a {character} b.", f"a.{character}", f"{character}."):
        assert tokenizer.ids(text) == library.encode(text, add_special_tokens=False).ids


def test_ids_of_tinywiki_are_those_of_the_library(tokenizer, library, tmp_path):
    files = dump_files(TINYWIKI, "tinywiki", "20240101")
    made = make_articles(files, Snapshot("tinywiki", "20240101"), tmp_path, shards=1)
    for text in made.table("articles")["text"].to_pylist():
        assert tokenizer.ids(text) == library.encode(text, add_special_tokens=False).ids


@pytest.mark.realdata
@pytest.mark.parametrize("wiki", ["testwiki", "jawiki", "frwiki", "ltgwiki"])
def test_ids_of_real_text_are_those_of_the_library(tokenizer, library, sample_data, tmp_path, wiki):
    files = dump_files(sample_data / "dumps", wiki, "20260823")
    texts = make_articles(files, Snapshot(wiki, "20260823"), tmp_path, shards=1).table("articles")["text"].to_pylist()
    for text in texts[:: len(texts) // 100 + 1]:
        assert tokenizer.ids(text) == library.encode(text, add_special_tokens=False).ids


def test_a_full_table_of_words_changes_nothing(model, library, monkeypatch):
    monkeypatch.setattr("wiki_assets.stages.word_pieces._MAX_WORDS", 3)
    small = WordPieceTokenizer(model.tokenizer_file, max_pieces=256)
    text = "one two three, four five: six seven (one) two?"
    for _ in range(2):
        assert small.ids(text) == library.encode(text, add_special_tokens=False).ids


def test_the_model_leaves_room_beside_the_special_pieces(tokenizer):
    assert tokenizer.special == ([101], [102])
    assert tokenizer.room == 254
    assert tokenizer.wrapped([7]) == [101, 7, 102]
    assert tokenizer.unknown == 100


# Other families of tokenizers


def save(tokenizer: Tokenizer, folder: Path) -> WordPieceTokenizer:
    tokenizer.save(str(folder / "tokenizer.json"))
    return WordPieceTokenizer(folder / "tokenizer.json", max_pieces=64)


def test_a_tokenizer_of_another_family_is_used_as_it_is(tmp_path):
    characters = {letter: n for n, letter in enumerate("[▁abcdefghij")}
    whole = Tokenizer(models.BPE(vocab=characters, merges=[]))
    whole.pre_tokenizer = pre_tokenizers.Metaspace()
    assert save(whole, tmp_path).ids("a b  c") == whole.encode("a b  c", add_special_tokens=False).ids
    assert save(whole, tmp_path).unknown is None


def test_an_added_token_with_a_space_is_found(tmp_path, model):
    spec = json.loads(model.tokenizer_file.read_text("utf-8"))
    whole = Tokenizer.from_str(json.dumps(spec))
    whole.no_padding()
    whole.no_truncation()
    whole.add_tokens(["new york"])
    ours = save(whole, tmp_path)
    assert ours.ids("in new york city") == whole.encode("in new york city", add_special_tokens=False).ids


def test_bert_with_another_normalizer_is_used_as_it_is(tmp_path, model):
    whole = Tokenizer.from_file(str(model.tokenizer_file))
    whole.normalizer = normalizers.Sequence([normalizers.Replace("a b", "c"), normalizers.BertNormalizer()])
    whole.no_padding()
    whole.no_truncation()
    assert save(whole, tmp_path).ids("a b a b") == whole.encode("a b a b", add_special_tokens=False).ids
