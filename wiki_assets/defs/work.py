"""What a worker does: read one file, run the stage, commit one file, and return its manifest.

Runs inside Ray tasks, so it imports neither Dagster nor Ray, and what it returns is a handful of numbers.
"""

import hashlib
import io
import os
import resource
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
import pyarrow.parquet as pq

from wiki_assets.claims import Claim, claim
from wiki_assets.compression import decoded_chunks
from wiki_assets.defs.previous import compared_with, sources_of_vectors
from wiki_assets.defs.recipes import Recipe
from wiki_assets.defs.wikis import WikiConfig
from wiki_assets.errors import CorruptDump, DamagedArtifact, LedgerBroken
from wiki_assets.files import FileRecord, Manifest, fingerprint, read_manifest, sizes_agree, whole_file
from wiki_assets.keys import Shard, Snapshot
from wiki_assets.ranges import Range, Restart, range_chunks, unpacked_restarts
from wiki_assets.resources.download import restarts_path
from wiki_assets.resources.engines import load_engine
from wiki_assets.resources.models import fastest_encoding
from wiki_assets.resources.store import Store
from wiki_assets.settings import Settings
from wiki_assets.stages.articles import CODE_VERSION, Fragment, merge_shard, split_documents
from wiki_assets.stages.dump import DumpReader
from wiki_assets.stages.embeddings import EmbeddingParams, embed_shard
from wiki_assets.stages.quarantine import Quarantine, read_quarantine
from wiki_assets.stages.tokens import PassageParams, tokenize_shard
from wiki_assets.stages.word_pieces import WordPieceTokenizer

_TELLING = 64  # passages, fewer do not tell what one costs: the first batches warm the engine up


@dataclass(frozen=True)
class Work:
    """One shard's worth of work, as it travels to a worker."""

    recipe: Recipe
    config: WikiConfig
    store: Store
    settings: Settings
    run: str = ""  # the Dagster run that asks for it
    condemned: dict[int, str] = field(default_factory=dict)  # rows of its input that end workers, and how

    def __str__(self) -> str:
        return f"{self.recipe.shard} {self.recipe.artifact}"

    def n_rows(self) -> int:
        """How many rows the input of `tokens` or `embeddings` has; 0 where it is gone."""
        source, rows = {"tokens": ("articles", "pages"), "embeddings": ("tokens", "passages")}[self.recipe.artifact]
        manifest = self.store.manifest(source, self.recipe.shard)
        return int(manifest.counts[rows]) if manifest else 0

    def claim(self) -> Claim:
        """Claim the shard for this run; whoever held it can put nothing in place any more."""
        shard, artifact = self.recipe.shard, self.recipe.artifact
        writes = [self.store.file(name, shard) for name in (artifact, *(["passages"] if artifact == "tokens" else ()))]
        writes.append(self.store.quarantine(artifact, shard))
        return claim(self.store.manifest_path(artifact, shard), self.run, writes=writes)


@contextmanager
def _measured() -> Iterator[dict[str, Any]]:
    """Fill in what the work inside took, when it ends."""
    wall, cpu = time.perf_counter(), time.process_time()
    stats: dict[str, Any] = {}
    yield stats
    stats["seconds"] = round(time.perf_counter() - wall, 3)
    stats["cpu_seconds"] = round(time.process_time() - cpu, 3)
    stats["peak_memory_bytes"] = _peak_memory_bytes()


def _peak_memory_bytes() -> int:
    """Of this process so far. Where /proc does not tell, what a parent used before the fork counts in."""
    status = Path("/proc/self/status")
    if status.exists():
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _name(work: Work, artifact: str) -> str:
    """A shard's file as its manifest names it: relative to the wiki's folder."""
    return work.store.name(work.store.file(artifact, work.recipe.shard))


# --- articles: split a dump file, merge a shard


