"""The last run to claim a shard writes it; every other one is told so."""

import multiprocessing
from contextlib import suppress

import pytest

from wiki_assets.claims import Claim, claim
from wiki_assets.errors import Superseded
from wiki_assets.files import FileRecord, Manifest, read_manifest, whole_file


@pytest.fixture
def place(tmp_path):
    return tmp_path / "tokens" / "20250105" / "00003.json"


def manifest(text: str, record: FileRecord) -> Manifest:
    return Manifest(
        artifact="tokens", wiki="tinywiki", snapshot="20250105", shard=3, fingerprint=text, code_version="1",
        params={}, inputs={}, files={"00003.parquet": record}, counts={},
    )  # fmt: skip


def write(mine: Claim, text: str) -> Manifest:
    with whole_file(mine.manifest_path.with_suffix(".parquet"), fence=mine.fence) as out:
        out.write(text.encode())
    return mine.commit(manifest(text, out.record))


def test_the_manifest_remembers_claim_and_run_and_the_claim_is_given_back(place):
    written = write(claim(place, "run-a"), "a")
    assert (written.claim, written.run) == (1, "run-a")
    assert read_manifest(place) == written
    assert [path.name for path in (place.parent / "claims").iterdir()] == ["00003.lock"]
    assert claim(place).number == 2


def test_a_run_that_was_claimed_over_puts_nothing_in_place(place):
    stale = claim(place, "run-a")
    fresh = claim(place, "run-b")
    with pytest.raises(Superseded, match=r"run-b.*after run run-a.*claims 2 and 1"):
        write(stale, "stale")
    assert not place.exists()
    assert not place.with_suffix(".parquet").exists()
    write(fresh, "fresh")
    with pytest.raises(Superseded, match="run-b, which has finished it"):
        write(stale, "stale")
    assert place.with_suffix(".parquet").read_text() == "fresh"
    assert read_manifest(place).fingerprint == "fresh"


def test_a_stale_manifest_is_refused_even_after_its_data_were_in_place(place):
    stale = claim(place, "run-a")
    with whole_file(place.with_suffix(".parquet"), fence=stale.fence) as out:
        out.write(b"stale")
    write(claim(place, "run-b"), "fresh")
    with pytest.raises(Superseded):
        stale.commit(manifest("stale", out.record))
    assert place.with_suffix(".parquet").read_text() == "fresh"


def test_what_is_being_replaced_is_vouched_for_by_nobody(place):
    write(claim(place), "old")
    mine = claim(place)
    assert read_manifest(place).fingerprint == "old"
    with whole_file(place.with_suffix(".parquet"), fence=mine.fence) as out:
        out.write(b"new")
        assert read_manifest(place).fingerprint == "old"
    assert read_manifest(place) is None


def test_a_claim_clears_away_what_a_killed_run_left(place):
    place.parent.mkdir(parents=True)
    leftover = place.parent / ".00003.parquet.1-aa.part"
    leftover.write_bytes(b"half")
    claim(place, writes=[place.with_suffix(".parquet")])
    assert not leftover.exists()


def test_a_worker_whose_file_was_cleared_away_learns_why(place):
    stale = claim(place, "run-a")
    with pytest.raises(Superseded), whole_file(place.with_suffix(".parquet"), fence=stale.fence) as out:  # noqa: PT012
        out.write(b"half")
        write(claim(place, "run-b", writes=[place.with_suffix(".parquet")]), "whole")
    assert place.with_suffix(".parquet").read_text() == "whole"


def _contend(place, name, barrier, results):
    barrier.wait()
    for _ in range(10):
        with suppress(Superseded):
            mine = claim(place, name, writes=[place.with_suffix(".parquet")])
            write(mine, name)
            results.put(mine.number)


def test_processes_that_contend_never_share_a_number_and_leave_one_whole_result(place):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    workers = [context.Process(target=_contend, args=(place, f"run-{n}", barrier, results)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    numbers = [results.get() for _ in range(results.qsize())]
    assert len(set(numbers)) == len(numbers) > 0
    left = read_manifest(place)
    assert left is not None
    assert left.claim == max(numbers)
    assert place.with_suffix(".parquet").read_text() == left.fingerprint == left.run
