"""What must hold when compute fails: chaos tests ask it of the build, mutant tests of broken ones."""

import random
import signal
import socket
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import msgspec
import psutil
import pyarrow.parquet as pq
import ray.exceptions

from wiki_assets import failpoints
from wiki_assets.defs import failures, poison, publish
from wiki_assets.defs.fan_out import fan_out
from wiki_assets.defs.rescue import Maker
from wiki_assets.defs.work import Work, make_tokens, try_tokens
from wiki_assets.errors import ComputeLost, LedgerBroken, NotPoison, Overdue, SourceUnavailable, TransientSource
from wiki_assets.files import Manifest
from wiki_assets.keys import Shard
from wiki_assets.resources import liveness
from wiki_assets.resources.models import fastest_encoding, load_encoding
from wiki_assets.stages.passages import cut_page
from wiki_assets.stages.quarantine import Quarantined
from wiki_assets.stages.tokens import encode_page
from wiki_assets.stages.word_pieces import WordPieceTokenizer
from wiki_assets_tests.chaos import ray_tasks
from wiki_assets_tests.chaos.children import FORESEEN, OK, in_child
from wiki_assets_tests.chaos.kept import SNAPSHOT, Kept
from wiki_assets_tests.chaos.plain import Plain
from wiki_assets_tests.processes import free_port, wait_until

LIMIT_S = 60  # for what shall end by itself in a few seconds


# --- poison: a row costs only itself


def pages_of(plain: Plain, shard: Shard) -> list[int]:
    """Page ids of a shard, in its order."""
    with plain.book.store.file("articles", shard).open("rb") as articles:
        return pq.read_table(articles, columns=["page_id"])["page_id"].to_pylist()


def quarantined(plain: Plain, artifact: str, shard: Shard) -> list[Quarantined]:
    """What a shard's manifest says was set aside."""
    path = plain.book.store.quarantine(artifact, shard)
    manifest = plain.book.store.manifest(artifact, shard)
    assert manifest is not None, f"{shard} {artifact} was not made"
    named = [name for name in manifest.files if name.endswith("quarantine.jsonl")]
    assert named == [f"{artifact}/{SNAPSHOT.date}/{path.name}"] * path.exists()
    if not named:
        return []
    return [msgspec.json.decode(line, type=Quarantined) for line in path.read_bytes().splitlines()]


