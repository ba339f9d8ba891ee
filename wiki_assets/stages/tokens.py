"""Pages to token ids: exactly those of tiktoken's `encode_ordinary`, where every special token is plain text."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import IO, Any, Protocol

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from wiki_assets.stages.articles import ROW_GROUP_PAGES
from wiki_assets.stages.passages import Passage, cut_page
from wiki_assets.stages.word_pieces import WordPieceTokenizer

CODE_VERSION = "tokens-1"
_LONGEST_BLANK = 100_000  # characters; tiktoken's pattern gives up on runs of white space some 800,000 long
_BLANKS = re.compile(rf"\s{{{_LONGEST_BLANK}}}")


class Encoding(Protocol):
    """A byte-pair encoding, such as `tiktoken.get_encoding("cl100k_base")`."""

    name: str

    def encode_to_numpy(self, text: str, *, disallowed_special: Any) -> NDArray[np.uint32]:
        """Token ids of `text`; with `disallowed_special=()` special tokens in it are ordinary text."""
        ...


def encode_page(text: str, encoding: Encoding) -> tuple[NDArray[np.uint32], bool]:
    """Encode one page's text.

    Args:
        text: any string that has a UTF-8 form.
        encoding: the wiki's encoding.

    Returns:
        uint32 [n] token ids that decode to `text`, equal to `encode_ordinary`'s, and False. Where
        `encode_ordinary` itself fails (about a million blanks in a row), the ids of the text cut inside the
        blanks, and True.
    """
    try:
        return encoding.encode_to_numpy(text, disallowed_special=()), False
    except ValueError:
        pieces = [encoding.encode_to_numpy(piece, disallowed_special=()) for piece in _cut_blanks(text)]
        return np.concatenate(pieces), True


def _cut_blanks(text: str) -> list[str]:
    """Cut a text wherever `_LONGEST_BLANK` blanks in a row have passed; the pieces join to the text."""
    cuts = [0, *(match.end() for match in _BLANKS.finditer(text)), len(text)]
    return [text[start:end] for start, end in pairwise(cuts) if start < end]


TOKENS_SCHEMA = pa.schema(
    [
        pa.field("page_id", pa.int64(), nullable=False),
        pa.field("n_tokens", pa.int32(), nullable=False),
        pa.field("token_ids", pa.list_(pa.int32()), nullable=False),
    ]
)
PASSAGES_SCHEMA = pa.schema(
    [
        pa.field("passage_id", pa.string(), nullable=False),
        pa.field("page_id", pa.int64(), nullable=False),
        pa.field("ordinal", pa.int32(), nullable=False),  # of the passage in its page, from 0
        pa.field("start", pa.int32(), nullable=False),  # characters of the page's text
        pa.field("end", pa.int32(), nullable=False),
        pa.field("text_hash", pa.string(), nullable=False),  # of what the model reads: title and text
        pa.field("n_word_pieces", pa.int32(), nullable=False),  # special ones included
        pa.field("input_ids", pa.list_(pa.int32()), nullable=False),  # what the model reads
    ]
)


class PassageParams(msgspec.Struct, frozen=True):
    """How pages are cut for the embedding model."""

    word_pieces: int
    prompt: str = ""


def tokenize_shard(
    articles: IO[bytes],
    tokens: Any,
    passages: Any,
    *,
    encoding: Encoding,
    tokenizer: WordPieceTokenizer,
    params: PassageParams,
    metadata: dict[str, str],
) -> dict[str, Any]:
    """Write the token ids of every page of a shard, and its passages, already cut and tokenized.

    Args:
        articles: the shard's articles, Parquet.
        tokens: gets Parquet of `TOKENS_SCHEMA`, a row a page, in the order of `articles`.
        passages: gets Parquet of `PASSAGES_SCHEMA`, in the order of the pages and of their text.
        encoding: for the token ids.
        tokenizer: the embedding model's own, for the passages.
        params: how pages are cut.
        metadata: schema metadata of both files.

    Returns:
        The ledger: pages, text_chars in and covered, tokens, passages, word_pieces, unknown_pieces, truncated
        (0), split_texts, blank (pages whose text no passage could be cut from; 0).
    """
    counts: Counter[str] = Counter(
        dict.fromkeys(
            (
                "pages",
                "text_chars",
                "covered_chars",
                "tokens",
                "passages",
                "word_pieces",
                "unknown_pieces",
                "truncated",
                "split_texts",
            ),
            0,
        )
    )
    unknown = tokenizer.unknown
    sample: dict[str, Any] | None = None
    with (
        _parquet(tokens, TOKENS_SCHEMA, metadata) as token_file,
        _parquet(passages, PASSAGES_SCHEMA, metadata) as passage_file,
    ):
        for batch in pq.ParquetFile(articles).iter_batches(
            ROW_GROUP_PAGES, columns=["page_id", "title", "text", "language"]
        ):
            page_ids, page_titles, texts, languages = (
                batch[c].to_pylist() for c in ("page_id", "title", "text", "language")
            )
            # one encoder after the other: each finds its tables in the cache, a tenth faster than page by page
            found = [encode_page(text, encoding) for text in texts]
            encoded = [ids for ids, _ in found]
            cut: list[tuple[int, Passage]] = []
            for page_id, title, text, language in zip(page_ids, page_titles, texts, languages, strict=True):
                passages_of = cut_page(
                    page_id, title, text, language, tokenizer, word_pieces=params.word_pieces, prompt=params.prompt
                )
                cut += [(page_id, passage) for passage in passages_of]
                counts["text_chars"] += len(text)
                counts["covered_chars"] += sum(p.end - p.start for p in passages_of)
            if sample is None and page_ids:
                sample = {"page_id": page_ids[0], "title": page_titles[0], "token_ids": encoded[0][:12].tolist()}
            counts["split_texts"] += sum(was_split for _, was_split in found)
            pieces = [p.input_ids for _, p in cut]
            counts["pages"] += len(page_ids)
            counts["tokens"] += sum(map(len, encoded))
            counts["passages"] += len(cut)
            counts["word_pieces"] += sum(map(len, pieces))
            counts["truncated"] += sum(len(ids) > tokenizer.max_pieces for ids in pieces)
            if unknown is not None:
                counts["unknown_pieces"] += sum(ids.count(unknown) for ids in pieces)
            token_file.write_batch(
                pa.record_batch([batch["page_id"], _lengths(encoded), _lists(encoded)], schema=token_file.schema)
            )
            passage_file.write_batch(_passage_batch(cut, passage_file.schema))
    return {**counts, "sample": sample}


def _parquet(out: Any, schema: pa.Schema, metadata: dict[str, str]) -> pq.ParquetWriter:
    """Ids compress best split into bytes: 1.68 bytes a token on English, against 1.90 by dictionary."""
    ids = {f"{f.name}.list.element": "BYTE_STREAM_SPLIT" for f in schema if pa.types.is_list(f.type)}
    return pq.ParquetWriter(
        out,
        schema.with_metadata(metadata),
        compression="zstd",
        compression_level=3,
        use_dictionary=False,
        column_encoding=ids,
    )


def _lengths(arrays: Sequence[Sequence[int] | NDArray[Any]]) -> pa.Array:
    return pa.array(np.fromiter(map(len, arrays), np.int32, len(arrays)))


def _lists(arrays: Sequence[Sequence[int] | NDArray[Any]]) -> pa.ListArray:
    """Many runs of ids as one Arrow list column, without a Python object for each id."""
    offsets = np.zeros(len(arrays) + 1, np.int32)
    np.cumsum([len(a) for a in arrays], out=offsets[1:])
    values = np.concatenate([np.asarray(a, np.int32) for a in arrays]) if len(arrays) else np.zeros(0, np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, pa.int32()))


def _passage_batch(cut: Sequence[tuple[int, Passage]], schema: pa.Schema) -> pa.RecordBatch:
    passages = [p for _, p in cut]
    pieces = [p.input_ids for p in passages]
    return pa.record_batch(
        [
            pa.array([p.passage_id for p in passages], pa.string()),
            pa.array([page_id for page_id, _ in cut], pa.int64()),
            pa.array([p.ordinal for p in passages], pa.int32()),
            pa.array([p.start for p in passages], pa.int32()),
            pa.array([p.end for p in passages], pa.int32()),
            pa.array([p.text_hash for p in passages], pa.string()),
            _lengths(pieces),
            _lists(pieces),
        ],
        schema=schema,
    )
