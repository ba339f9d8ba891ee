"""Pages to passages: spans of a page that the embedding model reads whole, each with one vector.

Cuts fall between sentences; a sentence that is too long is cut between words, and a word that is too long (there
are languages without spaces) between characters. The spans of a page tile its text, so nothing goes unread, and
the model's own tokenizer measures every passage with its title in front, so nothing is truncated.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from wiki_assets.errors import LedgerBroken
from wiki_assets.stages.word_pieces import WordPieceTokenizer

CODE_VERSION = "passages-1"
_CHARS_PER_PIECE = 12  # English has about 4.7; bounds a passage that the model has few pieces for


@dataclass(frozen=True, slots=True)
class Passage:
    """A span of a page, as the model reads it.

    `passage_id` depends on the page and on what the model reads, not on where in the page it stands, so an edit
    elsewhere leaves it alone. `start` and `end` count Unicode characters of the page's text.
    """

    passage_id: str
    ordinal: int
    start: int
    end: int
    text_hash: str
    input_ids: list[int]


Unit = tuple[int, int, list[int]]  # start, end, word pieces: what is never cut again


@lru_cache(maxsize=1)
def _segmenter() -> Callable[[str, str], list[dict[str, Any]]]:
    import sentencex

    return sentencex.get_sentence_boundaries  # type: ignore[attr-defined]  # written in Rust


def sentence_spans(text: str, language: str) -> list[tuple[int, int]]:
    """Where the sentences of a text stand, in characters; the spans tile the text.

    Args:
        text: one page's text.
        language: ISO code; the library falls back to a related language, then to English.
    """
    spans = [(b["start_index"], b["end_index"]) for b in _segmenter()(language, text)]
    tiled = [end for _, end in spans][:-1] == [start for start, _ in spans][1:]
    if not spans or not tiled or spans[0][0] != 0 or spans[-1][1] != len(text):
        return [(0, len(text))] if text else []
    return [span for span in spans if span[0] < span[1]]


def cut_page(
    page_id: int,
    title: str,
    text: str,
    language: str,
    tokenizer: WordPieceTokenizer,
    *,
    word_pieces: int,
    prompt: str = "",
) -> list[Passage]:
    """Cut a page into passages that tile its text.

    Args:
        page_id: of the page.
        title: goes in front of every passage, shortened if it would take over a quarter of it.
        text: the page's text, not blank.
        language: ISO code, for finding sentences.
        tokenizer: the embedding model's own.
        word_pieces: a passage's size, title and special pieces included; at most what the model reads.
        prompt: what the model wants before every document, such as `passage: `.

    Returns:
        Passages in the order of the text; their spans cover it from 0 to its length without gap or overlap.

    Raises:
        LedgerBroken: if a passage outgrew the model or characters went missing; neither can happen.
    """
    room = min(word_pieces, tokenizer.max_pieces) - (tokenizer.max_pieces - tokenizer.room)
    prefix, prefix_ids = _prefix(title, prompt, tokenizer, room)
    room = max(1, room - len(prefix_ids))
    max_chars = room * _CHARS_PER_PIECE
    units: list[Unit] = []
    for start, end in sentence_spans(text, language):
        _add_units(units, text, start, end, room, max_chars, tokenizer)
    passages: list[Passage] = []
    seen: Counter[str] = Counter()
    limit = min(word_pieces, tokenizer.max_pieces)
    reader = _Reader(text, prefix, prefix_ids, tokenizer, limit)
    for packed in _pack(units, text, room, max_chars):
        for a, b, ids in reader.read(packed):
            text_hash = hashlib.blake2b((prefix + text[a:b].strip()).encode(), digest_size=16).hexdigest()
            seen[text_hash] += 1
            again = f"-{seen[text_hash]}" if seen[text_hash] > 1 else ""
            passages.append(Passage(f"{page_id}-{text_hash[:16]}{again}", len(passages), a, b, text_hash, ids))
    _check_cover(page_id, text, passages, limit)
    return passages


def _prefix(title: str, prompt: str, tokenizer: WordPieceTokenizer, room: int) -> tuple[str, list[int]]:
    """The title as it stands before a passage, cut between words to a quarter of the room; and its word pieces."""
    words = title.split(" ")
    while words:
        prefix = prompt + " ".join(words) + ": "
        ids = tokenizer.ids(prefix)
        if len(ids) <= max(4, room // 4):
            return prefix, ids
        words.pop()
    return prompt, tokenizer.ids(prompt)


def _add_units(
    units: list[Unit], text: str, start: int, end: int, room: int, max_chars: int, tokenizer: WordPieceTokenizer
) -> None:
    """Append the span as one unit, or cut it until every part fits."""
    while end - start > max_chars:
        space = text.rfind(" ", start + max_chars // 2, start + max_chars)
        cut = space + 1 if space >= 0 else start + max_chars
        _add_units(units, text, start, cut, room, max_chars, tokenizer)
        start = cut
    ids = tokenizer.ids(text[start:end])
    if len(ids) <= room or end - start == 1:
        units.append((start, end, ids))
        return
    middle = _middle(text, start, end)
    _add_units(units, text, start, middle, room, max_chars, tokenizer)
    _add_units(units, text, middle, end, room, max_chars, tokenizer)


def _middle(text: str, start: int, end: int) -> int:
    """Where to cut a span in two: after the space nearest to its middle, else in the middle."""
    middle = (start + end) // 2
    before, after = text.rfind(" ", start, middle), text.find(" ", middle, end - 1)
    around = [at + 1 for at in (before, after) if at > start]
    return min(around, key=lambda at: abs(at - middle)) if around else middle


def _pack(units: Sequence[Unit], text: str, room: int, max_chars: int) -> list[list[Unit]]:
    """Put neighbouring units together into passages of about equal size, none over the room."""
    total = sum(len(ids) for _, _, ids in units)
    aim = total / -(-total // room) if total else room
    packed: list[list[Unit]] = []
    current: list[Unit] = []
    size = 0
    for unit in units:
        begin, end, ids = unit
        start = current[0][0] if current else begin
        full = size + len(ids) > room or end - start > max_chars or size >= aim
        if full and current and not text[begin:end].isspace() and not text[start:begin].isspace():
            packed.append(current)
            current, size = [], 0
        current.append(unit)
        size += len(ids)
    return [*packed, current] if current else packed


class _Reader:
    """What the model reads of a passage: the title and the passage's text, as one string."""

    def __init__(
        self, text: str, prefix: str, prefix_ids: list[int], tokenizer: WordPieceTokenizer, limit: int
    ) -> None:
        self._text, self._prefix, self._prefix_ids = text, prefix, prefix_ids
        self._tokenizer, self._limit = tokenizer, limit

    def read(self, units: Sequence[Unit]) -> list[tuple[int, int, list[int]]]:
        """Span and word pieces of some units as one passage; as several, where joining them outgrew the model."""
        start, end = units[0][0], units[-1][1]
        if not self._joined_by_spaces(units):
            return self._span(start, end)
        ids = self._prefix_ids + [piece for _, _, pieces in units for piece in pieces]
        return self._span(start, end, self._tokenizer.wrapped(ids))

    def _joined_by_spaces(self, units: Sequence[Unit]) -> bool:
        """Whether the units' pieces, one after the other, are those of the whole: a word ends at each joint."""
        joints = (self._text[start - 1] == " " for start, _, _ in units[1:])
        return self._tokenizer.ends_words_at_spaces and self._prefix[-1:] in ("", " ") and all(joints)

    def _span(self, start: int, end: int, ids: list[int] | None = None) -> list[tuple[int, int, list[int]]]:
        if ids is None:
            ids = self._tokenizer.wrapped(self._tokenizer.ids(self._prefix + self._text[start:end].strip()))
        if len(ids) <= self._limit or end - start == 1:
            return [(start, end, ids)]
        middle = _middle(self._text, start, end)
        return self._span(start, middle) + self._span(middle, end)


def _check_cover(page_id: int, text: str, passages: Sequence[Passage], limit: int) -> None:
    edges = [0, *(p.end for p in passages)]
    if edges[-1] != len(text) or any(p.start != edge for p, edge in zip(passages, edges, strict=False)):
        raise LedgerBroken(f"page {page_id}: its passages cover {edges[-1]} of {len(text)} characters, or overlap")
    longest = max((len(p.input_ids) for p in passages), default=0)
    if longest > limit:
        raise LedgerBroken(f"page {page_id}: a passage has {longest} word pieces, the model reads {limit}")
