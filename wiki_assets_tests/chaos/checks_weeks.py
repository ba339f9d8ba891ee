"""What must hold of a wiki that is kept for many weeks, whatever is killed in them."""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import numpy as np
import pyarrow.parquet as pq

from wiki_assets import failpoints
from wiki_assets.defs import work
from wiki_assets.defs.headless import is_published
from wiki_assets.defs.retention import dates_on_disk
from wiki_assets.defs.rollback import rollback
from wiki_assets.defs.upkeep.prune import prune
from wiki_assets.defs.week import percent
from wiki_assets.keys import Snapshot, shards_of
from wiki_assets.search import Searcher
from wiki_assets.settings import Settings
from wiki_assets.stages import embeddings, tokens
from wiki_assets.stages.embeddings import embed_passages, read_vectors
from wiki_assets.stages.passages import Passage, cut_page
from wiki_assets.stages.word_pieces import WordPieceTokenizer
from wiki_assets_tests.bench.dumps import fill_store
from wiki_assets_tests.chaos.children import FORESEEN, OK, found_in_child, in_child
from wiki_assets_tests.chaos.plain import PARQUET_STEPS, STEPS, Plain, SmallEncoder
from wiki_assets_tests.chaos.weeks import WIKI, LivingWiki, Page, ledger

POINTS = (*failpoints.COMMIT, "retention.remove")
Vectors = dict[str, "np.ndarray[Any, np.dtype[np.float32]]"]


@dataclass
class Expected:
    """What a snapshot must hold, made of its pages alone: passages by id, their vectors, and their inputs by shard."""

    pages: dict[int, Page]
    passages: dict[str, tuple[Page, Passage]] = field(default_factory=dict)
    vectors: Vectors = field(default_factory=dict)
    inputs: dict[int, Counter[tuple[int, ...]]] = field(default_factory=dict)


def expected_of(
    pages: dict[int, Page], tokenizer: WordPieceTokenizer, *, shards: int = 2, pieces: int = 128
) -> Expected:
    """Cut and embed every page, one passage after the other."""
    found = Expected(dict(pages), inputs={shard: Counter() for shard in range(shards)})
    owners = shards_of(np.array(list(pages), np.int64), shards)
    for (page_id, page), shard in zip(pages.items(), owners.tolist(), strict=True):
        for passage in cut_page(page_id, page.title, page.text, "en", tokenizer, word_pieces=pieces):
            found.passages[passage.passage_id] = page, passage
            ids = np.array(passage.input_ids, np.int32)
            found.vectors[passage.passage_id] = embed_passages([ids], SmallEncoder(), [passage.passage_id])[0]
            found.inputs[shard][tuple(passage.input_ids)] += 1
    return found


class Keeper:
    """Keeps a living wiki: makes each week's snapshot, publishes it, removes what is too old."""

    def __init__(self, folder: Path, tokenizer: WordPieceTokenizer, seed: int, n_pages: int = 40) -> None:
        self.folder = folder
        self.tokenizer = tokenizer
        self.dice = random.Random(seed)
        self.wiki = LivingWiki(random.Random(f"{seed} wiki"), n_pages)
        self.expected: dict[str, Expected] = {}  # by date
        self.figures: Counter[str] = Counter(dict.fromkeys(("weeks", "kills", "stale hits"), 0))
        self.sizes: list[int] = []

    def fetch(self) -> Plain:
        """This week's dump, fetched, and nothing made of it."""
        dumps = self.folder / f"dumps-{self.wiki.date}"
        dumps.mkdir()
        dump = self.wiki.dump(dumps)
        book = fill_store(dump, self.folder / "root")
        book = replace(book, config=msgspec.structs.replace(book.config, max_loss=0.5))  # of few pages, a few are many
        self.expected[self.wiki.date] = expected_of(self.wiki.pages, self.tokenizer)
        return Plain(book, Settings(root=str(self.folder / "root")), dump.snapshot)

    def a_week(self, kills: int = 0) -> Plain:
        """Let a week pass, make its snapshot while it is killed so many times, and look at everything."""
        before = dict(self.wiki.pages)
        if self.expected:
            self.figures.update(self.wiki.live())
        plain = self.fetch()
        for _ in range(kills):
            rule = f"{self.dice.choice(POINTS)}=kill@{self.dice.randrange(1, 30)}"
            code = in_child(lambda: make(plain), rule)
            assert code in (OK, FORESEEN, -9), f"{rule}: exit code {code}"
            self.figures["kills"] += code == -9
        make_whole(plain)
        self.figures["weeks"] += 1
        self._check(plain, before)
        return plain

    def _check(self, plain: Plain, before: dict[int, Page]) -> None:
        date = plain.snapshot.date
        expected = self.expected[date]
        files_hold(plain, expected)
        index_holds(plain, expected)
        dates = sorted(self.expected)
        if len(dates) > 1:
            old = self.expected[dates[-2]]
            counts = totals(plain, "articles")
            assert {name: counts[name] for name in ledger(before, expected.pages)} == ledger(before, expected.pages)
            reused = sum(
                n for shard, inputs in expected.inputs.items() for key, n in inputs.items() if key in old.inputs[shard]
            )
            counts = totals(plain, "embeddings")
            assert counts["passages_reused"] == reused, "other passages were taken over than those that are the same"
            self.figures["passages"] += counts["passages"]
            self.figures["reused"] += reused
            self.figures["stale hits"] += stale_hits(plain, old, expected)
            assert self.figures["stale hits"] == 0
        self.sizes.append(disk_is_bounded(plain, dates))
        if len(self.sizes) > 4:
            assert self.sizes[-1] < 1.5 * max(self.sizes[2:4]), f"the disk fills up: {self.sizes}"

    def rolled_back(self, plain: Plain) -> None:
        """The build before answers at once, and stays until something newer comes."""
        dates = sorted(self.expected)
        before = replace(plain, snapshot=Snapshot(WIKI, dates[-2]))
        pointer = plain.book.store.pointer(WIKI)
        assert in_child(lambda: rollback(WIKI, plain.settings)) == OK, "the build before is gone"
        index_holds(before, self.expected[dates[-2]])
        make_whole(plain)
        assert (plain.book.store.pointer(WIKI) or {})["snapshot"] == dates[-2], "a rollback was undone"
        self.figures["rollbacks"] += 1
        if self.dice.random() < 0.5:
            assert in_child(lambda: rollback(WIKI, plain.settings, undo=True)) == OK
            assert plain.book.store.pointer(WIKI) == pointer
            index_holds(plain, self.expected[dates[-1]])

    def summary(self) -> dict[str, Any]:
        """Figures to report."""
        figures = dict(self.figures)
        figures["reuse %"] = percent(figures.pop("reused", 0), figures.pop("passages", 0))
        return figures | {"bytes at the end": self.sizes[-1], "most bytes": max(self.sizes)}


