"""The whole pipeline as plain steps in one process, without Ray or Dagster: what faults are injected into.

Each step does what its asset does: only what no manifest vouches for, one shard after the other.
"""

import hashlib
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from wiki_assets.defs import work
from wiki_assets.defs.evaluation import evaluation_recipe, made_evaluation, make_evaluation
from wiki_assets.defs.indexing import index_shards
from wiki_assets.defs.lexical import LexicalWork, lexical_recipe, made_lexical, make_lexical
from wiki_assets.defs.publish import examine, publish, refuse
from wiki_assets.defs.recipes import SHARD_ARTIFACTS, Cookbook
from wiki_assets.errors import WikiAssetsError
from wiki_assets.files import Manifest, read_manifest, verify_files
from wiki_assets.keys import Shard, Snapshot
from wiki_assets.settings import Settings
from wiki_assets_tests.bench.dumps import fill_store, thinned, tiny_dump

PARQUET_STEPS = ("split", "articles", "tokens", "embeddings")
STEPS = (*PARQUET_STEPS, "lexical_index", "chroma_collection", "evaluation", "published_index")
N_PAGES = 12


class SmallEncoder:
    """Stands for the model where faults are about files: a vector from the ids alone, the same in every process."""

    dim, engine, batch_pieces, device = 384, "small", 4096, "cpu"

    _table = np.random.default_rng(1).normal(size=(1009, dim)).astype(np.float32)

    def encode(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return (self._table[ids % 1009] * mask[:, :, None]).sum(axis=1)


@dataclass
class Plain:
    """A data root of a small wiki, and its steps."""

    book: Cookbook
    settings: Settings
    snapshot: Snapshot
    real_model: bool = False
    run: str = "plain"

    @classmethod
    def laid_out(cls, root: Path, n_pages: int = N_PAGES, *, real_model: bool = False) -> "Plain":
        """A root with the raw dump fetched and nothing made."""
        root.mkdir(parents=True)
        dump = thinned(tiny_dump(), n_pages, root)
        book = fill_store(dump, root / "root")
        return cls(book, Settings(root=str(root / "root")), dump.snapshot, real_model)

    def at(self, root: Path) -> "Plain":
        """The same wiki under a copy of the root."""
        store = type(self.book.store)(str(root))
        return Plain(
            Cookbook(self.book.config, store), Settings(root=str(root)), self.snapshot, self.real_model, self.run
        )

    @property
    def root(self) -> Path:
        return Path(self.settings.root)

    def load_model(self) -> None:
        """Have this process load the model, where it is the real one."""
        if self.real_model:
            work.load_engine(
                self.book.config.find_model(), self.settings.engine, work._threads(), self.settings.cache_folder
            )

    def step(self, name: str) -> int:
        """Do what is left of a step; returns how many manifests it wrote."""
        with self._engine():
            if name == "split":
                todo = [s for s in self._splits() if not ((made := s.made()) and s.has_fragments(made))]
                return len([work.split_dump_file(split) for split in todo])
            if name == "evaluation":
                return self._evaluate()
            if name == "published_index":
                return self._publish()
            if name == "lexical_index":
                return self._lexical()
            todo = [self.book.recipe(name, shard) for shard in self.book.shards(self.snapshot)]
            todo = [recipe for recipe in todo if self.book.made_by(recipe) is None]
            if name == "chroma_collection":
                for _, result in index_shards(self.book, self.settings, self.snapshot, todo) if todo else ():
                    if isinstance(result, Exception):
                        raise result
                return len(todo)
            make: Callable[..., Manifest] = getattr(work, f"make_{name}")
            more = (self._splits(),) if name == "articles" else ()
            for recipe in todo:
                make(work.Work(recipe, self.book.config, self.book.store, self.settings, self.run), *more)
            return len(todo)

    def all_steps(self) -> int:
        """From the dump to the pointer; returns how many manifests were written."""
        return sum(self.step(name) for name in STEPS)

    def _splits(self) -> list[work.Split]:
        return work.splits_of(self.book.store, self.book.config, self.snapshot, self.run)

    def _lexical(self) -> int:
        if made_lexical(self.book, self.snapshot) is not None:
            return 0
        recipe = lexical_recipe(self.book, self.snapshot)
        make_lexical(LexicalWork(recipe, self.book.shards(self.snapshot), self.book.store, self.run))
        return 1

    def _evaluate(self) -> int:
        if made_evaluation(self.book, self.snapshot) is not None:
            return 0
        make_evaluation(evaluation_recipe(self.book, self.snapshot), self.book.store, self.settings, run=self.run)
        return 1

    def _publish(self) -> int:
        gate = examine(self.book, self.snapshot, self.settings)
        if not gate.passed:
            raise WikiAssetsError(f"{gate.reasons}: {refuse(self.book, self.snapshot, gate)}")
        publish(self.book, self.snapshot, gate)
        return 0

    @contextmanager
    def _engine(self) -> Any:
        if self.real_model:
            yield
        else:
            with mock.patch.object(work, "load_engine", return_value=SmallEncoder()):
                yield

    def manifests(self) -> dict[str, Manifest]:
        """Everything that what is there says is done: by path under the root."""
        found = {}
        for path in sorted(self.root.rglob("*.json")):
            if path.name not in ("wiki.json", "build.json", "published.json") and (manifest := read_manifest(path)):
                found[str(path.relative_to(self.root))] = manifest
        return found

    def done(self) -> dict[str, str]:
        """What the next run will not make again: artifact and shard, and the fingerprint of its bytes."""
        found = {}
        for artifact in SHARD_ARTIFACTS:
            for shard in self.book.shards(self.snapshot):
                if manifest := self.book.made(artifact, shard):
                    found[f"{artifact} {shard.name}"] = manifest.data_version
        return found

    def phantoms(self) -> list[str]:
        """Manifests that vouch for bytes which are not there; a split's pages may be gone, once they are merged."""
        bad = []
        for manifest in self.manifests().values():
            wiki = self.book.store.wiki(self.snapshot.wiki)
            if manifest.artifact == "split" and not all((wiki / name).exists() for name in manifest.files):
                continue
            try:
                verify_files(wiki, manifest)
            except WikiAssetsError as error:
                bad.append(str(error))
        return bad

    def leftovers(self) -> list[str]:
        """Temporary files."""
        return [str(path) for path in self.root.rglob("*.part")]

    def bytes_made(self) -> dict[str, str]:
        """SHA-256 of every Parquet file, by its path under the root."""
        return {
            str(path.relative_to(self.root)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.root.rglob("*.parquet"))
            if "redirects" not in path.name
        }

    def index_rows(self) -> dict[str, str]:
        """What a reader of the published collection finds: a hash of vector and text by passage id."""
        from wiki_assets.resources.chroma import open_store

        pointer = self.book.store.pointer(self.snapshot.wiki)
        assert pointer is not None, "nothing is published"
        folder = self.book.store.build(Snapshot(pointer["wiki"], pointer["snapshot"]), pointer["build"]) / "chroma"
        with open_store(folder) as client:
            rows: Any = client.get_collection(pointer["collection"]).get(include=["embeddings", "documents"])
        vectors = np.asarray(rows["embeddings"], np.float32)
        return {
            name: hashlib.sha256(vectors[i].tobytes() + rows["documents"][i].encode()).hexdigest()
            for i, name in enumerate(rows["ids"])
        }

    def shard(self, number: int) -> Shard:
        return Shard(self.snapshot, number)