@dataclass(frozen=True)
class Split:
    """One dump file to split, as it travels to a worker."""

    snapshot: Snapshot
    config: WikiConfig
    store: Store
    file_name: str
    sha256: str
    decoded_bytes: int
    run: str = ""  # the Dagster run that asks for it
    number: int = 0  # of the range
    part: Range | None = None  # of the file; all of it, if none
    restarts: str = ""  # SHA-256 of the file's restart points

    @property
    def name(self) -> str:
        """The file's name, and which range of it."""
        return f"{self.file_name}@{self.number:05d}" if self.part else self.file_name

    @property
    def fingerprint(self) -> str:
        """Of the dump file, the code and the shard count; and of the range."""
        which = (self.part.start, self.part.sha256) if self.part else ()
        return fingerprint(CODE_VERSION, self.config.shards, self.sha256, *which)

    @property
    def manifest_path(self) -> Any:
        """Where the split's manifest lies; it stays after the fragments are gone."""
        return self.store.split(self.snapshot) / f"{self.name}.json"

    def made(self) -> Manifest | None:
        """The split's manifest, if it is up to date; its fragments may be gone."""
        manifest = read_manifest(self.manifest_path)
        return manifest if manifest and manifest.fingerprint == self.fingerprint else None

    def has_fragments(self, manifest: Manifest) -> bool:
        """Whether the split pages are still there."""
        return sizes_agree(self.store.wiki(self.snapshot.wiki), manifest)

    def fragment(self, shard: int, manifest: Manifest) -> Fragment:
        """One shard's part of the split file."""
        batches = manifest.counts["batches_by_shard"].get(str(shard), [])
        return Fragment(self._path("arrow"), batches, self._path("redirects.parquet"))

    def chunks(self, raw: IO[bytes]) -> Iterator[bytes]:
        """The text of the file, or of the range of it."""
        if self.part is None:
            return decoded_chunks(raw, self.file_name)
        return range_chunks(raw, self.file_name, self.part, self._restarts())

    def _restarts(self) -> list[Restart]:
        """The file's restart points, as they were when it was fetched; none if they are lost: that costs time only."""
        path = restarts_path(self.store.raw(self.snapshot), self.file_name)
        try:
            data = path.read_bytes() if self.restarts else b""
            return unpacked_restarts(data) if hashlib.sha256(data).hexdigest() == self.restarts else []
        except (FileNotFoundError, ValueError):
            return []

    def _path(self, ending: str) -> Any:
        return self.store.split(self.snapshot) / f"{self.name}.{ending}"

    def _name(self, ending: str) -> str:
        return self.store.name(self._path(ending))


def split_dump_file(split: Split) -> Manifest:
    """Read one dump file, or a range, and sort its pages into fragments; every other row is counted, bad ones are kept.

    Raises:
        CorruptDump: if the text is not what it was when the file was fetched.
        LedgerBroken: if documents in are not pages plus those left out for a reason.
    """
    writes = [split._path(ending) for ending in ("arrow", "redirects.parquet", "quarantine.jsonl")]
    mine = claim(split.manifest_path, split.run, writes=writes)
    with _measured() as stats:
        reader = DumpReader(lines_before=split.part.line if split.part else 0)
        expected = split.part.size_bytes if split.part else split.decoded_bytes
        source = split.store.raw(split.snapshot) / split.file_name
        with (
            source.open("rb") as raw,
            whole_file(split._path("arrow"), fence=mine.fence) as fragment,
            whole_file(split._path("redirects.parquet"), fence=mine.fence) as redirects,
        ):
            found = reader.documents(split.chunks(raw))
            counts = split_documents(found, fragment, redirects, shards=split.config.shards)
            if reader.bytes_read != expected:
                raise CorruptDump(
                    f"{source}: decodes to {reader.bytes_read:,} bytes, {expected:,} when it was fetched: "
                    "delete it, then materialize raw_dump"
                )
        with whole_file(split._path("quarantine.jsonl"), fence=mine.fence) as quarantine:
            for line in reader.bad_lines:
                quarantine.write(msgspec.json.encode(line) + b"\n")
    n_bad = sum(reader.quarantined.values())
    documents = reader.n_documents + n_bad
    if documents != counts.pages + sum(counts.filtered.values()) + n_bad or counts.pages != sum(
        counts.pages_by_shard.values()
    ):
        raise LedgerBroken(f"{split.name}: {documents} documents do not add up: {counts}")
    manifest = Manifest(
        artifact="split",
        wiki=split.snapshot.wiki,
        snapshot=split.snapshot.date,
        fingerprint=split.fingerprint,
        code_version=CODE_VERSION,
        params={"shards": split.config.shards},
        inputs={split.name: split.sha256},
        files={
            split._name("arrow"): fragment.record,
            split._name("redirects.parquet"): redirects.record,
            split._name("quarantine.jsonl"): quarantine.record,
        },
        counts={
            "documents": documents,
            "pages": counts.pages,
            "text_chars": counts.text_chars,
            "filtered": dict(counts.filtered),
            "quarantined": dict(reader.quarantined),
            "pages_by_shard": {str(s): n for s, n in counts.pages_by_shard.items()},
            "batches_by_shard": {str(s): n for s, n in counts.batches_by_shard.items()},
        },
        stats=stats,
    )
    return mine.commit(manifest)


