"""Which words of a passage are those of the question, to be marked for the eye.

A passage found by its meaning need not hold any. No stemmer, since a wiki may have any language: two words are
alike if they differ in a short ending only; where words are not set apart by spaces, pairs of characters count.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence

_WORD = re.compile(r"\w+")
_NO_SPACES = re.compile(  # scripts that do not set words apart: Thai, Lao, Burmese, Khmer, kana, Han
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+"
)
_STEM, _ENDING = 4, 3  # characters that two words share at least, and that one has more at most
_TOO_COMMON = {
    language: frozenset(words.split())
    for language, words in {
        "de": "aber als am an auf aus bei bin bis das dass dem den der des die durch ein eine einem einen einer es für "
        "hat ich im in ist kann man mit nach nicht oder sich sie sind so um und uns von vom vor wann war warum was "
        "welche welcher welches wenn wer werden wie wird wo zu zum zur über",
        "en": "a about an and any are as at be been by can could did do does for from had has have how i if in into is "
        "it its many me much of on or s some than that the their them there these they this those to was were what "
        "when where which who whom whose why will with would you your",
        "es": "a al como con cual cuando cuál cuándo cómo de del donde dónde el ella en era es está fue ha la las lo "
        "los no o para pero por que quien quién qué se ser si son su sus un una y",
        "fr": "a au aux avec ce cette combien comment d dans de des du elle en est et fut il ils je l la le les leur "
        "mais n ne on ou où par pas pour pourquoi qu quand que quel quelle quels qui quoi sa se ses son sont sur un "
        "une à été était",
        "it": "a al che chi come con cosa da dal dei del della di dove e era gli i il in la le lo ma nel nella non o "
        "per perché quale quali quando quanto si sono su un una uno è",
        "nl": "aan als bij dat de den der die dit door een en er het hoe hoeveel ik in is kan maar met naar niet of om "
        "onder op over te tot uit van voor waar waarom wanneer was wat welk welke werd wie wordt zijn",
        "pt": "a ao aos as com como da das de do dos e ela ele em era foi mas na nas no nos não o onde os ou para por "
        "porque quais qual quando que quem se ser seu sua são um uma à é",
        "ru": "а без бы был была были было в во все где для до его ее если за и из или к как какая какие какой когда "
        "который кто ли на не но о об от по почему при с со сколько так такое то у что чем это",
    }.items()
}


def words_alike(one: str, other: str) -> bool:
    """Whether two folded words are the same but for an ending of up to three letters."""
    if one == other:
        return True
    shorter, longer = sorted((one, other), key=len)
    shared = next((i for i, (a, b) in enumerate(zip(shorter, longer, strict=False)) if a != b), len(shorter))
    return shared >= _STEM and len(longer) - shared <= _ENDING


def matching_spans(passage: str, question: str, language: str) -> list[tuple[int, int]]:
    """Where the passage has words of the question: start and end of each, in order, none overlapping.

    Args:
        passage: the text that is shown.
        question: what was asked.
        language: ISO code of the passage's language, whose commonest words are never marked.
    """
    common = _TOO_COMMON.get(language, frozenset())
    asked = [word.casefold() for word in _WORD.findall(question)]
    pairs = {pair for word in asked for run in _NO_SPACES.findall(word) for pair in _pairs(run)}
    words = {_folded(word) for word in asked if word not in common and not _NO_SPACES.search(word)}
    spans: list[tuple[int, int]] = []
    for match in _WORD.finditer(passage):
        if _NO_SPACES.search(match[0]):
            spans += [(match.start() + a, match.start() + b) for a, b in _found_pairs(match[0], pairs)]
        elif any(words_alike(word, folded) for folded in (_folded(match[0].casefold()),) for word in words):
            spans.append(match.span())
    return _joined(spans, passage)


def _folded(word: str) -> str:
    """Without accents: a question is often typed without them."""
    if word.isascii():
        return word
    bare = "".join(c for c in unicodedata.normalize("NFKD", word) if not unicodedata.combining(c))
    return bare or word


def _pairs(run: str) -> Iterator[str]:
    if len(run) == 1:
        yield run
    yield from (run[i : i + 2] for i in range(len(run) - 1))


def _found_pairs(text: str, pairs: set[str]) -> Iterator[tuple[int, int]]:
    for i in range(len(text)):
        if (pair := text[i : i + 2]) in pairs:
            yield i, i + len(pair)
        elif text[i] in pairs:
            yield i, i + 1


def _joined(spans: Sequence[tuple[int, int]], text: str) -> list[tuple[int, int]]:
    """Neighbours with nothing but blanks between them are one mark."""
    joined: list[tuple[int, int]] = []
    for start, end in spans:
        if joined and not text[joined[-1][1] : start].strip():
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined
