"""What must hold of the index while its writer is killed, its disk is full, or it is published under queries."""

import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from wiki_assets.defs import indexing
from wiki_assets.keys import Snapshot
from wiki_assets.resources.chroma import open_store
from wiki_assets.search import Searcher
from wiki_assets_tests.chaos.checks_commit import changed, rows_of
from wiki_assets_tests.chaos.children import CHILDREN, FORESEEN, OK, found_in_child, in_child, planted, start
from wiki_assets_tests.chaos.plain import STEPS, Plain, SmallEncoder

INDEX_STEPS = STEPS[STEPS.index("lexical_index") :]


def killed_builds_hold_the_right_rows(
    plain: Plain, before: Path, oracle: dict[str, str], folder: Path, seed: int, n_kills: int
) -> dict[str, Any]:
    """C1: kill the writer of a store at random times; go on; every row must be there, and no other.

    Args:
        plain: the wiki.
        before: a root in which all vectors are made and nothing is indexed.
        oracle: rows that an undisturbed run makes.
        folder: scratch.
        seed: decides when.
        n_kills: how many.
    """
    rng = random.Random(seed)
    resumed: list[float] = []
    for trial in range(n_kills):
        root = folder / f"killed-{trial}"
        shutil.copytree(before, root)
        wiki = plain.at(root)
        with planted(small_batches):
            process = start(lambda wiki=wiki: wiki.step("chroma_collection"))
            process.join(rng.uniform(0.02, 0.5))
            process.kill()
            process.join()
        began = time.monotonic()
        finish(wiki)
        resumed.append(time.monotonic() - began)
        assert rows_of(wiki) == oracle, f"seed {seed}, trial {trial}: other rows"
        shutil.rmtree(root)
    return {"kills": n_kills, "missing or wrong rows": 0, "resumed in at most, s": round(max(resumed), 1)}


def small_batches() -> Any:
    """So that a kill falls between two of them."""
    return mock.patch.object(indexing, "_BATCH_ROWS", 8)