def drop_fragments(splits: list[Split]) -> None:
    """Delete split pages that every shard has merged; their manifests and quarantines stay."""
    for split in splits:
        for ending in ("arrow", "redirects.parquet"):
            split._path(ending).unlink(missing_ok=True)


def make_articles(work: Work, splits: list[Split]) -> Manifest:
    """Merge one shard's pages from all split dump files."""
    shard = work.recipe.shard
    fragments: list[Fragment] = []
    promised = 0
    for split in splits:
        manifest = split.made()
        if manifest is None or not split.has_fragments(manifest):
            raise DamagedArtifact(f"{shard}: the fragments of {split.name} are gone: run again, it is split again")
        fragments.append(split.fragment(shard.number, manifest))
        promised += manifest.counts["pages_by_shard"].get(str(shard.number), 0)
    older = compared_with(work.store, shard)
    mine = work.claim()
    with (
        _measured() as stats,
        _opened(work.store, "articles", older) as before,
        whole_file(work.store.file("articles", shard), _ids_rise, mine.fence) as out,
    ):
        counts = merge_shard(fragments, out, shard=shard, metadata=work.recipe.metadata(work.config), before=before)
        if older and before:
            counts["compared_with"] = older.snapshot.date
        if counts["pages_in"] != promised:
            raise LedgerBroken(f"{shard}: {counts['pages_in']} pages read, the split wrote {promised}")
    return mine.commit(work.recipe.manifest({_name(work, "articles"): out.record}, counts, stats))


@contextmanager
def _opened(store: Store, artifact: str, shard: Shard | None) -> Iterator[IO[bytes] | None]:
    """An earlier snapshot's file; None where there is none, or none any more."""
    try:
        file = store.file(artifact, shard).open("rb") if shard else None
    except FileNotFoundError:
        file = None
    with file or nullcontext():
        yield file


def _ids_rise(file: IO[bytes]) -> None:
    """No page twice, and in order."""
    ids = pq.read_table(file, columns=["page_id"])["page_id"].to_numpy()
    if not (np.diff(ids) > 0).all():
        raise LedgerBroken("a page id appears twice in its shard")


# --- tokens and passages


def make_tokens(work: Work) -> Manifest:
    """Token ids and passages of one shard."""
    shard = work.recipe.shard
    upstream = work.store.manifest("articles", shard)
    if upstream is None:
        raise DamagedArtifact(f"{shard}: its articles are gone: materialize articles again")
    tools = _token_tools(work)
    quarantine = Quarantine(upstream.counts["pages"])
    mine = work.claim()
    with (
        _measured() as stats,
        work.store.file("articles", shard).open("rb") as articles,
        whole_file(work.store.file("tokens", shard), pq.ParquetFile, mine.fence) as tokens,
        whole_file(work.store.file("passages", shard), pq.ParquetFile, mine.fence) as passages,
    ):
        counts = tokenize_shard(articles, tokens, passages, **tools, quarantine=quarantine, condemned=work.condemned)
        if counts["covered_chars"] != counts["text_chars"] or counts["truncated"]:
            raise LedgerBroken(
                f"{shard}: passages cover {counts['covered_chars']} of {counts['text_chars']} characters"
            )
        if not upstream.counts["pages"] == counts["pages_in"] == counts["pages"] + len(quarantine.rows):
            raise LedgerBroken(
                f"{shard}: {upstream.counts['pages']} pages, {counts['pages']} tokenized, "
                f"{len(quarantine.rows)} set aside"
            )
    stats["token_engine"] = getattr(tools["encoding"], "engine", "tiktoken")
    counts["bytes_per_token"] = round(tokens.record.size_bytes / max(1, counts["tokens"]), 3)
    files = {_name(work, "tokens"): tokens.record, _name(work, "passages"): passages.record}
    files |= _set_aside(work, quarantine, mine)
    return mine.commit(work.recipe.manifest(files, counts, stats))


