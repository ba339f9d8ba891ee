"""Passages tile a page, and the model reads each of them whole."""

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from wiki_assets.keys import Snapshot
from wiki_assets.stages.passages import Passage, cut_page, sentence_spans
from wiki_assets_tests.pipeline import dump_files, make_articles

TINYWIKI = Path(__file__).parent.parent / "tinywiki" / "dumps"
LANGUAGES = ["en", "ja", "zh", "th", "ar", "de", "ltg", "", "no such language"]
fragments = st.sampled_from(
    ["The llama is an animal. ", "It spits, sometimes! ", "Dr. Smith (b. 1879) went to Washington, D.C. ", "e.g. ",
     "3.14 ", "富士山は日本の山である。", "標高は3776メートル。", "长江是中国的河流。",
     "الماء سائل شفاف. ", "ما هذا؟ ", "नदी बहती है। ",
     "ประเทศไทยเป็นประเทศในเอเชียตะวันออกเฉียงใต้", "한국어 문장이다. ", " ", "   ", "\n\n", "\t", "\u00a0", "\u3000",
     "\u200b", "\u2028", "\u0301", "\0", ". . . ", "...", "??!!", "- " * 40, "x" * 120, "x" * 2_500, "漢" * 400,
     "👩‍👩‍👧‍👦" * 30, "e" + "\u0301" * 200, "a.b.c.d " * 60, " " * 500, "[SEP] [CLS] ", "<|endoftext|>",
     "1 2 3 4 5 6 7 8 9 0 " * 30]
)  # fmt: skip
texts = st.lists(fragments | st.text(st.characters(codec="utf-8"), max_size=60), min_size=1, max_size=25).map("".join)
pages = texts.filter(lambda text: text and not text.isspace())
long_titles = ["A " * 300, "x" * 5_000, "Title of very many words, " * 20, "漢" * 300]
titles = st.text(st.characters(codec="utf-8"), min_size=1, max_size=60) | st.sampled_from(
    ["Llama", "富士山", " ", ":", *long_titles]
)


@pytest.fixture(scope="module")
def library(model) -> Tokenizer:
    """The model's tokenizer as its authors run it."""
    tokenizer = Tokenizer.from_file(str(model.tokenizer_file))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


@pytest.fixture(scope="module")
def tinywiki(tmp_path_factory) -> list[dict]:
    """Tinywiki's pages."""
    files = dump_files(TINYWIKI, "tinywiki", "20240101")
    return (
        make_articles(files, Snapshot("tinywiki", "20240101"), tmp_path_factory.mktemp("pages"), shards=1)
        .table("articles")
        .to_pylist()
    )


@pytest.fixture(scope="module")
def cut(tokenizer):
    def cut(
        text: str, title: str = "Llama", language: str = "en", page_id: int = 7, word_pieces: int = 128, **options
    ) -> list[Passage]:
        return cut_page(page_id, title, text, language, tokenizer, word_pieces=word_pieces, **options)

    return cut


def prefixes(title: str) -> list[str]:
    """What may stand before a passage: the title, or its beginning, or nothing."""
    words = title.split(" ")
    return [*(" ".join(words[:n]) + ": " for n in range(len(words), 0, -1)), ""]


# Sentences


@given(text=texts, language=st.sampled_from(LANGUAGES))
@settings(max_examples=200)
def test_sentences_tile_the_text(text, language):
    spans = sentence_spans(text, language)
    assert "".join(text[start:end] for start, end in spans) == text
    assert all(start < end for start, end in spans)


def test_sentences_end_where_a_reader_says():
    text = "Llamas spit. Dr. Smith saw one in 1879. Why?"
    assert [text[a:b].strip() for a, b in sentence_spans(text, "en")] == [
        "Llamas spit.",
        "Dr. Smith saw one in 1879.",
        "Why?",
    ]
    text = "富士山は山である。高い。"
    assert [text[a:b] for a, b in sentence_spans(text, "ja")] == ["富士山は山である。", "高い。"]


# Passages


@given(
    text=pages,
    title=titles,
    language=st.sampled_from(LANGUAGES),
    word_pieces=st.sampled_from([16, 32, 128, 256, 8_192]),
)
@example("x", "x" * 5_000, "en", 16)
@example(" " * 300 + "x" + " " * 300, "Llama", "en", 128)
@example("\u200b", "Llama", "en", 128)
@example("\0", "Llama", "en", 128)
@example("wmna-cdfxdqdzgzriwchnsjxrhtmnbqvyfdyxvucxdb,uwpifwzn,ztpojqx", "T", "en", 16)  # joined, two parts outgrow 16
@settings(max_examples=250)
def test_passages_tile_the_page_and_the_model_reads_each_whole(cut, library, text, title, language, word_pieces):
    passages = cut(text, title, language, word_pieces=word_pieces)
    assert "".join(text[p.start : p.end] for p in passages) == text
    assert [p.ordinal for p in passages] == list(range(len(passages)))
    assert all(p.start < p.end for p in passages)
    assert len({p.passage_id for p in passages}) == len(passages)
    prefix = next(  # the same one before every passage
        before
        for before in prefixes(title)
        if library.encode(before + text[: passages[0].end].strip()).ids == passages[0].input_ids
    )
    for p in passages:
        read = library.encode(prefix + text[p.start : p.end].strip()).ids
        assert p.input_ids == read
        assert len(read) <= min(word_pieces, 256)
        assert (read[0], read[-1]) == (101, 102)


