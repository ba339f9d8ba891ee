"""What must hold of upkeep: chaos tests ask it of the build, mutant tests of broken ones."""

import random
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from wiki_assets.defs.upkeep import reap as reaping
from wiki_assets.defs.upkeep.status import forget
from wiki_assets.resources.chroma import open_store, published_collection
from wiki_assets_tests.chaos.kept import CHROMA, SNAPSHOT, Kept, shown
from wiki_assets_tests.processes import WIKI_ASSETS, running, wait_until

Place = tuple[str, str]  # asset and partition
ACTIONS = ("truncate", "flip", "delete")
COLLECTION = "tinywiki-20250105-1"
UNTOUCHED = 3  # the shard whose files are left alone, so that its rows can be held against them


# --- K7: outputs and manifests that are not what was written


@dataclass(frozen=True)
class Fault:
    """One file that is damaged, or rows of the collection."""

    target: str
    action: str
    shard: int = 0

    @property
    def spoils(self) -> str:
        """Two faults that spoil the same thing are not put into one root: which one was found could not be told."""
        if self.target in ("ledger", "quarantine"):  # a dump file's are answered for by one shard
            return f"articles {self.shard}"
        if self.target.startswith(("index", "collection")):
            return "index"
        return f"{self.target.split(' ')[0].replace('passages', 'tokens')} {self.shard}"

    def strike(self, kept: Kept, rng: random.Random) -> None:
        """Do the damage."""
        if self.target.startswith("collection"):
            _spoil_rows(kept, self.action)
            return
        path = self._path(kept)
        data = bytearray(path.read_bytes())
        if self.action == "delete":
            path.unlink()
        elif self.action == "truncate":
            path.write_bytes(data[: rng.randrange(len(data))])
        else:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            path.write_bytes(data)

    def found_in(self, kept: Kept) -> set[Place]:
        """The partitions that are then not what they should be."""
        cell = f"{SNAPSHOT.date}|{self.shard:05d}"
        match self.target.split(" ")[0]:
            case "raw":
                return {("raw_dump", SNAPSHOT.date)}
            case "lexical":
                return {("lexical_index", SNAPSHOT.date)}
            case "evaluation":
                return {("evaluation", SNAPSHOT.date)}
            case "pointer":
                return {("published_index", SNAPSHOT.date)}
            case "ledger" | "quarantine":
                return {("articles", cell)}
            case "passages":
                return {("tokens", cell)}
            case "index" if self.target == "index manifest":
                return {(CHROMA, cell)}
            case "index" | "collection":  # the note that says what the build was begun with, or rows
                return kept.cells(CHROMA) | {("published_index", SNAPSHOT.date)}
            case artifact:
                return {(artifact, cell)}

    def _path(self, kept: Kept) -> Path:
        folder, date, name = kept.wiki_folder, SNAPSHOT.date, f"{self.shard:05d}"
        split, dump_file = folder / "articles" / date / "split", f"tinywiki_content-{date}-{name}.json.bz2"
        special = {
            "raw file": folder / "raw" / date / dump_file,
            "raw manifest": folder / "raw" / date / "manifest.json",
            "ledger": split / f"{dump_file}.json",
            "quarantine": split / f"{dump_file}.quarantine.jsonl",
            "evaluation file": folder / "eval" / date / "report.json",
            "evaluation manifest": folder / "eval" / date / "manifest.json",
            "lexical manifest": folder / "lexical" / date / "manifest.json",
            "pointer": folder / "published.json",
            "index manifest": folder / "index" / f"{date}-1" / "shards" / f"{name}.json",
            "index note": folder / "index" / f"{date}-1" / "build.json",
            "passages file": folder / "passages" / date / f"{name}.parquet",
        }
        if self.target == "lexical file":
            return max((folder / "lexical" / date).rglob("*.store"), key=lambda path: path.stat().st_size)
        artifact, _, part = self.target.partition(" ")
        ending = "json" if part == "manifest" else "parquet"
        return special.get(self.target) or folder / artifact / date / f"{name}.{ending}"


def _spoil_rows(kept: Kept, action: str) -> None:
    folder = kept.wiki_folder / "index" / f"{SNAPSHOT.date}-1" / "chroma"
    if action == "delete":
        shutil.rmtree(folder)
        return
    with open_store(folder, write=True) as client:
        collection: Any = published_collection(client, COLLECTION)
        row = collection.get(where={"shard": UNTOUCHED}, limit=1, include=["embeddings"])
        if action == "truncate":
            collection.delete(ids=row["ids"])
        else:
            collection.update(ids=row["ids"], embeddings=[[-x for x in row["embeddings"][0]]])


