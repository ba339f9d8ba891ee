"""What must hold of the commit protocol: chaos tests ask it of the build, mutant tests of broken ones."""

import os
import random
import shutil
import signal
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import psutil

from wiki_assets import claims, failpoints
from wiki_assets.files import read_manifest
from wiki_assets.settings import Settings
from wiki_assets_tests.bench.dumps import fill_store
from wiki_assets_tests.chaos.checks_weeks import make
from wiki_assets_tests.chaos.children import CHILDREN, FORESEEN, OK, OS_ERROR, found_in_child, in_child, start
from wiki_assets_tests.chaos.plain import PARQUET_STEPS, Plain
from wiki_assets_tests.chaos.power import Recorder
from wiki_assets_tests.chaos.weeks import LivingWiki
from wiki_assets_tests.processes import wait_until

EXPECTED = {"kill": -9, "enospc": FORESEEN, "eio": OS_ERROR}


def stages_before(plain: Plain, folder: Path, steps: Iterable[str]) -> dict[str, Path]:
    """For each step a root in which everything before it is done. Made in child processes."""
    found: dict[str, Path] = {}
    root = plain.root
    for name in steps:
        found[name] = folder / f"before-{name}"
        shutil.copytree(root, found[name])
        root = folder / f"after-{name}"
        shutil.copytree(found[name], root)
        code = in_child(lambda root=root, name=name: plain.at(root).step(name))
        assert code == OK, f"{name}: exit code {code}"
    return found


def points_of(plain: Plain, before: Path, name: str, scratch: Path) -> dict[str, int]:
    """How often a step reaches each point of the commit protocol."""
    root = scratch / f"count-{name}"
    shutil.copytree(before, root)
    note = scratch / f"count-{name}.txt"

    def act() -> None:
        plain.at(root).step(name)
        note.write_text("\n".join(f"{point} {n}" for point, n in failpoints.hits.items()))

    assert in_child(act, "") == OK
    shutil.rmtree(root)
    return {point: int(n) for point, n in (line.split() for line in note.read_text().splitlines())}


def fails_safely(plain: Plain, before: Path, name: str, rule: str, scratch: Path, oracle: dict[str, str]) -> None:
    """Fail a step at one point, look at what is there, and do the step again: the result is the oracle's."""
    root = scratch / "trial"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(before, root)
    trial = plain.at(root)
    code = in_child(lambda: trial.step(name), rule)
    action = rule.partition("=")[2].partition("@")[0]
    foreseen = FORESEEN if name == "chroma_collection" and action != "kill" else OK  # it makes all errors its own
    assert code in (EXPECTED[action], OK, foreseen), f"{name} {rule}: exit code {code}"
    assert trial.phantoms() == [], f"{name} {rule}"
    torn = {path for path, digest in trial.bytes_made().items() if digest != oracle[path]}
    assert not torn, f"{name} {rule}: {torn} are not whole"
    done = trial.done()
    assert in_child(lambda: trial.step(name)) == OK, f"{name} {rule}: not made again"
    assert trial.phantoms() == [], f"{name} {rule}, made again"
    assert trial.leftovers() == [], f"{name} {rule}: temporary files stay"
    again = trial.done()
    assert done.items() <= again.items(), f"{name} {rule}: what was done was done again"
    made = trial.bytes_made()
    assert made == {path: oracle[path] for path in made}, f"{name} {rule}: other bytes"
    if name == "published_index":
        assert trial.book.store.pointer(trial.snapshot.wiki), rule


def power_loss_is_survived(plain: Plain, folder: Path, seeds: Iterable[int]) -> int:
    """Record the Parquet steps twice, the second time with another recipe, and lose power at random moments.

    What counts as done afterwards must be, byte for byte; and what a caller was told of must be there.

    Returns:
        How many crash states were looked at.
    """
    recorder = Recorder(plain.root)
    commit = claims.Claim.commit

    def told(claim: claims.Claim, manifest: object) -> object:
        result = commit(claim, manifest)  # type: ignore[arg-type]
        recorder.told(Path(str(claim.manifest_path)))
        return result

    with recorder.recording(), mock.patch.object(claims.Claim, "commit", told):
        for name in PARQUET_STEPS:
            plain.step(name)
        other = changed(plain)
        for name in ("tokens", "embeddings"):
            other.step(name)
    n_states = 0
    for seed in seeds:
        target = folder / f"crash-{seed}"
        moment, told_of = recorder.crash(seed, target)
        phantoms = plain.at(target).phantoms()
        assert phantoms == [], f"seed {seed}, after event {moment}"
        for path in told_of:
            where = target / Path(path).relative_to(plain.root)
            assert read_manifest(where) is not None, f"seed {seed}: {path} was done, and is gone"
        shutil.rmtree(target, ignore_errors=True)
        n_states += 1
    return n_states


def changed(plain: Plain) -> Plain:
    """The same root with another passage length: tokens and what follows are made anew over what is there."""
    book = plain.book
    config = msgspec.structs.replace(book.config, passage_word_pieces=96)
    return Plain(type(book)(config, book.store), plain.settings, plain.snapshot, plain.real_model, "changed")