def finish(wiki: Plain) -> None:
    """Index and publish; a build that is given up is made again, once."""
    for name in INDEX_STEPS:
        code = in_child(lambda name=name: wiki.step(name))
        if code == FORESEEN:
            for again in INDEX_STEPS[1:]:
                code = in_child(lambda again=again: wiki.step(again))
        assert code == OK, f"{name}: exit code {code}"


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own that is soon full; None where this process may not mount one."""
    folder.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True, capture_output=True
    )
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def a_full_disk_costs_nothing_that_was_published(
    published: Plain, disk: Path, free_bytes: int, *, preflight: bool
) -> bool:
    """C2: with so much room left, make another build over a published one; then make room and do it again.

    Returns:
        Whether there was room enough from the start.
    """
    root = disk / "root"
    shutil.copytree(published.root, root)
    wiki = published.at(root)
    rows = rows_of(wiki)
    other = changed(wiki)
    with nullcontext() if preflight else planted(no_preflight), reader_of(wiki) as ask:
        asked = ask()  # a service has the index open; one that is opened on a full disk cannot be
        with (disk / "ballast").open("wb") as ballast:
            ballast.write(bytes(max(0, shutil.disk_usage(disk).free - free_bytes)))
        code = in_child(other.all_steps)
        assert code in (OK, FORESEEN), f"{free_bytes:,} bytes free: exit code {code}"
        if code != OK:
            assert ask() == asked, f"{free_bytes:,} bytes free: the published index does not answer"
            assert other.phantoms() == []
        (disk / "ballast").unlink()
        if code != OK:
            assert rows_of(wiki) == rows, f"{free_bytes:,} bytes free: the published index was harmed"
        for _ in range(2):  # the first may find that the build was ruined
            if (again := in_child(other.all_steps)) == OK:
                break
        assert again == OK, f"{free_bytes:,} bytes free: not made after room was made"
    assert rows_of(other) != rows
    assert other.phantoms() == []
    shutil.rmtree(root)
    return code == OK


@contextmanager
def reader_of(wiki: Plain) -> Iterator[Callable[[], list[int]]]:
    """A process that has the published index open; the function asks it, and gives the pages that it finds."""
    ours, theirs = CHILDREN.Pipe()

    def serve() -> None:
        searcher = Searcher(wiki.settings, encoder_of=lambda _: SmallEncoder())
        while theirs.recv():
            theirs.send([hit.page_id for hit in searcher.search("a question", k=5).hits])

    process = start(serve)

    def ask() -> list[int]:
        ours.send(True)
        assert ours.poll(60), "no answer within 60 s"
        return ours.recv()

    try:
        yield ask
    finally:
        ours.send(False)
        process.join(30)


def no_preflight() -> Any:
    """Let indexing begin however full the disk is."""
    return mock.patch.object(indexing, "_require_space")


def readers_see_one_build(
    published: Plain, folder: Path, n_publishes: int, n_clients: int, n_kills: int
) -> dict[str, Any]:
    """C3: clients ask while the pointer goes to and fro between two builds, and publishers are killed half-way."""
    root = folder / "root"
    shutil.copytree(published.root, root)
    first, second = published.at(root), changed(published.at(root))
    pointers = [first.book.store.pointer(first.snapshot.wiki)]
    assert in_child(second.all_steps) == OK
    pointers.append(second.book.store.pointer(second.snapshot.wiki))
    spans = {pointer["build"]: spans_of(first, pointer) for pointer in pointers if pointer}
    assert len(spans) == 2
    stop, results = CHILDREN.Event(), CHILDREN.SimpleQueue()
    clients = [start(partial(_ask_until, first, spans, stop, results, number)) for number in range(n_clients)]
    try:
        for number in range(n_publishes):
            there, back = pointers[number % 2], pointers[(number + 1) % 2]

            def publish(there: Any = there) -> None:
                now = first.book.store.pointer(first.snapshot.wiki)
                first.book.store.publish(first.snapshot.wiki, there, instead_of=now)

            if number < n_kills:
                rule = ("file.write=kill@1", "file.fsync=kill@1", "file.replace=kill@1", "file.sync_folder=kill@1")
                assert in_child(publish, rule[number % len(rule)]) == -9
                assert first.book.store.pointer(first.snapshot.wiki) in (there, back)
            assert in_child(publish) == OK
            time.sleep(0.05)  # let the clients ask: what they find is asserted, not when
    finally:
        stop.set()
        for client in clients:
            client.join(60)
            assert client.exitcode is not None, "a client does not end"
        answers = [results.get() for _ in clients]
    asked, mixed, errors = (sum(answer[i] for answer in answers) for i in range(3))
    builds = set().union(*(answer[3] for answer in answers))
    assert (mixed, errors) == (0, 0), answers
    assert asked >= n_clients
    return {
        "publishes": n_publishes,
        "killed": n_kills,
        "queries": asked,
        "mixed": 0,
        "errors": 0,
        "builds": len(builds),
    }


def spans_of(wiki: Plain, pointer: dict[str, Any]) -> set[tuple[int, int, int]]:
    """Which passages a build holds: page, start and end. Read in a process of its own."""

    def read() -> set[tuple[int, int, int]]:
        folder = wiki.book.store.build(Snapshot(pointer["wiki"], pointer["snapshot"]), pointer["build"]) / "chroma"
        with open_store(folder) as client:
            found = client.get_collection(pointer["collection"]).get(include=["metadatas"])
        return {(row["page_id"], row["start"], row["end"]) for row in found["metadatas"] or []}

    return found_in_child(read)


def _ask_until(wiki: Plain, spans: dict[int, set], stop: Any, results: Any, number: int) -> None:
    """The body of a client: ask until told to stop; count answers that are of no one build."""
    asked = mixed = errors = 0
    builds: set[int] = set()
    try:
        searcher = Searcher(wiki.settings, encoder_of=lambda _: SmallEncoder())
        while not stop.is_set() or not asked:
            try:
                answer = searcher.search(f"question {number} {asked}", k=8)
            except Exception as error:
                print(f"client {number}: {type(error).__name__}: {error}", flush=True)
                errors += 1
                break
            asked += 1
            builds.add(answer.build)
            mixed += not {(hit.page_id, hit.start, hit.end) for hit in answer.hits} <= spans[answer.build]
        searcher.close()
    finally:
        results.put((asked, mixed, errors, builds))


def second_writers_are_refused(plain: Plain, before: Path, folder: Path, n: int) -> int:
    """C4: while one process holds a store, others try to write it.

    Returns:
        How many were refused.
    """
    root = folder / "held"
    shutil.copytree(before, root)
    wiki = plain.at(root)
    store = wiki.book.store.build(wiki.snapshot, 1) / "chroma"
    ready, end = CHILDREN.Event(), CHILDREN.Event()

    def hold() -> None:
        with open_store(store, write=True):
            ready.set()
            end.wait(120)

    holder = start(hold)
    try:
        assert ready.wait(60)

        def intrude() -> None:
            with open_store(store, write=True) as client:
                client.get_or_create_collection("intruder", embedding_function=None)

        refused = sum(in_child(intrude) == FORESEEN for _ in range(n))
    finally:
        end.set()
        holder.join(30)
    assert refused == n, f"{n - refused} of {n} writers were let in"
    assert in_child(intrude) == OK  # and the lock ends with its holder
    return refused


def wrong_rows_are_not_published(plain: Plain, before: Path, folder: Path, spoil: Callable[[Any], None]) -> None:
    """Rows are spoiled after they were added and before they are read back: the build must be given up."""
    root = folder / "spoiled"
    shutil.copytree(before, root)
    wiki = plain.at(root)

    def act() -> None:
        real = indexing.add_rows

        def add_and_spoil(collection: Any, rows: Any, *, fresh: bool) -> int:
            added = real(collection, rows, fresh=fresh)
            spoil(collection)
            return added

        with mock.patch.object(indexing, "add_rows", add_and_spoil):
            for name in INDEX_STEPS:
                wiki.step(name)

    code = in_child(act)
    assert code == FORESEEN, f"exit code {code}"
    assert wiki.book.store.pointer(wiki.snapshot.wiki) is None, "a spoiled build was published"
    finish(wiki)


def another_vector(collection: Any) -> None:
    """One row gets a vector that is not its own."""
    one = collection.get(limit=1)["ids"]
    vector = np.zeros(SmallEncoder.dim, np.float32)
    vector[0] = 1
    collection.update(ids=one, embeddings=[vector])


def a_row_less(collection: Any) -> None:
    """One row is lost."""
    collection.delete(ids=collection.get(limit=1)["ids"])
