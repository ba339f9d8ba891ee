"""A deployment of one test: a data root, a mirror that serves the tiny wiki, a Dagster instance, one shared Ray."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import dagster as dg
import msgspec
import pytest

from wiki_assets.definitions import build
from wiki_assets.defs.headless import Outcome, materialize_snapshot
from wiki_assets.defs.instance import open_instance
from wiki_assets.defs.recipes import Cookbook
from wiki_assets.defs.wikis import WikiConfig, wiki_config
from wiki_assets.keys import Shard, Snapshot
from wiki_assets.resources.compute import joined_ray
from wiki_assets.resources.store import Store
from wiki_assets.settings import Settings
from wiki_assets_tests.tinywiki.serve import serving

SNAPSHOT = Snapshot("tinywiki", "20250105")


@pytest.fixture(scope="session")
def mirror() -> Iterator[str]:
    """A dump server on this machine that holds the tiny wiki."""
    with serving() as address:
        yield address


@dataclass
class Deployment:
    """A wiki kept under one root."""

    settings: Settings
    config: WikiConfig
    instance: dg.DagsterInstance

    @property
    def store(self) -> Store:
        return Store(self.settings.root)

    @property
    def book(self) -> Cookbook:
        return Cookbook(self.config, self.store, self.settings.chroma)

    def materialize(
        self, until: str = "published_index", snapshot: Snapshot = SNAPSHOT, *, since: str = "raw_dump"
    ) -> Outcome:
        """What `wiki-assets materialize` does, on the Ray of the session."""
        return materialize_snapshot(
            snapshot,
            self.config,
            self.settings,
            instance=self.instance,
            build=build,
            since=since,
            until=until,
            ray_is_up=True,
        )

    def run(self, stages: str | list[str], *cells: Shard, raise_on_error: bool = False) -> dg.ExecuteInProcessResult:
        """One Dagster run of some stages over a range of cells, as the UI would launch it."""
        names = [stages] if isinstance(stages, str) else stages
        keys = [dg.AssetKey([self.config.wiki, name]) for name in names]
        job = build(self.settings, wikis=[self.config], ray=joined_ray()).resolve_implicit_global_asset_job_def()
        tags = {
            "dagster/asset_partition_range_start": cells[0].partition_key,
            "dagster/asset_partition_range_end": cells[-1].partition_key,
        }
        return job.execute_in_process(
            instance=self.instance,
            asset_selection=keys,
            partition_key=cells[0].partition_key if len(cells) == 1 else None,
            tags=tags if len(cells) > 1 else None,
            raise_on_error=raise_on_error,
        )

    def materialized(self, stage: str) -> set[str]:
        """Partitions that Dagster shows as materialized."""
        return set(self.instance.get_materialized_partitions(dg.AssetKey([self.config.wiki, stage])))

    def events(self, stage: str) -> list[dg.AssetMaterialization]:
        """Every materialization ever reported of a stage, newest first."""
        records = self.instance.fetch_materializations(dg.AssetKey([self.config.wiki, stage]), limit=1000).records
        return [r.asset_materialization for r in records if r.asset_materialization]

    def with_config(self, **changes: object) -> "Deployment":
        """The same root and instance, with other settings of the wiki."""
        return replace(self, config=msgspec.structs.replace(self.config, **changes))


@pytest.fixture
def deploy(tmp_path: Path, mirror: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Deployment]]:
    """Make a deployment of the tiny wiki; `shards` as asked."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def make(shards: int = 4, wiki: str = "tinywiki", own_questions: int = 0) -> Deployment:
            monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
            settings = Settings.from_env(
                {"WIKI_ASSETS_ROOT": str(tmp_path / "root"), "WIKI_ASSETS_MIRROR": mirror},
                shards=shards,
            )
            instance = stack.enter_context(open_instance(settings))
            config = wiki_config(wiki, settings, Store(settings.root))
            return Deployment(settings, msgspec.structs.replace(config, own_questions=own_questions), instance)

        yield make