def all_faults() -> list[Fault]:
    """Every kind of file there is, damaged in every way."""
    of_shards = ("articles", "tokens", "embeddings")
    kinds = [f"{artifact} {part}" for artifact in of_shards for part in ("file", "manifest")]
    kinds += ["passages file", "ledger", "quarantine", "index manifest"]
    once = [f"{artifact} {part}" for artifact in ("raw", "lexical", "evaluation") for part in ("file", "manifest")]
    once += ["pointer", "index note", "collection"]
    return [
        Fault(kind, action, shard)
        for action in ACTIONS
        for kind in kinds
        for shard in range(UNTOUCHED)
    ] + [Fault(kind, action) for action in ACTIONS for kind in once]  # fmt: skip


def chosen_faults(seed: int, n: int) -> list[list[Fault]]:
    """Some faults of every kind, in groups that can be told apart in one root."""
    rng = random.Random(seed)
    faults = all_faults()
    rng.shuffle(faults)
    by_kind: dict[str, list[Fault]] = {}
    for fault in faults:
        by_kind.setdefault(fault.target, []).append(fault)
    chosen: list[Fault] = []
    while len(chosen) < min(n, len(faults)):  # kinds in turn, so that few faults still touch all of them
        chosen += [kind.pop() for kind in by_kind.values() if kind]
    groups: list[list[Fault]] = []
    for fault in chosen[:n]:
        room = (g for g in groups if fault.spoils not in {f.spoils for f in g} and _apart(fault, g))
        group = next(room, None)
        if group is None:
            groups.append([fault])
        else:
            group.append(fault)
    return groups


def _apart(fault: Fault, group: Sequence[Fault]) -> bool:
    """A ledger is held against the dump it is of, so the two are not damaged at once."""
    kinds = {fault.target, *(f.target for f in group)}
    return not ({"raw file", "raw manifest"} & kinds and {"ledger", "quarantine"} & kinds)


def damage_is_found_and_made_again(kept: Kept, root: Path, faults: Sequence[Fault], seed: int) -> int:
    """Damage a copy; `verify` names exactly what was; what is then made again is that, and the bytes are the same.

    Returns:
        How many faults were found.
    """
    trial = kept.copy(root)
    rng = random.Random(seed)
    bytes_before, stamps = trial.plain.bytes_made(), trial.stamps()
    for fault in faults:
        fault.strike(trial, rng)
    expected = set().union(*(fault.found_in(trial) for fault in faults))
    with trial.instance() as instance:
        report = trial.verify(instance)
        found = {(p.artifact, p.partition) for p in report.damaged()} | set(report.phantoms())
        assert found == expected, f"{faults}: named {found ^ expected} wrongly"
        _, changes = trial.reconcile(instance)
        assert changes, faults
        assert shown(instance) == shown_of(kept) - expected, f"{faults}: Dagster shows something else than is there"
        _, again = trial.reconcile(instance)
        assert not again, f"{faults}: the second time changed {list(again.lines())}"
        trial.make()
        now = trial.stamps()
        remade = {place for place in stamps.keys() | now.keys() if stamps.get(place) != now.get(place)}
        follows = {("published_index", SNAPSHOT.date)}
        if expected & (kept.cells(CHROMA) | {("lexical_index", SNAPSHOT.date)}):
            follows.add(("evaluation", SNAPSHOT.date))  # of another build
        assert remade - follows == expected - follows, f"{faults}: made again {remade ^ expected}"
        trial.reconcile(instance)
        assert trial.verify(instance).whole, faults
        assert shown(instance) == shown_of(kept), faults
    after = trial.plain.bytes_made()
    assert {path: after.get(path) for path in bytes_before} == bytes_before, f"{faults}: other bytes than before"
    assert trial.plain.index_rows() == kept.plain.index_rows(), faults
    return len(faults)


def changed_number_is_found(kept: Kept, root: Path) -> None:
    """A manifest that is well-formed, names the right files, and counts one row more than there is."""
    trial = kept.copy(root)
    path = trial.wiki_folder / "embeddings" / SNAPSHOT.date / "00001.json"
    text = path.read_text()
    number = int(text.partition('"vectors": ')[2].partition(",")[0].split()[0])
    path.write_text(text.replace(f'"vectors": {number}', f'"vectors": {number + 1}'))
    assert path.read_text() != text
    found = [p.name for p in trial.verify(index=False).damaged()]
    assert found == [f"tinywiki embeddings {SNAPSHOT.date}|00001"], found


