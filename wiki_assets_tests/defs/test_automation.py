"""The sensors and conditions that keep a wiki up to date by themselves, without a daemon."""

from collections import Counter

import dagster as dg
import msgspec
import pytest

from wiki_assets.definitions import build
from wiki_assets.defs.assets import wiki_assets
from wiki_assets.defs.partitions import dates_name
from wiki_assets.defs.recipes import STAGES
from wiki_assets.defs.sensors import new_snapshots
from wiki_assets.defs.wikis import WikiConfig
from wiki_assets.errors import BadRequest
from wiki_assets.keys import Shard, Snapshot
from wiki_assets.resources.mirror import DumpMirror
from wiki_assets.resources.models import DEFAULT_MODEL
from wiki_assets.resources.store import Store
from wiki_assets.settings import Settings
from wiki_assets_tests.bench.tick import WIKI, Automation, weeks
from wiki_assets_tests.resources.faulty_server import FaultyServer
from wiki_assets_tests.resources.test_mirror import new

CONFIG = WikiConfig("xwiki", 3, DEFAULT_MODEL)
DATE = "20260823"


@pytest.fixture
def instance(tmp_path):
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield instance


class Clockwork:
    """Evaluates the conditions as the daemon does, tick after tick, and makes what they ask for by hand."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.defs = build(Settings(root="nowhere"), wikis=[CONFIG])
        self.cursor = None

    def tick(self) -> dict[str, set[str]]:
        """What is asked for now: partitions by stage."""
        result = dg.evaluate_automation_conditions(self.defs, self.instance, cursor=self.cursor)
        self.cursor = result.cursor
        found: dict[str, set[str]] = {}
        for stage in STAGES:
            if keys := result.get_requested_partitions(dg.AssetKey(["xwiki", stage])):
                found[stage] = {str(key) for key in keys}
        return found

    def made(self, stage: str, *partitions: str, version: str = "1") -> None:
        """Report partitions as made."""
        for partition in partitions:
            self.instance.report_runless_asset_event(
                dg.AssetMaterialization(
                    dg.AssetKey(["xwiki", stage]),
                    partition=partition,
                    tags={"dagster/data_version": version, "dagster/data_version_is_user_provided": "true"},
                )
            )


def cells(*numbers: int) -> set[str]:
    return {Shard(Snapshot("xwiki", DATE), number).partition_key for number in numbers}


def test_a_registered_snapshot_is_made_shard_by_shard_and_published_when_all_is_there(instance):
    clock = Clockwork(instance)
    assert clock.tick() == {}
    instance.add_dynamic_partitions(dates_name("xwiki"), [DATE])
    assert clock.tick() == {"raw_dump": {DATE}}
    assert clock.tick() == {}, "a second tick asks for nothing again"
    clock.made("raw_dump", DATE)
    assert clock.tick() == {"articles": cells(0, 1, 2)}
    clock.made("articles", *cells(1))
    assert clock.tick() == {"tokens": cells(1)}, "tokens begin with the first shard"
    clock.made("tokens", *cells(1))
    assert clock.tick() == {"embeddings": cells(1)}, "and so do embeddings"
    clock.made("articles", *cells(0, 2))
    clock.made("embeddings", *cells(1))
    assert clock.tick() == {"tokens": cells(0, 2), "chroma_collection": cells(1)}
    clock.made("chroma_collection", *cells(1))
    clock.made("tokens", *cells(0, 2))
    assert clock.tick() == {"embeddings": cells(0, 2), "lexical_index": {DATE}}
    clock.made("lexical_index", DATE)
    clock.made("embeddings", *cells(0, 2))
    assert clock.tick() == {"chroma_collection": cells(0, 2)}
    clock.made("chroma_collection", *cells(0))
    assert clock.tick() == {}, "a shard is missing"
    clock.made("chroma_collection", *cells(2))
    assert clock.tick() == {"evaluation": {DATE}}
    assert clock.tick() == {}, "the pointer waits for it"
    clock.made("evaluation", DATE)
    assert clock.tick() == {"published_index": {DATE}}
    clock.made("published_index", DATE)
    assert clock.tick() == {}


def test_what_is_made_again_with_the_same_bytes_asks_for_nothing(instance):
    instance.add_dynamic_partitions(dates_name("xwiki"), [DATE])
    clock = Clockwork(instance)
    clock.tick()
    clock.made("raw_dump", DATE)
    clock.made("articles", *cells(0, 1, 2))
    clock.made("tokens", *cells(0, 1, 2))
    clock.tick()
    clock.made("articles", *cells(1))
    assert "tokens" not in clock.tick()
    clock.made("articles", *cells(2), version="2")
    assert clock.tick()["tokens"] == cells(2), "other bytes do"


def test_of_several_wikis_each_is_kept_by_its_own_sensor():
    from wiki_assets.defs.automation import keep_up_to_date

    configs = [CONFIG, msgspec.structs.replace(CONFIG, wiki="ywiki")]
    sensors = [keep_up_to_date(config) for config in configs]
    assets = [asset for config in configs for asset in wiki_assets(config)]
    names = Counter(key.path[0] for sensor in sensors for key in sensor.asset_selection.resolve(assets))
    assert names == {"xwiki": 8, "ywiki": 8}
    assert all(sensor.default_status is dg.DefaultSensorStatus.STOPPED for sensor in sensors)


def test_a_tick_asks_the_database_no_more_the_more_is_made():
    statements = []
    for n_snapshots in (2, 6):
        with dg.DagsterInstance.ephemeral() as instance:
            wiki = Automation(instance, shards=4)
            wiki.know(weeks(n_snapshots))
            ticks = [wiki.keep_up_to_date(name) for name in ("first", "quiet")]
            instance.add_dynamic_partitions(dates_name(WIKI), ["20250105"])
            ticks.append(wiki.keep_up_to_date("registered"))
            wiki.made("raw_dump", "20250105")
            ticks.append(wiki.keep_up_to_date("fetched"))
        assert [tick.requested for tick in ticks] == [{}, {}, {"raw_dump": 1}, {"articles": 4}]
        statements.append([tick.statements for tick in ticks])
    assert statements[0] == statements[1]


# The sensor that looks for new dumps


def look(server: FaultyServer, instance: dg.DagsterInstance, store: Store) -> set[str] | str:
    """One tick: what is registered, or why nothing is."""
    mirror = DumpMirror(base_url=server.url, backoff_s=0, max_attempts=1)
    context = dg.build_sensor_context(instance=instance, resources={"mirror": mirror, "store": store})
    result = new_snapshots(CONFIG)(context)
    if isinstance(result, dg.SkipReason):
        return result.skip_message or ""
    assert isinstance(result, dg.SensorResult)
    assert not result.run_requests
    requests = result.dynamic_partitions_requests or []
    for request in requests:
        instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))
    return {key for request in requests for key in request.partition_keys}


def test_the_newest_complete_snapshot_is_registered_once(instance, tmp_path):
    store = Store(str(tmp_path / "root"))
    with FaultyServer(
        {**new("20260816", "xwiki"), **new(DATE, "xwiki"), **new("20260830", "xwiki", done=False)}
    ) as server:
        assert look(server, instance, store) == {DATE}, "not the older, not the one still being written"
        assert "20260823 is known here and is the newest" in str(look(server, instance, store))
        server.files |= new("20260830", "xwiki")
        assert look(server, instance, store) == {"20260830"}
        for path in [path for path in server.files if "20260830" in path]:
            del server.files[path]
        assert "20260830 is known here and is newer than xwiki-20260823" in str(look(server, instance, store))


def test_what_is_published_already_is_not_made_again(instance, tmp_path):
    store = Store(str(tmp_path / "root"))
    store.fix_shard_count("xwiki", 3)
    store.publish("xwiki", {"wiki": "xwiki", "snapshot": DATE, "build": 1, "collection": "c"}, instead_of=None)
    with FaultyServer(new(DATE, "xwiki")) as server:
        assert "is the newest" in str(look(server, instance, store))


@pytest.mark.parametrize(
    ("files", "reason"),
    [({}, "no"), (new(DATE, "xwiki", done=False), "still being written")],
    ids=["nothing there", "half-written"],
)
def test_the_status_says_why_nothing_happened(files, reason, instance, tmp_path):
    with FaultyServer(files) as server:
        assert reason in str(look(server, instance, Store(str(tmp_path / "root"))))


def test_a_mirror_that_fails_is_a_reason_not_an_error(instance, tmp_path):
    with FaultyServer() as server:
        url = server.url
    gone = FaultyServer.__new__(FaultyServer)
    gone.url = url
    assert "attempts" in str(look(gone, instance, Store(str(tmp_path / "root"))))


def test_a_check_interval_out_of_bounds_is_refused():
    with pytest.raises(BadRequest, match="check_minutes = 0"):
        WikiConfig("xwiki", 3, DEFAULT_MODEL, check_minutes=0)