@given(text=pages, language=st.sampled_from(LANGUAGES))
@settings(max_examples=60)
def test_a_page_is_cut_the_same_way_again(cut, text, language):
    assert cut(text, language=language) == cut(text, language=language)


@given(text=pages)
@settings(max_examples=60)
def test_no_passage_is_blank(cut, text):
    assert all(text[p.start : p.end].strip() for p in cut(text))


@given(text=pages)
@settings(max_examples=60)
def test_ids_name_the_page_and_what_is_read(cut, text):
    here, there, renamed = cut(text), cut(text, page_id=8), cut(text, title="Alpaca")
    assert all(p.passage_id.startswith("7-") for p in here)
    assert [p.text_hash for p in there] == [p.text_hash for p in here]
    assert not {p.passage_id for p in here} & {p.passage_id for p in there}
    assert not {p.text_hash for p in here} & {p.text_hash for p in renamed}


@pytest.mark.parametrize("text", ["x", ".", "漢", "\u0301", "👍", "\0", "  x  ", "\n\nx", "x" + " " * 5_000])
def test_a_page_of_one_letter_is_one_passage(cut, text):
    [passage] = cut(text)
    assert (passage.start, passage.end) == (0, len(text))
    assert passage.input_ids[0] == 101


def test_words_that_are_said_twice_are_two_passages(cut):
    passages = cut("The llama is an animal that lives in the Andes and spits. " * 60, word_pieces=32)
    hashes = [p.text_hash for p in passages]
    assert len(set(hashes)) < len(hashes)
    assert len({p.passage_id for p in passages}) == len(passages)


def test_an_edit_leaves_the_other_passages_alone(cut, tinywiki):
    n_edited = 0
    for page in tinywiki:
        if page["language"] != "en":
            continue
        before = cut(page["text"], page["title"])
        edited = before[len(before) // 2]
        span = page["text"][edited.start : edited.end]
        if " the " not in span:
            continue
        text = page["text"][: edited.start] + span.replace(" the ", " its ", 1) + page["text"][edited.end :]
        after = cut(text, page["title"])
        ids = [p.passage_id for p in before]
        ids[edited.ordinal] = after[edited.ordinal].passage_id
        assert [p.passage_id for p in after] == ids
        assert after[edited.ordinal].passage_id != edited.passage_id
        n_edited += 1
    assert n_edited > 20


def test_a_passage_that_moves_keeps_its_id(cut):
    short, long = cut("Llamas spit."), cut("Llamas spit." + " " * 40)
    assert [p.passage_id for p in short] == [p.passage_id for p in long]


def test_passages_of_a_page_are_of_about_equal_size(cut, tinywiki):
    for page in tinywiki:
        sizes = [len(p.input_ids) for p in cut(page["text"], page["title"], page["language"])]
        assert len(sizes) == 1 or max(sizes) <= 128
        assert sum(size < 32 for size in sizes) <= 1 + len(sizes) // 5, page["title"]


def test_only_a_sentence_that_is_too_long_is_cut(cut, tinywiki, tokenizer):
    for page in tinywiki:
        text = page["text"]
        sentences = sentence_spans(text, page["language"])
        for p in cut(text, page["title"], page["language"]):
            inside = [text[start:end] for start, end in sentences if start < p.end < end]
            assert all(len(tokenizer.ids(sentence)) > 90 for sentence in inside)
            assert not inside or page["language"] in ("th", "ja", "zh") or text[p.end - 1] == " "


def test_the_title_is_read_with_every_passage(cut, library):
    passages = cut("The animal lives in the Andes and spits. " * 40, "Llama")
    assert len(passages) > 3
    assert {tuple(p.input_ids[:3]) for p in passages} == {tuple(library.encode("Llama:").ids[:3])}


@pytest.mark.parametrize("title", ["x" * 5_000, "word " * 500, "漢" * 500, "a" * 90 + " " + "b" * 90])
def test_a_long_title_takes_at_most_a_quarter(cut, library, title):
    text = "The animal lives in the Andes and spits. " * 40
    for p in cut(text, title):
        assert len(p.input_ids) - len(library.encode(text[p.start : p.end].strip()).ids) <= 32


def test_a_prompt_stands_before_the_title(cut, library):
    [passage] = cut("It spits.", "Llama", prompt="passage: ")
    assert passage.input_ids == library.encode("passage: Llama: It spits.").ids
