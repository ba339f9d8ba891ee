"""lexical_index[date]: the passages of a whole snapshot in one BM25 index, made by one worker.

One index a snapshot, not one a shard: BM25 weighs a word by how many passages have it, so a snapshot's shards cannot
be ranked one by one and then merged; and a question would open hundreds of indexes. Nor would a shard's index live
longer than a week: every shard has some page that changed. Writing it takes a fraction of what embedding takes.

    lexical/<date>/manifest.json     vouches for the newest one
    lexical/<date>/000002/…          its files, never changed, and its manifest once more; 2 is the number of its claim
"""

import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec
import pyarrow.parquet as pq
from upath import UPath

from wiki_assets.claims import claim
from wiki_assets.defs.recipes import Blocked, Cookbook, SnapshotRecipe, code_version
from wiki_assets.errors import LedgerBroken, WikiAssetsError
from wiki_assets.files import FileRecord, Manifest, fingerprint, is_local, local_path, names_in, whole_file, write_json
from wiki_assets.keys import Shard, Snapshot
from wiki_assets.resources.local_copy import local_copy
from wiki_assets.resources.store import Store
from wiki_assets.settings import Settings
from wiki_assets.stages.addresses import language_of
from wiki_assets.stages.lexical import LexicalIndex, build_index

ARTIFACT = "lexical_index"
MAX_THREADS = 8
MIN_SELF_RECALL = 0.95
_SAMPLE_SHARDS, _SAMPLE_PASSAGES, _ASKED_CHARS = 4, 100, 400
_SLOWEST = 60_000  # bytes of the articles files, compressed, that a slow machine takes in per second
_SCRATCH = "wiki_assets-lexical-"


@dataclass(frozen=True)
class LexicalRecipe(SnapshotRecipe):
    """What a snapshot's index would be made from now. `passages` is how many it must hold."""

    passages: int


@dataclass(frozen=True)
class LexicalWork:
    """One snapshot's index to write, as it travels to a worker."""

    recipe: LexicalRecipe
    shards: list[Shard]
    store: Store
    run: str = ""  # the Dagster run that asks for it
    threads: int = 1

    def __str__(self) -> str:
        return f"{self.recipe.snapshot} {ARTIFACT}"

    def deadline_s(self, settings: Settings) -> float:
        """How long it may take: a least time, and more for more text."""
        size = sum(self.store.file("articles", shard).stat().st_size for shard in self.shards)
        return settings.task_seconds + size / _SLOWEST


def lexical_recipe(book: Cookbook, snapshot: Snapshot) -> LexicalRecipe:
    """What a snapshot's index would be made from now.

    Raises:
        Blocked: if articles or tokens of a shard are missing; the message names it.
    """
    versions: dict[str, list[str]] = {"articles": [], "tokens": []}
    passages = 0
    for shard in book.shards(snapshot):
        for artifact, seen in versions.items():
            manifest = book.store.manifest(artifact, shard)
            if manifest is None:
                raise Blocked(f"{artifact} of {shard} is not there: materialize {artifact} first")
            seen.append(manifest.data_version)
            passages += int(manifest.counts.get("passages", 0)) if artifact == "tokens" else 0
    inputs = {artifact: fingerprint(seen) for artifact, seen in versions.items()}
    params = {"language": language_of(snapshot.wiki)}
    return LexicalRecipe(ARTIFACT, snapshot, code_version(ARTIFACT, book.config), params, inputs, passages)


def made_lexical(book: Cookbook, snapshot: Snapshot) -> Manifest | None:
    """The manifest of the index that is there and up to date, else None."""
    manifest = book.store.lexical_manifest(snapshot)
    try:
        up_to_date = manifest is not None and manifest.fingerprint == lexical_recipe(book, snapshot).fingerprint
    except Blocked:
        return None
    return manifest if up_to_date else None


def make_lexical(work: LexicalWork) -> Manifest:
    """Write the index on this machine's disk, then put its files in place, and vouch for them last of all.

    Raises:
        LedgerBroken: if it does not hold every passage.
        Superseded: if another run claimed it meanwhile.
    """
    recipe = work.recipe
    folder = work.store.lexical(recipe.snapshot)
    mine = claim(folder / "manifest.json", work.run)
    _clear_unfinished(folder, mine.number)
    target = folder / f"{mine.number:06d}"
    wall, cpu = time.perf_counter(), time.process_time()
    place = local_path(folder) if is_local(folder) else None
    try:
        with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=place) as scratch:
            language = recipe.params["language"]
            counts = build_index(Path(scratch), _shards(work), language=language, threads=work.threads)
            if counts["documents"] != recipe.passages:
                raise LedgerBroken(
                    f"{work}: {counts['documents']} passages in it, {recipe.passages} were made of the pages"
                )
            targets = {file: target / file.name for file in _files(Path(scratch))}
            records = {work.store.name(there): _put(file, there) for file, there in targets.items()}
    except Exception:
        mine.require()  # who claims it later takes away what we have begun, and that is what we ran into
        raise
    stats = {
        "seconds": round(time.perf_counter() - wall, 3),
        "cpu_seconds": round(time.process_time() - cpu, 3),
        "threads": work.threads,
    }
    manifest = msgspec.structs.replace(recipe.manifest(records, counts, stats), claim=mine.number, run=work.run)
    write_json(target / "manifest.json", manifest)
    return mine.commit(manifest)