def try_tokens(work: Work, rows: range, without: Collection[int]) -> None:
    """Tokenize some rows of a shard for nothing: to see whether the worker lives."""
    tools = _token_tools(work)
    with work.store.file("articles", work.recipe.shard).open("rb") as articles:
        tokenize_shard(articles, _Nowhere(), _Nowhere(), **tools, rows=rows, condemned=dict.fromkeys(without, ""))


def _token_tools(work: Work) -> dict[str, Any]:
    """What `tokenize_shard` works with, the same for every shard of a wiki."""
    model = work.config.find_model()
    return {
        "encoding": fastest_encoding(work.config.encoding, work.settings.cache_folder),
        "tokenizer": _tokenizer(str(model.tokenizer_file), model.max_pieces),
        "params": PassageParams(work.config.passage_word_pieces, model.document_prompt),
        "metadata": work.recipe.metadata(work.config),
    }


_tokenizers: dict[tuple[str, int], WordPieceTokenizer] = {}


def _tokenizer(file: str, max_pieces: int) -> WordPieceTokenizer:
    """One tokenizer a process: its table of words is what makes it fast."""
    return _tokenizers.setdefault((file, max_pieces), WordPieceTokenizer(Path(file), max_pieces=max_pieces))


# --- embeddings


def make_embeddings(work: Work) -> Manifest:
    """One vector for each passage of a shard."""
    shard = work.recipe.shard
    upstream = work.store.manifest("tokens", shard)
    if upstream is None:
        raise DamagedArtifact(f"{shard}: its passages are gone: materialize tokens again")
    tools = _embedding_tools(work)
    quarantine = Quarantine(upstream.counts["passages"])
    sources = sources_of_vectors(work.store, work.recipe)
    mine = work.claim()
    with (
        _measured() as stats,
        _all_opened(work.store, sources) as known,
        work.store.file("passages", shard).open("rb") as passages,
        whole_file(work.store.file("embeddings", shard), pq.ParquetFile, mine.fence) as out,
    ):
        counts = embed_shard(passages, out, **tools, quarantine=quarantine, condemned=work.condemned, known=known)
        conserved = upstream.counts["passages"] == counts["passages"] == counts["vectors"] + len(quarantine.rows)
        if not conserved or counts["max_norm_error"] > 1e-3:
            raise LedgerBroken(
                f"{shard}: {counts['passages']} passages, {counts['vectors']} vectors, {len(quarantine.rows)} set "
                f"aside, norms off by {counts['max_norm_error']}"
            )
    engine = tools["encoder"]
    stats |= {"engine": engine.engine, "device": engine.device, "batch_pieces": engine.batch_pieces}
    stats |= _saved(counts, engine.device, [manifest for _, manifest in sources])
    _name_pages(work, quarantine)
    files = {_name(work, "embeddings"): out.record, **_set_aside(work, quarantine, mine)}
    return mine.commit(work.recipe.manifest(files, counts, stats))


def try_embeddings(work: Work, rows: range, without: Collection[int]) -> None:
    """Embed some rows of a shard for nothing: to see whether the worker lives."""
    tools = _embedding_tools(work)
    sources = sources_of_vectors(work.store, work.recipe)
    with (
        _all_opened(work.store, sources) as known,
        work.store.file("passages", work.recipe.shard).open("rb") as passages,
    ):
        embed_shard(passages, _Nowhere(), **tools, rows=rows, condemned=dict.fromkeys(without, ""), known=known)


@contextmanager
def _all_opened(store: Store, sources: Sequence[tuple[Shard, Manifest]]) -> Iterator[list[IO[bytes]]]:
    """Embeddings files that vectors are taken from; those that are gone meanwhile are left out."""
    with ExitStack() as stack:
        files = [stack.enter_context(_opened(store, "embeddings", shard)) for shard, _ in sources]
        yield [file for file in files if file is not None]


