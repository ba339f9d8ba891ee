"""The words of a question are found in a passage, in any script, and nothing is marked twice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wiki_assets.serving.marks import matching_spans, words_alike

words = st.sampled_from(
    ["lake", "Lakes", "the", "café", "Cafe", "深い", "湖", "ทะเลสาบ", "baikal", "x", "1,642", "—", "🏔"]
)
texts = st.lists(words | st.text(max_size=5), max_size=12).map(" ".join)


@given(passage=texts, question=texts)
def test_spans_are_in_order_apart_and_within_the_passage(passage: str, question: str) -> None:
    spans = matching_spans(passage, question, "en")
    ends = [0, *(end for _, end in spans)]
    assert all(end <= start < stop <= len(passage) for end, (start, stop) in zip(ends, spans, strict=False))


@given(passage=texts)
def test_a_passage_has_no_word_of_an_empty_question(passage: str) -> None:
    assert matching_spans(passage, "", "en") == []


@pytest.mark.parametrize(
    ("passage", "question", "language", "marked"),
    [
        ("The deepest lake on Earth.", "Which lakes are the deepest?", "en", ["deepest lake"]),
        ("A café in Zürich.", "cafe zurich", "fr", ["café", "Zürich"]),
        ("Der tiefste See der Erde.", "Was ist der tiefste See?", "de", ["tiefste See"]),
        ("世界で最も深い湖である。", "最も深い湖", "ja", ["最も深い湖"]),
        ("湖很深。", "湖", "zh", ["湖"]),
        ("ทะเลสาบไบคาล", "ทะเลสาบ", "th", ["ทะเลสาบ"]),
        ("Байкал — самое глубокое озеро", "глубокие озера", "ru", ["глубокое озеро"]),
        ("It was the year 1969.", "1969 moon", "en", ["1969"]),
        ("who and what they were", "who and what were they", "en", []),
    ],
)
def test_words_of_the_question_are_marked(passage: str, question: str, language: str, marked: list[str]) -> None:
    assert [passage[start:end] for start, end in matching_spans(passage, question, language)] == marked


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [("lake", "lakes", True), ("holds", "holder", True), ("spit", "spitting", False), ("sea", "seal", False),
     ("international", "internal", False), ("", "abc", False)],
)  # fmt: skip
def test_a_short_ending_makes_no_other_word(one: str, other: str, alike: bool) -> None:
    assert words_alike(one, other) == words_alike(other, one) == alike