def pointer_part(manifest: Manifest) -> dict[str, Any]:
    """What the pointer says of an index."""
    folder = f"lexical/{manifest.snapshot}/{manifest.claim:06d}"
    return {"folder": folder, "language": manifest.params["language"], "documents": manifest.counts["documents"]}


def lexical_facts(manifest: Manifest) -> dict[str, Any]:
    """What Dagster shows of an index."""
    return {
        **manifest.counts,
        **manifest.stats,
        "size_bytes": sum(record.size_bytes for record in manifest.files.values()),
        "fingerprint": manifest.fingerprint,
        "language": manifest.params["language"],
        "path": pointer_part(manifest)["folder"],
        "dagster/row_count": manifest.counts["documents"],
    }


def examine_lexical(
    book: Cookbook, snapshot: Snapshot, settings: Settings, manifest: Manifest | None, passages: int
) -> tuple[bool, dict[str, Any]]:
    """A fresh reader counts the passages, and finds some by their own words."""
    if manifest is None:
        return False, {"found": "no lexical index that is up to date: materialize lexical_index"}
    about = pointer_part(manifest)
    wiki = book.store.wiki(snapshot.wiki)
    try:
        folder = local_copy(wiki / about["folder"], manifest, wiki, settings.cache_folder)
        index = LexicalIndex(folder, about["language"])
        asked = _own_words(book.store, book.shards(snapshot))
        found = sum(page in [match.page_id for match in index.search(text, 5)] for page, text in asked)
    except WikiAssetsError as error:
        return False, {"found": str(error)}
    recall = found / len(asked) if asked else 1.0
    facts = {**about, "expected": passages, "self_recall": recall, "asked": len(asked)}
    return index.documents == about["documents"] == passages and recall >= MIN_SELF_RECALL, facts


def give_up_lexical(store: Store, snapshot: Snapshot) -> None:
    """Take the word from the newest index, so that another is made. Its files stay where they are."""
    with claim(store.lexical(snapshot) / "manifest.json", "published_index").fence():
        pass


def _own_words(store: Store, shards: list[Shard]) -> list[tuple[int, str]]:
    """Some passages, the same ones each time: their pages, and the title with what they begin with."""
    rng = random.Random(str(shards[0].snapshot))
    asked: list[tuple[int, str]] = []
    for shard in rng.sample(shards, min(_SAMPLE_SHARDS, len(shards))):
        with store.file("articles", shard).open("rb") as source:
            pages = {p["page_id"]: p for p in pq.read_table(source, columns=["page_id", "title", "text"]).to_pylist()}
        with store.file("passages", shard).open("rb") as source:
            spans = pq.read_table(source, columns=["page_id", "start", "end"]).to_pylist()
        for span in rng.sample(spans, min(_SAMPLE_PASSAGES // _SAMPLE_SHARDS, len(spans))):
            page = pages[span["page_id"]]
            text = page["text"][span["start"] : span["end"]].strip()[:_ASKED_CHARS]
            asked.append((span["page_id"], f"{page['title']}. {text}"))
    return asked


def _shards(work: LexicalWork) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Articles and passages of each shard; a shard's files are closed when the next one is asked for."""
    for shard in work.shards:
        with (
            work.store.file("articles", shard).open("rb") as articles,
            work.store.file("passages", shard).open("rb") as passages,
        ):
            yield articles, passages


def _clear_unfinished(folder: UPath, number: int) -> None:
    """Delete what killed and superseded runs left: what they had begun, and files that no manifest vouches for."""
    if not is_local(folder):
        for name in names_in(folder):
            if name.isdecimal() and int(name) < number and not (folder / name / "manifest.json").exists():
                folder.fs.rm((folder / name).path, recursive=True)
        return
    for entry in local_path(folder).iterdir():
        begun = entry.name.isdecimal() and not (entry / "manifest.json").exists()
        if entry.is_dir() and (begun or entry.name.startswith(_SCRATCH)):
            shutil.rmtree(entry, ignore_errors=True)


def _files(folder: Path) -> list[Path]:
    """The files of an index, without its locks; the one that names the others last."""
    files = [file for file in folder.iterdir() if file.suffix != ".lock"]
    return sorted(files, key=lambda file: (file.name == "meta.json", file.name))


def _put(file: Path, target: UPath) -> FileRecord:
    with file.open("rb") as source, whole_file(target) as out:
        shutil.copyfileobj(source, out, 4 << 20)
    file.unlink()
    return out.record