def make(plain: Plain) -> None:
    """Make what is not made of a snapshot, each stage as its asset does; publish it; remove what is too old."""
    book, snapshot = plain.book, plain.snapshot
    if not all(book.made("articles", shard) for shard in book.shards(snapshot)):
        plain.step("split")
        plain.step("articles")
    work.drop_fragments(work.splits_of(book.store, book.config, snapshot))
    for name in STEPS[STEPS.index("tokens") : -1]:
        plain.step(name)
    if not is_published(book, snapshot):
        plain.step("published_index")
    prune(book, None)


def make_whole(plain: Plain) -> None:
    """Make it to the end; a store that a kill ruined is made again."""
    for _ in range(3):
        if (code := in_child(lambda: make(plain))) == OK:
            return
        assert code == FORESEEN, f"exit code {code}"
    raise AssertionError(f"{plain.snapshot}: not made in three tries")


def totals(plain: Plain, artifact: str) -> Counter[str]:
    """The counts of a snapshot's shards, summed."""
    found: Counter[str] = Counter()
    for shard in plain.book.shards(plain.snapshot):
        manifest = plain.book.store.manifest(artifact, shard)
        assert manifest is not None, f"{artifact} {shard}: not there"
        found.update({name: n for name, n in manifest.counts.items() if isinstance(n, int)})
    return found


def files_hold(plain: Plain, expected: Expected) -> None:
    """The Parquet files hold the snapshot's passages and no other, their vectors bit for bit as if made today."""
    found: Vectors = {}
    for shard in plain.book.shards(plain.snapshot):
        with plain.book.store.file("embeddings", shard).open("rb") as source:
            names, vectors = read_vectors(source)
        found |= dict(zip(names, vectors, strict=True))
    assert found.keys() == expected.vectors.keys()
    wrong = [name for name, vector in found.items() if vector.tobytes() != expected.vectors[name].tobytes()]
    assert not wrong, f"{len(wrong)} vectors are not their passages', the first {wrong[0]}"


def index_holds(plain: Plain, expected: Expected) -> None:
    """The published index holds the snapshot's passages and no other: ids, vectors, titles, revisions and texts."""
    rows = found_in_child(lambda: _rows(plain))
    assert rows.keys() == expected.passages.keys(), "other passages than the snapshot's"
    for name, (vector, document, title, revision) in rows.items():
        page, passage = expected.passages[name]
        assert np.abs(vector - expected.vectors[name]).max() < 1e-5, f"{name}: another vector"
        text = page.text[passage.start : passage.end].strip()
        assert (document, title, revision) == (text, page.title, page.revision), f"{name}: an older page's"


def _rows(plain: Plain) -> dict[str, Any]:
    from wiki_assets.resources.chroma import open_store

    pointer = plain.book.store.pointer(WIKI)
    assert pointer is not None
    assert pointer["snapshot"] == plain.snapshot.date, f"{pointer['collection']} is published"
    folder = plain.book.store.build(plain.snapshot, pointer["build"]) / "chroma"
    with open_store(folder) as client:
        found: Any = client.get_collection(pointer["collection"]).get(include=["embeddings", "documents", "metadatas"])
    vectors = np.asarray(found["embeddings"], np.float32)
    return {
        name: (vectors[i], found["documents"][i], found["metadatas"][i]["title"], found["metadatas"][i]["revision"])
        for i, name in enumerate(found["ids"])
    }


