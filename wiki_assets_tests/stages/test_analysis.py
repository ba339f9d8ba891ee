"""A word is found whatever the language, and wherever in an unspaced sentence it stands."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wiki_assets.stages.analysis import Analysis, spread

ENGLISH, GERMAN, JAPANESE, CHINESE, THAI, HINDI = (Analysis(code) for code in ("en", "de", "ja", "zh", "th", "hi"))


@pytest.mark.parametrize(
    ("analysis", "one", "other"),
    [
        (ENGLISH, "volcanoes erupting", "Volcano ERUPTS"),
        (ENGLISH, "résumés", "resume"),
        (GERMAN, "Häuser", "haus"),
        (GERMAN, "Straße", "Strasse"),
        (Analysis("fr"), "chevaux rapides", "cheval rapide"),
        (Analysis("ru"), "кошками", "кошка"),
        (Analysis("es"), "canciones", "cancion"),
        (Analysis("xx"), "Łódź", "łódź"),
        (JAPANESE, "ﾊﾞｲｶﾙ湖", "バイカル湖"),  # half-width kana
        (ENGLISH, "ＮＡＳＡ", "nasa"),
    ],
)
def test_forms_of_one_word_are_one_term(analysis, one, other):
    assert analysis.terms(one) == analysis.terms(other) != []


@pytest.mark.parametrize(
    ("analysis", "word", "text"),
    [
        (JAPANESE, "琵琶湖", "日本で最も大きい湖は琵琶湖である。"),
        (JAPANESE, "バイカル", "シベリアのバイカル湖は世界で最も深い。"),
        (JAPANESE, "茶", "緑茶は健康に良い。"),
        (CHINESE, "光合作用", "植物通过光合作用把阳光变成能量。"),
        (CHINESE, "水", "地球表面大部分是海水。"),
        (THAI, "กรุงเทพ", "เมืองหลวงของประเทศไทยคือกรุงเทพมหานคร"),
        (THAI, "น้ำ", "แม่น้ำเจ้าพระยา"),
        (HINDI, "विज्ञान", "प्रकाश विज्ञान का विषय है"),
        (GERMAN, "東京", "Die Hauptstadt 東京都 liegt am Meer"),
    ],
)
def test_a_word_is_found_inside_a_sentence(analysis, word, text):
    assert set(analysis.terms(word)) <= set(analysis.terms(text))
    assert analysis.terms(word)


def test_a_word_with_vowel_signs_stays_whole():
    assert HINDI.terms("प्रकाश संश्लेषण") == ["प्रकाश", "संश्लेषण"]


def test_neighbouring_characters_are_terms_and_chinese_characters_alone():
    assert spread("東京タワー").split() == ["東京", "京タ", "タワ", "ワー", "東", "京"]
    assert spread("nothing to spread, naïve") == "nothing to spread, naïve"


def test_another_language_finds_nothing():
    assert not set(JAPANESE.terms("琵琶湖")) & set(JAPANESE.terms("シベリアのバイカル"))


@pytest.mark.parametrize(
    ("analysis", "question", "telling"),
    [
        (ENGLISH, "What is the population of Italy?", ["popul", "itali"]),
        (GERMAN, "Welche Stadt ist die Hauptstadt von Bayern?", ["stadt", "hauptstadt", "bay"]),
        (Analysis("fr"), "Quand est né Victor Hugo ?", ["ne", "victor", "hugo"]),
        (Analysis("ru"), "Какая река самая длинная?", ["рек", "сам", "длин"]),
    ],
)
def test_words_that_say_little_are_marked(analysis, question, telling):
    assert [word.term for word in analysis.words(question) if not word.stop] == telling


def test_of_a_question_of_such_words_only_each_one_counts():
    assert [word.stop for word in ENGLISH.words("Who are they?")] == [False] * 3


@pytest.mark.parametrize(
    ("name", "other"),
    [("Lake Baikal", "lake  baikal"), ("São Paulo", "Sao Paulo"), ("Beyoncé", "beyonce"), ("東京タワー", "東京ﾀﾜｰ")],
)
def test_names_are_equal_but_for_case_accents_and_width(name, other):
    assert ENGLISH.name_key(name) == ENGLISH.name_key(other)


words = st.text(st.characters(codec="utf-8", categories=["Lu", "Ll", "Lo", "Nd"]), min_size=1, max_size=8)


@given(
    before=st.lists(words, max_size=3), name=st.lists(words, min_size=1, max_size=3), after=st.lists(words, max_size=3)
)
def test_a_name_is_seen_in_a_question_that_holds_it(before, name, after):
    question = " ".join([*before, *name, *after]) + "?"
    units, own = ENGLISH.name_units(question), ENGLISH.name_units(" ".join(name))
    assert any(units[i : i + len(own)] == own for i in range(len(units) + 1))


@given(st.text(max_size=200))
def test_any_text_has_terms_or_none(text):
    analysis = JAPANESE
    assert all(term and " " not in term for term in analysis.terms(text))
    assert [word.term for word in analysis.words(text)] == analysis.terms(text)
    assert analysis.terms_of_units(analysis.name_units(text)) is not None
