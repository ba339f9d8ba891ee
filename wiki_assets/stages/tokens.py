"""Pages to token ids: exactly those of tiktoken's `encode_ordinary`, where every special token is plain text."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count, pairwise
from typing import IO, Any, NamedTuple, Protocol, TypeVar

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from wiki_assets import failpoints
from wiki_assets.stages.articles import ROW_GROUP_PAGES
from wiki_assets.stages.passages import Passage, cut_page
from wiki_assets.stages.quarantine import Quarantine, Quarantined, is_of_the_row, reason_of
from wiki_assets.stages.word_pieces import WordPieceTokenizer

T = TypeVar("T")

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
    quarantine: Quarantine | None = None,
    rows: range | None = None,
    condemned: Mapping[int, str] | None = None,
) -> dict[str, Any]:
    """Write the token ids of every page of a shard, and its passages, already cut and tokenized.

    A page that cannot be encoded or cut is set aside, and is in neither file.

    Args:
        articles: the shard's articles, Parquet.
        tokens: gets Parquet of `TOKENS_SCHEMA`, a row a page, in the order of `articles`.
        passages: gets Parquet of `PASSAGES_SCHEMA`, in the order of the pages and of their text.
        encoding: for the token ids.
        tokenizer: the embedding model's own, for the passages.
        params: how pages are cut.
        metadata: schema metadata of both files.
        quarantine: gets the pages that are set aside.
        rows: only these rows of `articles`; all of them, if not given.
        condemned: rows that are not to be tried, and why: they have ended workers.

    Returns:
        The ledger: pages_in = pages + quarantined (by reason); of the pages: text_chars, and covered_chars of them,
        tokens, passages, word_pieces, unknown_pieces, truncated (0), split_texts.

    Raises:
        NotPoison: if so many pages fail that it is not they.
    """
    source = pq.ParquetFile(articles)
    quarantine = quarantine or Quarantine(source.metadata.num_rows)
    counts: Counter[str] = Counter(
        dict.fromkeys(
            (
                "pages_in",
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

    def encode(page: _Page) -> tuple[NDArray[np.uint32], bool]:
        if failpoints.armed:
            failpoints.failpoint("tokens.page", page.page_id)
        return encode_page(page.text, encoding)

    def cut(page: _Page) -> list[Passage]:
        return cut_page(
            page.page_id,
            page.title,
            page.text,
            page.language,
            tokenizer,
            word_pieces=params.word_pieces,
            prompt=params.prompt,
        )

    with (
        _parquet(tokens, TOKENS_SCHEMA, metadata) as token_file,
        _parquet(passages, PASSAGES_SCHEMA, metadata) as passage_file,
    ):
        for batch in _pages(source, rows):
            counts["pages_in"] += len(batch)
            pages = _without(condemned or {}, batch, quarantine)
            # one encoder after the other: each finds its tables in the cache, a tenth faster than page by page
            encoded = _each(encode, pages, quarantine)
            cuts = _each(cut, [page for page in pages if page.row in encoded], quarantine)
            pages = [page for page in pages if page.row in cuts]
            ids = [encoded[page.row][0] for page in pages]
            if sample is None and pages:
                sample = {"page_id": pages[0].page_id, "title": pages[0].title, "token_ids": ids[0][:12].tolist()}
            cut_pages = [(page.page_id, passage) for page in pages for passage in cuts[page.row]]
            pieces = [p.input_ids for _, p in cut_pages]
            counts["pages"] += len(pages)
            counts["text_chars"] += sum(len(page.text) for page in pages)
            counts["covered_chars"] += sum(p.end - p.start for _, p in cut_pages)
            counts["split_texts"] += sum(encoded[page.row][1] for page in pages)
            counts["tokens"] += sum(map(len, ids))
            counts["passages"] += len(cut_pages)
            counts["word_pieces"] += sum(map(len, pieces))
            counts["truncated"] += sum(len(piece) > tokenizer.max_pieces for piece in pieces)
            if unknown is not None:
                counts["unknown_pieces"] += sum(piece.count(unknown) for piece in pieces)
            page_ids = pa.array([page.page_id for page in pages], pa.int64())
            token_file.write_batch(pa.record_batch([page_ids, _lengths(ids), _lists(ids)], schema=token_file.schema))
            passage_file.write_batch(_passage_batch(cut_pages, passage_file.schema))
    return {**counts, "quarantined": quarantine.counts, "sample": sample}


class _Page(NamedTuple):
    """A page as it is read for the tokens; `row` is its place in the shard."""

    row: int
    page_id: int
    title: str
    text: str
    language: str


def _pages(articles: pq.ParquetFile, rows: range | None) -> Iterator[list[_Page]]:
    """The pages of a shard, a batch at a time; only some rows of it, if asked for."""
    first = 0
    for batch in articles.iter_batches(ROW_GROUP_PAGES, columns=["page_id", "title", "text", "language"]):
        columns = (batch[c].to_pylist() for c in ("page_id", "title", "text", "language"))
        pages = [_Page(row, *values) for row, *values in zip(count(first), *columns, strict=False)]
        first += len(batch)
        if rows is not None:
            pages = [page for page in pages if page.row in rows]
        if pages or rows is None:
            yield pages


def _without(condemned: Mapping[int, str], pages: list[_Page], quarantine: Quarantine) -> list[_Page]:
    """Set pages aside unread, because they end whoever reads them."""
    if not condemned:
        return pages
    for page in pages:
        if (reason := condemned.get(page.row)) is not None:
            quarantine.add(Quarantined(page.page_id, page.title, reason))
    return [page for page in pages if page.row not in condemned]


def _each(make: Callable[[_Page], T], pages: list[_Page], quarantine: Quarantine) -> dict[int, T]:
    """What is made of each page, by its row; a page that fails is set aside, so that it costs no other."""
    made: dict[int, T] = {}
    for page in pages:
        try:
            made[page.row] = make(page)
        except BaseException as error:  # a panic of a native library is no Exception
            if not is_of_the_row(error):
                raise
            quarantine.add(Quarantined(page.page_id, page.title, *reason_of(error)))
    return made


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