def stale_writer_is_fenced(plain: Plain, folder: Path, name: str) -> None:
    """A worker stops before it puts its file in place; another run makes the shard; then the first goes on."""
    root = folder / "fenced"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(plain.root, root)
    stale, fresh = plain.at(root), changed(plain.at(root))
    stale.run, fresh.run = "stale", "fresh"
    with stopped_at("file.check=stop@1", lambda: stale.step(name)) as process:
        assert in_child(lambda: fresh.step(name)) == OK
        os.kill(process.pid or 0, signal.SIGCONT)
        process.join(60)
    assert process.exitcode == FORESEEN, f"{name}: the stale run was not told, exit code {process.exitcode}"
    assert fresh.phantoms() == []
    runs = {m.run for m in fresh.manifests().values() if m.artifact == name}
    assert runs == {"fresh"}, f"{name}: published by {runs}"


@contextmanager
def stopped_at(rule: str, act: Callable[[], object]) -> Iterator[Any]:
    """A child process that has come to a point where it stops, until somebody continues it."""
    process = start(act, rule)
    try:
        wait_until(lambda: _is_stopped(process.pid), within_s=60, what=rule)
        yield process
    finally:
        if process.is_alive():
            process.kill()
        process.join(10)


def _is_stopped(pid: int | None) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def kills_end_in_the_same_bytes(folder: Path, seed: int, n_kills: int, *, real_every: int) -> dict[str, object]:
    """Kill the whole pipeline at random times, go on until it ends, and compare with a run that nobody disturbed.

    Args:
        folder: scratch.
        seed: decides when.
        n_kills: how many.
        real_every: one in so many trials computes with the model that is shipped.

    Returns:
        Figures for the report.
    """
    rng = random.Random(seed)
    figures: dict[str, object] = {"kills": 0, "phantom-done": 0, "done-redone": 0, "identical": 0}
    extra: list[float] = []
    oracles: dict[bool, tuple[Plain, dict[str, str], dict[str, str], float, float]] = {}
    for trial in range(n_kills):
        real = trial % real_every == 0
        if real not in oracles:
            plain = Plain.laid_out(folder / f"oracle-{real}", real_model=real)
            untouched = folder / f"untouched-{real}"
            shutil.copytree(plain.root, untouched)
            took, spent = _run_of(plain)
            oracles[real] = plain.at(untouched), plain.bytes_made(), rows_of(plain), took, spent
        untouched_plain, files, rows, took, spent = oracles[real]
        root = folder / f"trial-{trial}"
        shutil.copytree(untouched_plain.root, root)
        plain = untouched_plain.at(root)
        _, wasted = _run_of(plain, kill_after_s=rng.uniform(0, took))
        figures["kills"] = trial + 1
        assert plain.phantoms() == [], f"seed {seed}, trial {trial}"
        done = {path: (root / path).read_bytes() for path in plain.manifests()}
        _, resumed = _run_of(plain)
        extra.append((wasted + resumed) / spent - 1)
        redone = [path for path, text in done.items() if (root / path).read_bytes() != text]
        assert redone == [], f"seed {seed}, trial {trial}: done again"
        assert plain.bytes_made() == files, f"seed {seed}, trial {trial}: other bytes"
        assert rows_of(plain) == rows, f"seed {seed}, trial {trial}: another index"
        assert plain.leftovers() == []
        figures["identical"] = trial + 1
        shutil.rmtree(root)
    figures["extra CPU, median"] = f"{statistics.median(extra):.0%}"
    figures["extra CPU, most"] = f"{max(extra):.0%}"
    return figures


def _run_of(plain: Plain, kill_after_s: float | None = None) -> tuple[float, float]:
    """All steps in a child, to their end or until it is killed: wall and CPU seconds, from when the model is loaded."""
    ours, theirs = CHILDREN.Pipe(duplex=False)

    def run() -> None:
        plain.load_model()
        theirs.send(time.process_time())
        plain.all_steps()
        theirs.send(time.process_time())

    process = start(run)
    theirs.close()
    loaded, began = ours.recv(), time.monotonic()
    if kill_after_s is None or ours.poll(kill_after_s):
        try:
            spent = ours.recv() - loaded
        except EOFError:
            raise AssertionError("not made to the end; the error is above") from None
    else:
        used = psutil.Process(process.pid).cpu_times()
        spent = used.user + used.system - loaded
        process.kill()
    took = time.monotonic() - began
    process.join(60)
    return took, spent


def a_run_that_finds_all_done_is_cheap(folder: Path, seed: int, n_pages: int = 300, *, limit: float = 0.02) -> float:
    """Make a wiki of random pages, and make it again: CPU seconds of the second run as a share of the first's.

    Imports and the model are loaded before; the vectors come from a stand-in for the model, so the first run is cheap.
    """
    folder.mkdir(exist_ok=True)
    dump = LivingWiki(random.Random(seed), n_pages).dump(folder)
    plain = Plain(fill_store(dump, folder / "root"), Settings(root=str(folder / "root")), dump.snapshot)

    def twice() -> list[float]:
        spent = [time.process_time()]
        for _ in range(2):
            make(plain)
            spent.append(time.process_time())
        return [after - before for before, after in pairwise(spent)]

    first, second = found_in_child(twice)
    assert second <= limit * first, f"{second:.3f} CPU-s to find all done, {first:.3f} to make it"
    return second / first


def rows_of(plain: Plain) -> dict[str, str]:
    """The published collection, read in a process of its own."""
    return found_in_child(plain.index_rows)
