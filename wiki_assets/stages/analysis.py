"""Text to the terms that a lexical index holds, and questions to the same terms, in any language.

Words are folded to their stems where the language has a stemmer. Chinese, Japanese, Thai and their neighbours put no
spaces between words: there every two neighbouring characters are a term (and every Chinese character, which is
often a word), so that a word is found in the middle of a sentence without a dictionary. A wiki in one kind of script
quotes the other kind, so every text goes the same way.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

import tantivy

_STEMMERS = {
    "ar": "arabic", "da": "danish", "de": "german", "el": "greek", "en": "english", "es": "spanish", "fi": "finnish",
    "fr": "french", "hu": "hungarian", "it": "italian", "nb": "norwegian", "nl": "dutch", "nn": "norwegian",
    "no": "norwegian", "pt": "portuguese", "ro": "romanian", "ru": "russian", "sv": "swedish", "ta": "tamil",
    "tr": "turkish",
}  # fmt: skip
_STOPWORDS = frozenset(
    {"da", "de", "en", "es", "fi", "fr", "hu", "it", "nb", "nl", "nn", "no", "pt", "ru", "sv"}
)  # of the library's lists, which lack most words that a question begins with
_QUESTION_WORDS = {
    "de": "wer wen wem wessen wann woher wohin warum weshalb wieso wieviel viele wurde wurden gibt gab",
    "en": (
        "what who whom whose which when where why how did does do done many much was were has have had from its it's "
        "during been being he she his her him them i you we our your me my than so can could would should may might"
    ),
    "es": "quién quiénes cuál cuáles cuándo dónde adónde cómo cuánto cuánta cuántos cuántas fue es son",
    "fr": "quand où combien comment pourquoi quels quelles lequel laquelle lesquels est était sont fut a",
    "it": "chi quale quali quando dove perché quanto quanta quanti quante fu è sono",
    "nl": "wie welke welk wanneer waar waarom hoe hoeveel wat",
    "pt": "quem qual quais quando onde como porque quanto quanta quantos quantas foi é são",
    "ru": "сколько почему зачем откуда куда чей чья чьи какая какие каких каком",
    "sv": "vem vilken vilket vilka när var varför hur mycket många",
}
_MAX_TERM_BYTES = 64

_HAN = "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_KANA = "\u3041-\u3096\u3099-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
_SOUTH_EAST = "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ecf\u0edc-\u0edf\u1000-\u103f\u1050-\u109f\u1780-\u17d3"
_UNSPACED = re.compile(f"[{_HAN}{_KANA}]+|[{_SOUTH_EAST}]+")
_IS_HAN = re.compile(f"[{_HAN}]")


@dataclass(frozen=True)
class Word:
    """One term of a question. `stop` marks a word that says little: an article, a question word."""

    term: str
    stop: bool


class Analysis:
    """How texts of one language become terms. The same for what is indexed and for what is asked.

    Args:
        language: ISO code of the wiki; one without a stemmer gets whole words.
    """

    def __init__(self, language: str) -> None:
        self.language = language
        self._stop_table: dict[str, bool] = {}
        self._question_words = frozenset(_QUESTION_WORDS.get(language, "").split())

    @cached_property
    def analyzer(self) -> tantivy.TextAnalyzer:
        """From text, already `spread`, to terms."""
        builder = _words().filter(tantivy.Filter.remove_long(_MAX_TERM_BYTES)).filter(tantivy.Filter.lowercase())
        fold, stem = tantivy.Filter.ascii_fold(), _STEMMERS.get(self.language)
        if stem is None:
            return builder.filter(fold).build()
        # English borrows words with accents and drops them; other stemmers look at their own language's accents
        order = [fold, tantivy.Filter.stemmer(stem)] if self.language == "en" else [tantivy.Filter.stemmer(stem), fold]
        for each in order:
            builder = builder.filter(each)
        return builder.build()

    def terms(self, text: str) -> list[str]:
        """The terms of a text, in order."""
        return self.analyzer.analyze(spread(text))

    def words(self, question: str) -> list[Word]:
        """The terms of a question, in order; if every word of it says little, none is marked so."""
        found: list[Word] = []
        for surface in _surface().analyze(spread(question)):
            for term in self.analyzer.analyze(surface):
                found.append(Word(term, self._says_little(surface)))
        if all(word.stop for word in found):
            return [Word(word.term, False) for word in found]
        return found

    def name_units(self, text: str) -> list[str]:
        """What a name is compared by: the terms of its words, and the single characters of unspaced scripts."""
        text, units, at = _normal(text), list[str](), 0
        for run in _UNSPACED.finditer(text):
            units += self.analyzer.analyze(text[at : run.start()])
            units += run[0]
            at = run.end()
        return units + self.analyzer.analyze(text[at:])

    def terms_of_units(self, units: Sequence[str]) -> list[str]:
        """The terms that a run of `name_units` has in a text."""
        terms: list[str] = []
        characters = ""
        for unit in [*units, ""]:
            if unit and _UNSPACED.fullmatch(unit):
                characters += unit
                continue
            terms += _grams(characters).split() if characters else []
            terms += [unit] if unit else []
            characters = ""
        return terms

    def name_key(self, name: str) -> str:
        """A title or redirect as the index holds it: equal for names that differ in case, accents or endings."""
        return " ".join(self.name_units(name))

    def _says_little(self, surface: str) -> bool:
        if surface not in self._stop_table:
            if len(self._stop_table) > 50_000:
                self._stop_table = {}
            listed = self.language in _STOPWORDS and not _stop_filter(_STEMMERS[self.language]).analyze(surface)
            self._stop_table[surface] = listed or surface in self._question_words
        return self._stop_table[surface]


def _words() -> tantivy.TextAnalyzerBuilder:
    # what \w is in Unicode, vowel signs included, so that Hindi words stay whole; but no underscore
    return tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.regex(r"[\w--_]+"))


@lru_cache(maxsize=1)
def _surface() -> tantivy.TextAnalyzer:
    return _words().filter(tantivy.Filter.remove_long(_MAX_TERM_BYTES)).filter(tantivy.Filter.lowercase()).build()


@lru_cache(maxsize=32)
def _stop_filter(language: str) -> tantivy.TextAnalyzer:
    return _words().filter(tantivy.Filter.stopword(language)).build()


def _normal(text: str) -> str:
    """Compatibility forms made one: wide letters, half-width kana, ligatures, accents apart from their letter."""
    return text if text.isascii() else unicodedata.normalize("NFKC", text)


def spread(text: str) -> str:
    """A text in which every term stands between spaces: its unspaced runs are their neighbouring pairs."""
    return text if text.isascii() else _UNSPACED.sub(lambda run: f" {_grams(run[0])} ", _normal(text))


def _grams(run: str) -> str:
    """`東京都` → `東京 京都 東 京 都`; of kana, Thai and the like pairs only, as one of their letters says nothing."""
    if len(run) == 1:
        return run
    return " ".join([*(a + b for a, b in pairwise(run)), *_IS_HAN.findall(run)])