def stale_hits(plain: Plain, before: Expected, now: Expected) -> int:
    """Ask for what is gone, by its own words and vectors; how many answers are not of this week."""
    gone = sorted(before.passages.keys() - now.passages.keys())
    current = {(p.page_id, p.title, p.revision, p.text[s.start : s.end].strip()) for p, s in now.passages.values()}

    def ask() -> int:
        searcher = Searcher(plain.settings, encoder_of=lambda _: SmallEncoder())
        stale = 0
        for name in gone[::4]:
            page, passage = before.passages[name]
            question = f"{page.title}: {page.text[passage.start : passage.end].strip()}"[:500]
            hits = searcher.search(question, wiki=WIKI, k=5).hits
            assert hits
            stale += sum((hit.page_id, hit.title, hit.revision, hit.passage) not in current for hit in hits)
        searcher.close()
        return stale

    return found_in_child(ask)


def disk_is_bounded(plain: Plain, dates: list[str]) -> int:
    """Nothing lies about that retention does not keep; returns the bytes that are there."""
    config, store = plain.book.config, plain.book.store
    root = Path(str(store.wiki(WIKI)))
    there = dates_on_disk(plain.book)
    assert there == dates[-config.keep_snapshots :], f"snapshots {there}"
    builds = [folder for folder in (root / "index").iterdir() if (folder / "chroma").exists()]
    assert len(builds) <= config.keep_builds, f"builds {builds}"
    assert not list(root.rglob("*.part")), "half-written files"
    assert not (root / ".trash").exists(), "what was removed is still there"
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


# --- the Parquet files alone, without a Chroma store


def two_weeks_of_files(folder: Path, tokenizer: WordPieceTokenizer, seed: int) -> tuple[Plain, Expected]:
    """Articles to embeddings of two weeks; the second holds what it should."""
    keeper = Keeper(folder, tokenizer, seed, 20)
    for week in range(2):
        if week:
            keeper.wiki.live()
        plain = keeper.fetch()
        for name in PARQUET_STEPS:
            plain.step(name)
    expected = keeper.expected[plain.snapshot.date]
    files_hold(plain, expected)
    return plain, expected


def made_again(plain: Plain) -> dict[str, int]:
    """Make the files again where they are stale: how many shards each stage made, and how many passages it embedded."""
    before = {name: _versions(plain, name) for name in PARQUET_STEPS[1:]}
    made = {name: plain.step(name) for name in PARQUET_STEPS[1:]}
    untouched = {name for name in before if _versions(plain, name) == before[name]}
    assert untouched == {name for name, n in made.items() if not n}, "what was not made was written"
    counts = totals(plain, "embeddings")
    fresh = made["embeddings"] > 0
    return made | {name: counts[f"passages_{name}"] if fresh else 0 for name in ("embedded", "reused")}


def _versions(plain: Plain, artifact: str) -> dict[str, int]:
    store = plain.book.store
    return {s.name: store.manifest_path(artifact, s).stat().st_mtime_ns for s in plain.book.shards(plain.snapshot)}


def other_word_pieces(plain: Plain, tokenizer: WordPieceTokenizer, pages: dict[int, Page]) -> None:
    """Another tokenizer reads the same text as other word pieces: no vector may be taken over, all must be right."""
    real = WordPieceTokenizer.wrapped

    def wrapped(self: WordPieceTokenizer, ids: list[int]) -> list[int]:
        return [*real(self, ids)[:-1], 7]

    with (
        mock.patch.object(tokens, "CODE_VERSION", "tokens-other"),
        mock.patch.object(WordPieceTokenizer, "wrapped", wrapped),
    ):
        made = made_again(plain)
        expected = expected_of(pages, tokenizer)
        files_hold(plain, expected)
    assert (made["articles"], made["tokens"], made["embeddings"], made["reused"]) == (0, 2, 2, 0)


def publish_and_roll_back(folder: Path, tokenizer: WordPieceTokenizer, seed: int) -> None:
    """Three weeks without kills, and back by one."""
    keeper = Keeper(folder, tokenizer, seed, 12)
    for _ in range(3):
        plain = keeper.a_week()
    keeper.rolled_back(plain)


# --- broken builds


@contextmanager
def vectors_known_by(name_of: Callable[[dict[str, Any]], str]) -> Iterator[None]:
    """Take vectors over by something else than what the model read of a passage."""
    real = work.embed_shard

    def embed(passages: Any, out: Any, **options: Any) -> dict[str, Any]:
        rows = pq.read_table(passages, columns=["passage_id", "page_id", "ordinal"]).to_pylist()
        passages.seek(0)
        with mock.patch.object(embeddings, "input_hashes", return_value=[name_of(row) for row in rows]):
            return real(passages, out, **options)

    with mock.patch.object(work, "embed_shard", embed):
        yield
