"""The bare loop: one core, the same libraries, the same three files; no Ray, shards, hashes, fsync or manifests."""

import bz2
import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wiki_assets.defs.worker import pin_threads
from wiki_assets.resources.models import EmbeddingModel, fastest_encoding
from wiki_assets.stages.addresses import page_url
from wiki_assets.stages.articles import ARTICLES_SCHEMA
from wiki_assets.stages.dump import Document
from wiki_assets.stages.passages import Passage, cut_page
from wiki_assets.stages.tokens import PASSAGES_SCHEMA, TOKENS_SCHEMA
from wiki_assets.stages.word_pieces import WordPieceTokenizer

try:
    from isal import igzip
except ImportError:
    igzip = gzip

_BATCH_PAGES = 2_000


class _Id(msgspec.Struct):
    id: int | str = msgspec.field(name="_id")


class _Action(msgspec.Struct):
    index: _Id


class Bare:
    """Makes pages, token ids and passages of a dump, as they come.

    Args:
        model: whose word pieces bound a passage.
        cache: folder of the token ranks.
        word_table: with our table of words, as the platform; or with the tokenizers library as it is.
    """

    def __init__(self, model: EmbeddingModel, cache: Path, *, word_table: bool = True) -> None:
        pin_threads(1)
        self._encoding = fastest_encoding("cl100k_base", cache)
        self._tokenizer = WordPieceTokenizer(model.tokenizer_file, max_pieces=model.max_pieces)
        self._tokenizer.ends_words_at_spaces &= word_table

    def run(self, files: Sequence[Path], folder: str, wiki: str, word_pieces: int) -> dict[str, int]:
        """Write pages.parquet, tokens.parquet and passages.parquet for all documents of the files."""
        target = Path(folder)
        target.mkdir(parents=True)
        decode_action, decode = msgspec.json.Decoder(_Action).decode, msgspec.json.Decoder(Document).decode
        counts = dict.fromkeys(("pages", "text_chars", "tokens", "passages"), 0)
        with (
            _writer(target / "pages.parquet", ARTICLES_SCHEMA, use_dictionary=["language"]) as pages,
            _writer(target / "tokens.parquet", TOKENS_SCHEMA, **_ids("token_ids")) as tokens,
            _writer(target / "passages.parquet", PASSAGES_SCHEMA, **_ids("input_ids")) as passages,
        ):
            batch: list[Document] = []

            def flush() -> None:
                encoded = [self._encoding.encode_to_numpy(d.text, disallowed_special=()) for d in batch]
                cut = [
                    (d.page_id, p)
                    for d in batch
                    for p in cut_page(
                        d.page_id, d.title, d.text, d.language or "en", self._tokenizer, word_pieces=word_pieces
                    )
                ]
                pages.write_batch(_page_batch(batch, wiki))
                ids = pa.array([d.page_id for d in batch])
                tokens.write_batch(pa.record_batch([ids, _lengths(encoded), _lists(encoded)], schema=TOKENS_SCHEMA))
                passages.write_batch(_passage_batch(cut))
                counts["pages"] += len(batch)
                counts["text_chars"] += sum(len(d.text) for d in batch)
                counts["tokens"] += sum(map(len, encoded))
                counts["passages"] += len(cut)
                batch.clear()

            for path in files:
                with (bz2.open if path.suffix == ".bz2" else igzip.open)(path) as lines:
                    for action in lines:
                        document: Any = decode(next(lines))
                        if document.is_redirect or document.namespace or not document.text:
                            continue
                        document.page_id = int(decode_action(action).index.id)
                        batch.append(document)
                        if len(batch) == _BATCH_PAGES:
                            flush()
            if batch:
                flush()
        return counts


def _writer(path: Path, schema: pa.Schema, **options: Any) -> pq.ParquetWriter:
    return pq.ParquetWriter(path, schema, compression="zstd", compression_level=3, **options)


def _ids(column: str) -> dict[str, Any]:
    return {"use_dictionary": False, "column_encoding": {f"{column}.list.element": "BYTE_STREAM_SPLIT"}}


def _page_batch(batch: Sequence[Any], wiki: str) -> pa.RecordBatch:
    times = pc.strptime(
        pa.array([d.timestamp for d in batch], pa.string()), format="%Y-%m-%dT%H:%M:%SZ", unit="s", error_is_null=True
    )
    return pa.record_batch(
        [
            pa.array([d.page_id for d in batch]),
            pa.array([d.title for d in batch]),
            pa.array([d.text for d in batch]),
            pa.array([d.opening_text for d in batch], pa.string()),
            pa.array([d.version or 0 for d in batch]),
            times.cast(pa.timestamp("s", "UTC")),
            pa.array([page_url(wiki, d.title) for d in batch]),
            pa.array(
                [sorted({r.title for r in d.redirect or () if r.namespace == 0}) for d in batch], pa.list_(pa.string())
            ),
            pa.array([d.category or [] for d in batch], pa.list_(pa.string())),
            pa.array([d.incoming_links for d in batch], pa.int64()),
            pa.array([d.popularity_score for d in batch], pa.float64()),
            pa.array([d.wikibase_item for d in batch], pa.string()),
            pa.array([d.language or "en" for d in batch]),
        ],
        schema=ARTICLES_SCHEMA,
    )


def _passage_batch(cut: Sequence[tuple[int | None, Passage]]) -> pa.RecordBatch:
    passages = [p for _, p in cut]
    pieces = [p.input_ids for p in passages]
    return pa.record_batch(
        [
            pa.array([p.passage_id for p in passages]),
            pa.array([page_id for page_id, _ in cut], pa.int64()),
            pa.array([p.ordinal for p in passages], pa.int32()),
            pa.array([p.start for p in passages], pa.int32()),
            pa.array([p.end for p in passages], pa.int32()),
            pa.array([p.text_hash for p in passages]),
            _lengths(pieces),
            pa.array(pieces, pa.list_(pa.int32())),
        ],
        schema=PASSAGES_SCHEMA,
    )


def _lengths(rows: Sequence[Any]) -> pa.Array:
    return pa.array([len(row) for row in rows], pa.int32())


def _lists(rows: Sequence[Any]) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(rows).astype(np.int32)))
