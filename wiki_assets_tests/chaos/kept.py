"""A wiki that is kept: made whole without Ray, and shown by a Dagster instance of its own. Copied for each fault."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg
import msgspec
import pytest

from wiki_assets.defs import work
from wiki_assets.defs.instance import open_instance
from wiki_assets.defs.raw import fetch_snapshot
from wiki_assets.defs.recipes import SHARD_ARTIFACTS, STAGES, Cookbook
from wiki_assets.defs.upkeep.reconcile import Changes, reconcile
from wiki_assets.defs.upkeep.verify import Report, verify
from wiki_assets.defs.wikis import wiki_config
from wiki_assets.keys import Snapshot
from wiki_assets.resources.mirror import DumpMirror
from wiki_assets.resources.store import Store
from wiki_assets.settings import Settings
from wiki_assets_tests.chaos.plain import STEPS, Plain

SNAPSHOT = Snapshot("tinywiki", "20250105")
CHROMA = "chroma_collection"


@dataclass
class Kept:
    """A data root with everything made, its instance's home inside; `mirror` serves its dump."""

    plain: Plain
    mirror: str
    instances: list[dg.DagsterInstance] = field(default_factory=list)

    @property
    def root(self) -> Path:
        return self.plain.root

    @property
    def book(self) -> Cookbook:
        return self.plain.book

    @property
    def store(self) -> Store:
        return self.plain.book.store

    @property
    def wiki_folder(self) -> Path:
        return self.root / SNAPSHOT.wiki

    def copy(self, root: Path) -> "Kept":
        """The same under another root; nothing is shared."""
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(self.root, root)
        return Kept(self.plain.at(root), self.mirror)

    @contextmanager
    def instance(self) -> Iterator[dg.DagsterInstance]:
        """Dagster's instance of this root."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DAGSTER_HOME", str(self.root / "dagster"))
            with open_instance(self.plain.settings) as instance:
                yield instance

    def verify(self, instance: dg.DagsterInstance | None = None, *, index: bool = True) -> Report:
        return verify(SNAPSHOT.wiki, self.plain.settings, self.store, instance=instance, index=index)

    def reconcile(self, instance: dg.DagsterInstance, *, dry_run: bool = False) -> tuple[Report, Changes]:
        return reconcile(SNAPSHOT.wiki, self.plain.settings, self.store, instance=instance, dry_run=dry_run)

    def make(self) -> None:
        """Make what is not made, stage after stage, each as its asset does: only what no manifest vouches for."""
        mirror = DumpMirror(base_url=self.mirror)
        fetch_snapshot(SNAPSHOT, mirror, self.store, lambda line: None)
        if not all(self.book.made("articles", shard) for shard in self.book.shards(SNAPSHOT)):
            self.plain.step("split")
            self.plain.step("articles")
            work.drop_fragments(work.splits_of(self.store, self.book.config, SNAPSHOT))
        for name in STEPS[STEPS.index("tokens") :]:
            self.plain.step(name)

    def stamps(self) -> dict[tuple[str, str], int]:
        """When each partition was made, as its manifest tells: by asset and partition."""
        found: dict[tuple[str, str], int] = {}
        for artifact in SHARD_ARTIFACTS:
            for shard in self.book.shards(SNAPSHOT):
                build = self.book.current_build(SNAPSHOT) if artifact == CHROMA else None
                path = self.store.manifest_path("index" if build else artifact, shard, build)
                if path.exists():
                    found[artifact, shard.partition_key] = path.stat().st_mtime_ns
        store = self.store
        of_date = {"raw_dump": store.raw, "lexical_index": store.lexical, "evaluation": store.evaluation}
        for artifact, folder in of_date.items():
            path = folder(SNAPSHOT) / "manifest.json"
            if path.exists():
                found[artifact, SNAPSHOT.date] = path.stat().st_mtime_ns
        return found

    def cells(self, artifact: str) -> set[tuple[str, str]]:
        """Every partition of a shard-level asset."""
        return {(artifact, shard.partition_key) for shard in self.book.shards(SNAPSHOT)}


def make_kept(root: Path, mirror: str, *, shards: int = 4, until: str = "published_index") -> Kept:
    """Fetch tinywiki's dump and make everything of it; vectors come from a stand-in for the model."""
    settings = Settings(root=str(root), mirror=mirror)
    store = Store(settings.root)
    store.fix_shard_count(SNAPSHOT.wiki, shards)
    config = msgspec.structs.replace(wiki_config(SNAPSHOT.wiki, settings, store), own_questions=0)
    book = Cookbook(config, store)
    kept = Kept(Plain(book, settings, SNAPSHOT, run="kept"), mirror)
    fetch_snapshot(SNAPSHOT, DumpMirror(base_url=mirror), store, lambda line: None)
    for name in STEPS:
        if name == "tokens":
            work.drop_fragments(work.splits_of(store, book.config, SNAPSHOT))
        kept.plain.step(name)
        if name == until:
            break
    with kept.instance() as instance:
        kept.reconcile(instance)
    return kept


def shown(instance: dg.DagsterInstance, artifacts: Iterable[str] = STAGES) -> set[tuple[str, str]]:
    """What Dagster shows as materialized: asset and partition."""
    return {
        (artifact, partition)
        for artifact in artifacts
        for partition in instance.get_materialized_partitions(dg.AssetKey([SNAPSHOT.wiki, artifact]))
    }


def dagster_home(root: Path) -> dict[str, str]:
    """Environment of a process that works on a root."""
    return {"WIKI_ASSETS_ROOT": str(root), "DAGSTER_HOME": str(root / "dagster"), "PYTHONUNBUFFERED": "1"}


def free_of_settings() -> dict[str, str]:
    """This process's environment without settings of the person who runs the tests."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("WIKI_ASSETS_", "DAGSTER_"))}