def shown_of(kept: Kept) -> set[Place]:
    """What Dagster shows of a wiki that nobody damaged."""
    with kept.instance() as instance:
        return shown(instance)


# --- both directions


def status_follows_the_files(kept: Kept, root: Path) -> None:
    """Files vanish, and Dagster's database with them: either way its status is what the files prove, cell by cell."""
    trial = kept.copy(root)
    whole = shown_of(kept)
    gone = {("tokens", f"{SNAPSHOT.date}|00001"), ("embeddings", f"{SNAPSHOT.date}|00002")}
    for artifact, cell in gone:
        (trial.wiki_folder / artifact / SNAPSHOT.date / f"{cell[-5:]}.json").unlink()
    with trial.instance() as instance:
        before = _run_ids(instance)
        _, changes = trial.reconcile(instance, dry_run=True)
        assert shown(instance) == whole, "a dry run changes nothing"
        assert changes.forgotten
        trial.reconcile(instance)
        assert shown(instance) == whole - gone
        assert _run_ids(instance) == before, "what is left keeps its own events"
    shutil.rmtree(trial.root / "dagster")
    with trial.instance() as instance:
        assert shown(instance) == set()
        _, changes = trial.reconcile(instance)
        assert shown(instance) == whole - gone
        assert instance.get_dynamic_partitions("tinywiki_dates") == [SNAPSHOT.date]
        assert not trial.reconcile(instance)[1]


def _run_ids(instance: dg.DagsterInstance) -> set[tuple[str, int]]:
    """The events that still stand for partitions which were never damaged."""
    records = instance.fetch_materializations(dg.AssetKey(["tinywiki", "articles"]), limit=100).records
    return {(r.partition_key or "", r.storage_id) for r in records}


# --- runs whose process is gone