def a_page_that_fails_costs_only_itself(plain: Plain, action: str, reason: str) -> None:
    """Of a root with articles, tokens are made though a page cannot be encoded; it is missing, counted and named."""
    shard = plain.shard(0)
    pages = pages_of(plain, shard)
    bad = pages[len(pages) // 2]
    code = in_child(lambda: plain.step("tokens"), f"tokens.page[{bad}]={action}")
    assert code == OK, f"the shard was not made: exit code {code}"
    only_these_are_missing(plain, {bad: reason})


def only_these_are_missing(plain: Plain, bad: dict[int, str]) -> None:
    """Every page has tokens and passages, or is in a quarantine with its reason: to the row."""
    aside: dict[int, str] = {}
    tokens: list[int] = []
    passages: set[int] = set()
    articles: list[int] = []
    for shard in plain.book.shards(plain.snapshot):
        articles += pages_of(plain, shard)
        aside |= {row.page_id: row.reason for row in quarantined(plain, "tokens", shard)}
        manifest = plain.book.store.manifest("tokens", shard)
        assert manifest is not None
        here = pq.read_table(str(plain.book.store.file("tokens", shard)), columns=["page_id"])["page_id"].to_pylist()
        assert manifest.counts["pages_in"] == manifest.counts["pages"] + sum(manifest.counts["quarantined"].values())
        assert manifest.counts["pages"] == len(here)
        tokens += here
        of = pq.read_table(str(plain.book.store.file("passages", shard)), columns=["page_id"])["page_id"].to_pylist()
        passages |= set(of)
    assert aside == bad
    assert sorted(tokens) == sorted(passages) == sorted(set(articles) - set(bad))


class ForkMaker(Maker):
    """The search for poison with forked processes in the place of Ray's workers."""

    trials = 0

    def _run(
        self, task: Any, *payloads: tuple[Work, Sequence[Any]], max_retries: int = 2, **options: Any
    ) -> Iterator[tuple[Work, Any]]:
        for work, arguments in payloads:
            rules = (Path(work.store.root) / ray_tasks.RULES).read_text()
            for _ in range(1 + max_retries):
                ForkMaker.trials += 1
                code = in_child(lambda arguments=arguments: task(*arguments), rules)
                if code >= 0:
                    break
            if code < 0:
                yield work, ray.exceptions.WorkerCrashedError()
            elif code != OK:
                yield work, (LedgerBroken if code == FORESEEN else OSError)(f"exit code {code}")
            else:
                yield work, work.store.manifest(work.recipe.artifact, work.recipe.shard)


def pages_that_kill_are_set_aside(plain: Plain, n_poison: int, seed: int) -> int:
    """Pages that end their worker are found by halving, and all else is made; returns how many trials that took."""
    store = plain.book.store
    rng = random.Random(seed)
    everything = [page for shard in plain.book.shards(plain.snapshot) for page in pages_of(plain, shard)]
    bad = sorted(rng.sample(everything, n_poison))
    (plain.root / ray_tasks.RULES).write_text("; ".join(f"tokens.page[{page}]=kill" for page in bad))
    works = [
        Work(plain.book.recipe("tokens", shard), plain.book.config, store, plain.settings)
        for shard in plain.book.shards(plain.snapshot)
    ]
    ForkMaker.trials = 0
    maker = ForkMaker(make_tokens, try_tokens, lambda *_: 60.0, say=lambda line: None)
    failed = {str(recipe.shard): result for recipe, result in maker.shards(works) if not isinstance(result, Manifest)}
    assert not failed
    only_these_are_missing(plain, dict.fromkeys(bad, "killed_worker"))
    return ForkMaker.trials


class Doomed:
    """A shard over which workers die, for one reason or another."""

    KINDS = ("few", "many", "nothing", "size", "now and then")

    def __init__(self, kind: str, n_rows: int, rng: random.Random) -> None:
        self.kind, self.n_rows, self._rng = kind, n_rows, rng
        self.poison = set(rng.sample(range(n_rows), min(n_rows, rng.randint(1, 16 if kind == "few" else 200))))
        self.alone: dict[int, int] = {}  # how often a row killed by itself
        self.trials = 0

    def survives(self, rows: range, without: Collection[int]) -> bool:
        self.trials += 1
        assert self.trials < 1_000, f"{self.kind}: no end"
        lives = self._lives(rows, without)
        if not lives and len(rows) == 1:
            self.alone[rows[0]] = self.alone.get(rows[0], 0) + 1
        return lives

    def _lives(self, rows: range, without: Collection[int]) -> bool:
        if self.kind == "nothing":
            return False
        if self.kind == "size":
            return len(rows) <= self.n_rows // 2
        if self.kind == "now and then":
            return self._rng.random() < 0.6
        return not (self.poison & set(rows)) - set(without)


def nothing_else_is_blamed_on_a_row(seed: int, n_cases: int = 1_000) -> None:
    """Whatever else ends workers, the search ends, soon, and accuses no row that did not kill twice by itself."""
    rng = random.Random(seed)
    for number in range(n_cases):
        shard = Doomed(Doomed.KINDS[number % len(Doomed.KINDS)], rng.randint(1, 2_000), rng)
        try:
            found = poison.find_poison(shard.survives, shard.n_rows)
        except NotPoison:
            found = []
        assert len(found) <= 16, f"{shard.kind}: {len(found)} rows are blamed"
        innocent = [row for row in found if shard.alone.get(row, 0) < 2]
        assert not innocent, f"{shard.kind}: rows are blamed that did not kill twice by themselves: {innocent}"
        assert shard.kind != "few" or found == sorted(shard.poison)


def any_text_is_taken_in(plain: Plain, texts: dict[str, str], folder: Path) -> dict[str, tuple[float, float]]:
    """Texts that are known to upset tokenizers: their ids decode to them, their passages cover them, no worker dies.

    Returns:
        CPU seconds and MiB of memory that each took, in a process of its own.
    """
    took = {}
    for name, text in texts.items():
        note = folder / "took"
        code = in_child(partial(_take_in, plain, text, note))
        assert code == OK, f"{name}: exit code {code}"
        cpu_s, mib = note.read_text().split()
        took[name] = (float(cpu_s), float(mib))
    return took


def _take_in(plain: Plain, text: str, note: Path) -> None:
    model = plain.book.config.find_model()
    encoding = fastest_encoding(plain.book.config.encoding, plain.settings.cache_folder)
    tokenizer = WordPieceTokenizer(model.tokenizer_file, max_pieces=model.max_pieces)
    before, started = _memory_mib("VmRSS"), time.process_time()
    ids, _ = encode_page(text, encoding)
    passages = cut_page(1, "Title", text, "en", tokenizer, word_pieces=128)
    note.write_text(f"{time.process_time() - started} {_memory_mib('VmHWM') - before}")
    assert load_encoding(plain.book.config.encoding, plain.settings.cache_folder).decode(ids.tolist()) == text
    edges = [0, *(passage.end for passage in passages)]
    assert edges[:-1] == [passage.start for passage in passages]
    assert edges[-1] == len(text)


def _memory_mib(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


# --- Ray's head


def a_silent_head_is_noticed() -> dict[str, float]:
    """Nobody at the head's address, or a stopped process there, is noticed before Ray takes its driver with it."""
    took: dict[str, float] = {}
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        for kind, port in (("gone", free_port()), ("stopped", deaf.getsockname()[1])):
            knock = partial(liveness.answers, timeout_s=0.1)
            watch = liveness.Watch(f"127.0.0.1:{port}", every_s=0.1, patience_s=0.5, answers=knock)
            started = time.monotonic()
            waiting = threading.Event()
            try:
                watch.during(lambda waiting=waiting: waiting.wait(4))
                raise AssertionError(f"a head that is {kind} was not noticed")
            except ComputeLost:
                took[kind] = time.monotonic() - started
            finally:
                waiting.set()
    return took


# --- what is tried again


def only_listed_errors_are_tried_again() -> int:
    """What may pass is tried again; a bug, a full disk, full memory, a lost Ray and a stuck task are not."""
    errors = ray.exceptions
    yes: list[BaseException] = [
        TransientSource("a 503"),
        errors.NodeDiedError("node 7"),
        errors.WorkerCrashedError(),
        errors.RayTaskError("f", "…", TransientSource("a 503")),
        ConnectionResetError(),
        TimeoutError(),
        OSError(116, "stale file handle"),
    ]
    no: list[BaseException] = [
        ValueError("a bug"),
        errors.RayTaskError("f", "…", ValueError("a bug")),
        errors.RayTaskError("f", "…", LedgerBroken("7 pages")),
        errors.OutOfMemoryError("12 GB"),
        errors.OutOfDiskError("full"),
        errors.RuntimeEnvSetupError("no such wheel"),
        errors.TaskUnschedulableError("no GPU anywhere"),
        errors.TaskCancelledError(),
        errors.LocalRayletDiedError(),
        errors.GetTimeoutError("60 s"),
        ComputeLost("no head"),
        Overdue("15 minutes"),
        NotPoison("all rows"),
        SourceUnavailable("404"),
        OSError(28, "no space left"),
        FileNotFoundError(2, "gone"),
        PermissionError(13, "not yours"),
        failpoints.Panic("unwrap"),
    ]
    assert [error for error in yes if not failures.may_pass(error)] == []
    assert [error for error in no if failures.may_pass(error)] == []
    return len(yes) + len(no)


# --- nothing is lost between the stages


def a_lost_row_stops_publication(plain: Plain) -> None:
    """Rows that went without a word in the ledger are missed by the gate: of a root with embeddings."""
    made = {
        artifact: [m for shard in plain.book.shards(plain.snapshot) if (m := plain.book.made(artifact, shard))]
        for artifact in ("articles", "tokens", "embeddings")
    }
    made["chroma_collection"] = [
        msgspec.structs.replace(m, counts=dict.fromkeys(("vectors", "indexed", "verified"), m.counts["vectors"]))
        for m in made["embeddings"]
    ]
    assert all(len(manifests) == plain.book.config.shards for manifests in made.values())
    passed, facts = publish._stages(made)
    assert passed, facts
    lost = [("tokens", ["pages"]), ("tokens", ["pages", "pages_in"]), ("embeddings", ["vectors"])]
    lost += [("embeddings", ["passages", "vectors"]), ("chroma_collection", ["vectors", "indexed", "verified"])]
    for artifact, counts in lost:
        first, *others = made[artifact]
        less = {**first.counts, **{count: first.counts[count] - 1 for count in counts}}
        passed, facts = publish._stages({**made, artifact: [msgspec.structs.replace(first, counts=less), *others]})
        assert not passed, f"one row less in {artifact} ({', '.join(counts)}), and the gate opens: {facts}"


# --- with Ray: workers


def worker_of(note: Path) -> psutil.Process:
    """The worker that left its id in a file."""
    return psutil.Process(int(wait_until(lambda: note.exists() and note.read_text(), within_s=LIMIT_S, what=str(note))))


def gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def a_stuck_task_is_ended(folder: Path, limit_s: float = LIMIT_S, gone_s: float = 20) -> dict[str, float]:
    """Of tasks that share two workers, one never ends: it is cancelled at its deadline, its worker goes, others end."""
    note, never, deadline_s = folder / "stuck", folder / "never", 2.0
    results: dict[Any, Any] = {}
    found_at: dict[Any, float] = {}

    def collect() -> None:
        payloads = [(0, (str(note), str(never))), *[(n, (str(folder / f"{n}"), str(folder))) for n in range(1, 5)]]
        for name, result in fan_out(ray_tasks.note_and_wait, payloads, deadline_s=deadline_s):
            results[name], found_at[name] = result, time.monotonic()

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    try:
        process = worker_of(note)
        began = time.monotonic()
        thread.join(limit_s)
        assert 0 in results, f"a task with a deadline of {deadline_s} s is still waited for after {limit_s} s"
        assert isinstance(results[0], Overdue), results[0]
        assert f"process {process.pid}" in str(results[0])
        wait_until(lambda: gone(process), within_s=gone_s, what="the end of the stuck worker")
        assert all(isinstance(results[n], int) for n in range(1, 5)), results
        return {"overrun": found_at[0] - began - deadline_s}
    finally:
        never.write_text("now")
        thread.join(LIMIT_S)


class Killer(threading.Thread):
    """Kills workers at their tasks, at random moments; none of the tasks more often than Ray tries again."""

    def __init__(self, what: str, n_kills: int, seed: int, *, per_task: int = 2) -> None:
        super().__init__(daemon=True)
        self._what, self._n_kills, self._rng, self._per_task = what, n_kills, random.Random(seed), per_task
        self._over = threading.Event()
        self.kills: dict[str, int] = {}  # by task

    def run(self) -> None:
        from ray.experimental.internal_kv import _internal_kv_list

        seen: set[str] = set()
        while not self._over.is_set() and sum(self.kills.values()) < self._n_kills:
            for sign in sorted(key.decode() for key in _internal_kv_list("", namespace="wiki_assets")):
                task, _, attempt = sign.rpartition("/")
                if sign in seen or self.kills.get(task, 0) >= self._per_task:
                    continue
                seen.add(sign)
                self._over.wait(self._rng.random() * 0.2)
                if self._kill(int(attempt.split(".")[0])):
                    self.kills[task] = self.kills.get(task, 0) + 1
                break
            self._over.wait(0.01)

    def _kill(self, pid: int) -> bool:
        """Whether it was at a task of ours; not that it did not finish it in that moment."""
        try:
            process = psutil.Process(pid)
            if f"ray::{self._what}" not in " ".join(process.cmdline()):
                return False
            process.kill()
            return True
        except psutil.NoSuchProcess:
            return False

    def stop(self) -> int:
        """End it; returns how many workers were killed."""
        self._over.set()
        self.join(30)
        return sum(self.kills.values())


def killed_workers_cost_nothing(plain: Plain, oracle: dict[str, str], n_kills: int, seed: int) -> dict[str, Any]:
    """Workers are killed while tokens are made of a root with articles; all shards are made, byte for byte."""
    works = [
        Work(plain.book.recipe("tokens", shard), plain.book.config, plain.book.store, plain.settings)
        for shard in plain.book.shards(plain.snapshot)
    ]
    killer = Killer("make_tokens", n_kills, seed)
    started = time.monotonic()
    killer.start()
    results = dict(fan_out(make_tokens, [(work.recipe.shard, (work,)) for work in works], deadline_s=300))
    seconds = time.monotonic() - started
    kills = killer.stop()
    failed = {str(shard): result for shard, result in results.items() if not isinstance(result, Manifest)}
    assert not failed
    assert plain.phantoms() == []
    made = plain.bytes_made()
    assert {path: made[path] for path in oracle} == oracle
    return {"kills": kills, "completed": f"{len(results)}/{len(works)}", "seconds": round(seconds, 1)}


def attempts_are_counted(folder: Path) -> int:
    """A task that ends its worker each time is tried three times, and one that raises once."""
    note = folder / "attempts"
    payloads = [("dies", (str(note), signal.SIGSEGV))]
    ((_, result),) = fan_out(ray_tasks.note_and_die, payloads, deadline_s=60)
    assert isinstance(result, ray.exceptions.WorkerCrashedError), result
    ((_, result),) = fan_out(ray_tasks.panic, [("panics", ())], deadline_s=60)
    assert isinstance(result, ray.exceptions.RayTaskError), result
    assert "unwrap" in str(result)
    attempts = len(note.read_text().splitlines())
    assert attempts == 3
    return attempts


# --- Ray processes of somebody's own


@dataclass
class Family:
    """A process and everything below it, as far as it was ever seen."""

    pid: int
    seen: dict[tuple[int, float], psutil.Process]

    @classmethod
    def of(cls, pid: int) -> "Family":
        return cls(pid, {}).look()

    def look(self) -> "Family":
        try:
            for process in psutil.Process(self.pid).children(recursive=True):
                self.seen[process.pid, process.create_time()] = process
        except psutil.Error:
            pass
        return self

    def member(self, name: str) -> psutil.Process | None:
        for process in self.look().seen.values():
            try:
                if process.name() == name and not gone(process):
                    return process
            except psutil.Error:
                continue
        return None

    def alive(self) -> list[str]:
        """Those that are still there."""
        found = []
        for process in self.seen.values():
            try:
                if not gone(process):
                    found.append(f"{process.pid} {process.name()}")
            except psutil.Error:
                continue
        return found


def runs_by_status(instance: dg.DagsterInstance) -> dict[str, int]:
    """How many runs there are of each status."""
    found: dict[str, int] = {}
    for run in instance.get_runs():
        found[run.status.value] = found.get(run.status.value, 0) + 1
    return found


def failure_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str:
    """What a failed run's step said."""
    for record in instance.all_logs(run.run_id):
        event = record.dagster_event
        if event is not None and event.is_step_failure:
            data = event.step_failure_data
            return str(data.user_failure_data.description if data.user_failure_data else data.error)
    return ""


def stamps(kept: Kept, artifact: str) -> dict[str, int]:
    """When each shard of an artifact was made."""
    return {cell: at for (name, cell), at in kept.stamps().items() if name == artifact}
