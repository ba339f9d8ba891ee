"""The stages one after the other in plain Python: a snapshot's dump files to articles, tokens and passages."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from wiki_assets.compression import decoded_chunks
from wiki_assets.keys import Shard, Snapshot
from wiki_assets.stages.articles import Fragment, SplitCounts, merge_shard, split_documents
from wiki_assets.stages.dump import Document, DumpReader
from wiki_assets.stages.tokens import PassageParams, tokenize_shard


@dataclass
class Made:
    """What was made of a snapshot: files in `folder`, and the counts of each step."""

    snapshot: Snapshot
    folder: Path
    shards: int
    readers: list[DumpReader] = field(default_factory=list)
    splits: list[SplitCounts] = field(default_factory=list)
    merged: list[dict[str, Any]] = field(default_factory=list)
    tokenized: list[dict[str, Any]] = field(default_factory=list)

    def path(self, artifact: str, shard: int) -> Path:
        return self.folder / f"{artifact}-{shard:05d}.parquet"

    def bytes(self, artifact: str) -> list[bytes]:
        """The file of each shard."""
        return [self.path(artifact, shard).read_bytes() for shard in range(self.shards)]

    def table(self, artifact: str) -> pa.Table:
        """The rows of every shard, shard after shard."""
        return pa.concat_tables(
            [pq.read_table(self.path(artifact, shard)) for shard in range(self.shards)]
        ).combine_chunks()

    def total(self, name: str) -> int:
        """A count of merged or tokenized shards, summed."""
        return sum(counts[name] for counts in (self.tokenized or self.merged))

    @property
    def ledger(self) -> dict[str, Any]:
        """Every document of the snapshot by what became of it, as tinywiki's `expected.json` writes it."""
        filtered = sum((split.filtered for split in self.splits), Counter())
        quarantined = sum((reader.quarantined for reader in self.readers), Counter())
        superseded = sum(counts["superseded"] for counts in self.merged)
        return {
            "documents": sum(reader.n_documents for reader in self.readers) + quarantined.total(),
            "pages": sum(counts["pages"] for counts in self.merged),
            "filtered": dict(filtered + Counter(superseded=superseded)),
            "quarantined": dict(quarantined),
        }


def dump_files(dumps: Path, wiki: str, date: str) -> list[Path]:
    """The dump files of a snapshot, in either layout, in order."""
    new = dumps / "other" / "cirrus_search_index" / date / f"index_name={wiki}_content"
    old = dumps / "other" / "cirrussearch" / date
    files = sorted([*new.glob("*.json.bz2"), *old.glob(f"{wiki}-*-content.json.gz")])
    assert files, f"no dump of {wiki} {date} in {dumps}"
    return files


def make_articles(files: Sequence[Path], snapshot: Snapshot, folder: Path, *, shards: int) -> Made:
    """Split and merge dump files."""
    sources = []
    for file in files:
        reader = DumpReader()
        sources.append((reader, _documents(file, reader)))
    return _split_and_merge(sources, Made(snapshot, folder, shards))


def merge_documents(files: Sequence[Iterable[Document]], snapshot: Snapshot, folder: Path, *, shards: int = 1) -> Made:
    """Split and merge documents that no file holds; `files` are the documents of each."""
    return _split_and_merge([(DumpReader(), documents) for documents in files], Made(snapshot, folder, shards))


def _documents(file: Path, reader: DumpReader) -> Iterable[Document]:
    with file.open("rb") as raw:
        yield from reader.documents(decoded_chunks(raw, file.name))


def _split_and_merge(sources: Sequence[tuple[DumpReader, Iterable[Document]]], made: Made) -> Made:
    made.folder.mkdir(parents=True, exist_ok=True)
    for number, (reader, documents) in enumerate(sources):
        fragment, redirects = made.folder / f"{number}.arrow", made.folder / f"{number}.redirects"
        with fragment.open("wb") as pages, redirects.open("wb") as moved:
            made.splits.append(split_documents(documents, pages, moved, shards=made.shards))
        made.readers.append(reader)
    for shard in range(made.shards):
        fragments = [
            Fragment(made.folder / f"{n}.arrow", split.batches_by_shard.get(shard, []), made.folder / f"{n}.redirects")
            for n, split in enumerate(made.splits)
        ]
        with made.path("articles", shard).open("wb") as out:
            made.merged.append(merge_shard(fragments, out, shard=Shard(made.snapshot, shard), metadata={}))
    return made


def make_tokens(made: Made, encoding: Any, tokenizer: Any, *, word_pieces: int = 128) -> Made:
    """Tokenize every shard of `made`."""
    for shard in range(made.shards):
        with (
            made.path("articles", shard).open("rb") as articles,
            made.path("tokens", shard).open("wb") as tokens,
            made.path("passages", shard).open("wb") as passages,
        ):
            counts = tokenize_shard(
                articles, tokens, passages,
                encoding=encoding, tokenizer=tokenizer, params=PassageParams(word_pieces), metadata={},
            )  # fmt: skip
        made.tokenized.append(counts)
    return made