def dead_runs_are_reaped_and_living_ones_are_not(n: int) -> int:
    """Runs of killed processes, of a process whose number another one has now, and of living ones.

    Returns:
        How many were reaped.
    """
    with dg.DagsterInstance.ephemeral() as instance:
        living, dead = [], []
        with sleeping() as process:
            living.append(_tagged_run(instance, process.pid, reaping.birth(process.pid) or ""))
            living.append(_spoken_run(instance, process.pid, after=process))
            dead.append(_tagged_run(instance, process.pid, "an earlier one's"))
            dead.append(_spoken_run(instance, process.pid, long_before=process))
            elsewhere = _tagged_run(instance, 1, "", host="another-machine")
            for status in [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING] * (n // 2):
                with sleeping() as killed:
                    born = reaping.birth(killed.pid) or ""
                dead.append(_tagged_run(instance, killed.pid, born, status=status))
            instance.event_log_storage.set_concurrency_slots("chroma", 1)
            instance.event_log_storage.claim_concurrency_slot("chroma", dead[-1], "step")
            assert {run.run_id for run in reaping.reap(instance, dry_run=True)} == set(dead)
            assert {run.run_id for run in reaping.reap(instance)} == set(dead)
            assert reaping.reap(instance) == [], "the second time there is nothing to do"
        over = {run_id: _status(instance, run_id) for run_id in dead}
        assert set(over.values()) <= {dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED}
        assert over[dead[-1]] == dg.DagsterRunStatus.CANCELED, "what was being cancelled is canceled"
        assert all(_status(instance, run_id) == dg.DagsterRunStatus.STARTED for run_id in [*living, elsewhere])
        slots = instance.event_log_storage.get_concurrency_info("chroma")
        assert slots.active_slot_count == 0, "its place in the pool is free"
    return len(dead)


@contextmanager
def sleeping() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that does nothing, and is killed at the end of the block."""
    process = subprocess.Popen(["sleep", "3600"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _run(instance: dg.DagsterInstance, status: dg.DagsterRunStatus, tags: dict[str, str] | None = None) -> str:
    @dg.job
    def nothing() -> None: ...

    return instance.create_run_for_job(nothing, status=status, tags=tags).run_id


def _tagged_run(
    instance: dg.DagsterInstance,
    pid: int,
    born: str,
    *,
    host: str | None = None,
    status: dg.DagsterRunStatus = dg.DagsterRunStatus.STARTED,
) -> str:
    """A headless run, as the command line tags it."""
    tags = {**reaping.process_tags(), reaping.PID: str(pid), reaping.BORN: born}
    return _run(instance, status, tags | ({reaping.HOST: host} if host else {}))


def _spoken_run(
    instance: dg.DagsterInstance,
    pid: int,
    *,
    after: "subprocess.Popen[bytes] | None" = None,
    long_before: "subprocess.Popen[bytes] | None" = None,
) -> str:
    """A run whose process said so in its events: after a process was born, or an hour before."""
    import psutil
    from dagster._core.events import DagsterEvent, DagsterEventType, EngineEventData
    from dagster._core.events.log import EventLogEntry

    run_id = _run(instance, dg.DagsterRunStatus.STARTED)
    process = after or long_before
    assert process is not None
    at = psutil.Process(process.pid).create_time() + (0.5 if after else -3600.0)
    event = DagsterEvent(
        DagsterEventType.ENGINE_EVENT.value, "nothing", event_specific_data=EngineEventData.in_process(pid)
    )
    entry = EventLogEntry(
        error_info=None, level=10, user_message="", run_id=run_id, timestamp=at, job_name="nothing", dagster_event=event
    )
    instance.handle_new_event(entry)
    return run_id


def _status(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRunStatus:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


# --- R4: what is lost is rebuilt


def lost_is_rebuilt(kept: Kept, root: Path, lose: Callable[[Kept], object]) -> float:
    """Lose something that can be derived; reconcile and rebuild-index bring it back, and nothing is embedded again.

    Returns:
        Seconds that took.
    """
    import time

    from wiki_assets.definitions import build
    from wiki_assets.defs.upkeep.rebuild import rebuild_index

    trial = kept.copy(root)
    stamps, rows = trial.stamps(), kept.plain.index_rows()
    lose(trial)
    started = time.monotonic()
    with trial.instance() as instance:
        trial.reconcile(instance)
        outcome = rebuild_index(
            SNAPSHOT, trial.book.config, trial.plain.settings, instance=instance, build=build
        )  # fmt: skip
        assert outcome.failures == []
        seconds = time.monotonic() - started
        remade = (CHROMA, "evaluation", "published_index")
        assert tuple(outcome.made) == remade, "nothing else was run"
        now = trial.stamps()
        kept_places = [place for place in stamps if place[0] not in remade]
        assert {p: now[p] for p in kept_places} == {p: stamps[p] for p in kept_places}, "nothing was embedded again"
        report, changes = trial.reconcile(instance)
        assert report.whole
        assert not changes, list(changes.lines())
        assert shown(instance) == shown_of(kept)
    assert trial.plain.index_rows() == rows
    return seconds


# --- K9: the daemon dies, and everything with it


def backfills_survive_kills(kept: Kept, folder: Path, n_kills: int, *, server_late: bool) -> dict[str, int]:
    """Two backfills over the same shards; the daemon is killed again and again, and once everything that runs.

    The first kill falls between the making of a run and its start, the second takes the code server and its run.

    Args:
        kept: a wiki that is not indexed.
        folder: an empty one.
        n_kills: of the daemon, 3 at least.
        server_late: after the second kill the daemon is back before the code server is.

    Returns:
        Counts for the report.
    """
    from wiki_assets_tests.chaos.daemon import dagster_of

    trial = kept.copy(folder / "root")
    cells = [shard.partition_key for shard in trial.book.shards(SNAPSHOT)]
    with trial.instance() as instance, dagster_of(trial, folder / "processes") as dagster:

        def runs(*statuses: dg.DagsterRunStatus) -> list[str]:
            return [run.run_id for run in instance.get_runs(dg.RunsFilter(statuses=list(statuses)))]

        def n_made() -> int:
            return len(instance.get_materialized_partitions(dg.AssetKey(["tinywiki", CHROMA])))

        def restart(daemon: "subprocess.Popen[bytes]") -> "subprocess.Popen[bytes]":
            dagster.kill(daemon)
            return dagster.daemon()

        def waits(condition: Callable[[], Any], what: str, every_s: float = 0.3) -> None:
            try:
                wait_until(condition, within_s=240, every_s=every_s, what=what)
            except AssertionError as error:
                raise AssertionError(f"{error}\n{dagster.logs()}") from None

        dagster.wait_until_up()
        dagster.start_sensor("tinywiki_new_snapshots")
        backfills = [dagster.launch_backfill([CHROMA], cells) for _ in range(2)]
        daemon = dagster.daemon()
        waits(instance.get_runs, "a run of a backfill", every_s=0.05)
        daemon, killed = restart(daemon), 1
        waits(lambda: n_made() >= 2, "two shards", every_s=0.1)
        dagster.kill(dagster.code, daemon)
        zombies = runs(dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING)
        assert zombies, "a run was killed with its code server"
        if server_late:
            daemon = dagster.daemon()
        dagster.restart_code_server()
        if not server_late:
            waits(dagster.code_server_answers, "the code server")
            daemon = dagster.daemon()
        waits(lambda: not set(zombies) & set(runs(*reaping.RUNNING)), "the sensor to reap")
        daemon, killed = restart(daemon), killed + 2
        while killed < n_kills - 1:
            before = n_made()
            waits(lambda before=before: n_made() > before or _over(instance, backfills), "progress")
            daemon, killed = restart(daemon), killed + 1
        waits(lambda: n_made() == len(cells) and not runs(*reaping.RUNNING), "every shard")
        daemon, killed = restart(daemon), killed + 1  # so that it looks at once
        waits(lambda: _over(instance, backfills), "the backfills to end")
        assert dagster.counts(CHROMA)["numMaterialized"] == len(cells), "lost partitions"
        events = instance.fetch_materializations(dg.AssetKey(["tinywiki", CHROMA]), limit=1000).records
        computed = [r.partition_key for r in events if _added(r)]
        assert len(set(computed)) == len(computed), "a shard was put in twice"
        tried_again = [run for run in instance.get_runs() if run.parent_run_id]
        assert len({run.parent_run_id for run in tried_again}) == len(tried_again), "one new run for a dead one"
        dates = instance.get_dynamic_partitions("tinywiki_dates")
        assert SNAPSHOT.date in dates
        assert len(dates) == len(set(dates))
        forget(instance, "tinywiki", CHROMA, cells[:1])
        assert dagster.counts(CHROMA)["numMaterialized"] == len(cells) - 1, "the UI shows what was forgotten"
        trial.reconcile(instance)
        assert dagster.counts(CHROMA)["numMaterialized"] == len(cells)
    assert trial.store.builds(SNAPSHOT) == [1], "one build, no other was begun"
    return {"daemon kills": killed, "zombies": len(zombies), "reaped": len(zombies), "lost": 0, "put in twice": 0}


def _added(record: dg.EventLogRecord) -> bool:
    """Whether the run that reported this put rows into the collection."""
    event = record.asset_materialization
    return event is not None and not event.metadata["reused"].value and int(str(event.metadata["added"].value)) > 0


def _over(instance: dg.DagsterInstance, backfills: Sequence[str]) -> bool:
    found = [instance.get_backfill(backfill) for backfill in backfills]
    return all(backfill is not None and backfill.status.value.startswith("COMPLETED") for backfill in found)


def two_runs_of_one_partition_publish_once(kept: Kept, folder: Path) -> dict[str, int]:
    """Two processes make the same index at the same time: one does it, the other is told, or finds it done.

    Returns:
        Counts for the report.
    """
    trial = kept.copy(folder / "root")
    env = {"WIKI_ASSETS_ROOT": str(trial.root), "WIKI_ASSETS_MIRROR": trial.mirror,
           "DAGSTER_HOME": str(trial.root / "dagster")}  # fmt: skip
    command = [*WIKI_ASSETS, "materialize", "tinywiki", "--snapshot", SNAPSHOT.date]
    logs = [folder / f"{name}.log" for name in ("one", "other")]
    with ExitStack() as stack:
        processes = [stack.enter_context(running(command, env=env, log=log)) for log in logs]
        codes = [process.wait(240) for process in processes]
    said = [log.read_text() for log in logs]
    assert 0 in codes, "\n\n".join(said)
    for code, text in zip(codes, said, strict=True):
        assert code == 0 or any(name in text for name in ("another process", "claimed by", "another run")), text
    with trial.instance() as instance:
        trial.reconcile(instance)
        assert trial.verify(instance).whole
        events = instance.fetch_materializations(dg.AssetKey(["tinywiki", CHROMA]), limit=1000).records
        computed = [r.partition_key for r in events if _added(r)]
    assert len(set(computed)) == len(computed), "a shard was put in twice"
    pointer = trial.store.pointer("tinywiki")
    assert pointer is not None
    assert pointer["previous"] is None, "published twice"
    assert trial.plain.index_rows(), "it answers"
    return {"runs": 2, "refused by name": sum(code != 0 for code in codes), "published": 1}