def _saved(counts: dict[str, Any], device: str, sources: Sequence[Manifest]) -> dict[str, Any]:
    """What the passages cost that were embedded, and what those would have cost that were not.

    Where too few were embedded to tell, a passage costs what it did when the vectors were made that were taken over.
    """
    seconds, embedded, reused = counts.pop("embed_seconds"), counts["passages_embedded"], counts["passages_reused"]
    each = seconds / embedded if embedded else 0.0
    measured = [m.stats["seconds_per_passage"] for m in sources if m.stats.get("device") == device]
    if embedded < _TELLING and measured:
        each = measured[0]
    saved = f"{'gpu_' if device == 'cuda' else ''}seconds_saved"
    stats = {"embed_seconds": round(seconds, 3), "seconds_per_passage": round(each, 6)}
    if reused:
        stats |= {saved: round(reused * each, 3), "vectors_from": ", ".join(m.snapshot for m in sources)}
    return stats


def _embedding_tools(work: Work) -> dict[str, Any]:
    """What `embed_shard` works with, the same for every shard of a wiki."""
    settings = work.settings
    return {
        "encoder": load_engine(work.config.find_model(), settings.engine, _threads(), settings.cache_folder),
        "params": msgspec.convert(work.recipe.params, EmbeddingParams),
        "metadata": work.recipe.metadata(work.config),
    }


def _name_pages(work: Work, quarantine: Quarantine) -> None:
    """Give passages that were set aside the titles of their pages."""
    if not quarantine.rows:
        return
    with work.store.file("articles", work.recipe.shard).open("rb") as articles:
        table = pq.read_table(articles, columns=["page_id", "title"])
    titles = dict(zip(table["page_id"].to_pylist(), table["title"].to_pylist(), strict=True))
    quarantine.rows = [msgspec.structs.replace(row, title=titles[row.page_id]) for row in quarantine.rows]


# --- rows that were set aside


def _set_aside(work: Work, quarantine: Quarantine, mine: Claim) -> dict[str, FileRecord]:
    """Write down what was set aside, for the manifest to list; nothing, and no file, where nothing was."""
    path = work.store.quarantine(work.recipe.artifact, work.recipe.shard)
    if quarantine.rows:
        with whole_file(path, fence=mine.fence) as out:
            quarantine.write(out)
        return {work.store.name(path): out.record}
    if path.exists():
        with mine.fence():
            path.unlink(missing_ok=True)
    return {}


def passages_set_aside(store: Store, shard: Shard) -> list[str]:
    """Passages of a shard that have no vector, because none could be made."""
    path = store.quarantine("embeddings", shard)
    manifest = store.manifest("embeddings", shard)
    if manifest is None or store.name(path) not in manifest.files:
        return []
    with path.open("rb") as source:
        return [row.passage_id for row in read_quarantine(source)]


class _Nowhere(io.RawIOBase):
    """A file that takes everything and keeps nothing."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return len(memoryview(data).cast("B"))


def _threads() -> int:
    return max(1, int(os.environ.get("OMP_NUM_THREADS", "1") or 1))


def splits_of(
    store: Store, config: WikiConfig, snapshot: Snapshot, run: str = "", *, raw: Manifest | None = None
) -> list[Split]:
    """The dump files of a snapshot, as the raw manifest lists them; each range of a file that has ranges.

    Raises:
        DamagedArtifact: if the ranges of a file are not all of it.
    """
    raw = raw or store.raw_manifest(snapshot)
    splits: list[Split] = []
    for file in raw.counts["files"] if raw else ():
        whole = Split(snapshot, config, store, file["name"], file["sha256"], file["decoded_bytes"], run)
        ranges = msgspec.convert(file.get("ranges", []), list[Range])
        ends = [0, *accumulate(part.size_bytes for part in ranges)]
        if ranges and ([part.start for part in ranges], ends[-1]) != (ends[:-1], whole.decoded_bytes):
            raise DamagedArtifact(f"{whole.file_name}: its ranges leave gaps: delete it, then materialize raw_dump")
        splits += [
            replace(whole, number=number, part=part, restarts=file.get("restarts", ""))
            for number, part in enumerate(ranges)
        ] or [whole]
    return splits
