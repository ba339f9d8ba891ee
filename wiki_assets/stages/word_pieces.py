"""The embedding model's own tokenizer: what bounds a passage, measured exactly and fast.

A Hugging Face tokenizer spends most of its time on words it has met thousands of times. BERT's normalizer and
pre-tokenizer never look across a space, so for that family the ids of a text are the ids of its words, one
after the other, and a table of words met before gives them some ten times faster. Other families (SentencePiece,
byte-level BPE) go to the library as they are.
"""

import json
from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_MAX_WORDS = 400_000  # in the table; about 80 MB
_MAX_WORD_CHARS = 40
_CLOSING = frozenset(".,;:!?)'\"")


class WordPieceTokenizer:
    """A model's tokenizer, bounded by what the model reads.

    Args:
        file: the model's `tokenizer.json`.
        max_pieces: how many word pieces the model reads, special ones included; 256 for all-MiniLM-L6-v2.
    """

    def __init__(self, file: Path, *, max_pieces: int) -> None:
        self.file = file
        self.max_pieces = max_pieces
        self._words: dict[str, tuple[int, ...]] = {"": ()}
        self._known: dict[int, int] = {}  # each id once: the table is small, and near at hand
        spec = json.loads(file.read_text("utf-8"))
        kinds = [(spec.get(part) or {}).get("type") for part in ("normalizer", "pre_tokenizer", "model")]
        added = [token["content"] for token in spec.get("added_tokens", ())]
        # an added token with a space in it would be looked for across words
        self.ends_words_at_spaces = kinds == ["BertNormalizer", "BertPreTokenizer", "WordPiece"] and not any(
            " " in t for t in added
        )

    @cached_property
    def _tokenizer(self) -> "Tokenizer":
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self.file))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    @cached_property
    def special(self) -> tuple[list[int], list[int]]:
        """The ids the model wants before and after a text: [CLS] and [SEP] for BERT."""
        bare = self._tokenizer.encode("a", add_special_tokens=False).ids
        whole = self._tokenizer.encode("a", add_special_tokens=True).ids
        start = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
        return whole[:start], whole[start + len(bare) :]

    @property
    def room(self) -> int:
        """Word pieces that a text may have, beside the special ones."""
        return self.max_pieces - len(self.special[0]) - len(self.special[1])

    @cached_property
    def unknown(self) -> int | None:
        """The id of a word that the model has no pieces for; None where it has pieces for everything."""
        token = (json.loads(self.file.read_text("utf-8")).get("model") or {}).get("unk_token")
        return self._tokenizer.token_to_id(token) if token else None

    def ids(self, text: str) -> list[int]:
        """Word pieces of a text, without special ones: equal to `encode(text, add_special_tokens=False).ids`."""
        if not self.ends_words_at_spaces:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        words = text.split(" ")
        try:
            return list(chain.from_iterable(map(self._words.__getitem__, words)))
        except KeyError:
            return [piece for word in words for piece in self._word(word)]

    def _word(self, word: str) -> tuple[int, ...]:
        """Pieces of what stands between two spaces; from the table, or into it."""
        pieces = self._words.get(word)
        if pieces is None:
            if len(word) > 1 and word[-1] in _CLOSING:
                # punctuation is always a word of its own: look up what stands before it
                pieces = self._word(word[:-1]) + self._word(word[-1])
            else:
                ids = self._tokenizer.encode(word, add_special_tokens=False).ids
                pieces = tuple([self._known.setdefault(piece, piece) for piece in ids])
            if len(word) <= _MAX_WORD_CHARS:
                if len(self._words) >= _MAX_WORDS:
                    self._words.clear()
                    self._words[""] = ()
                self._words[word] = pieces
        return pieces

    def wrapped(self, ids: Sequence[int]) -> list[int]:
        """Add the special ids around a text's own: what the model reads."""
        before, after = self.special
        return [*before, *ids, *after]
