"""C1-C4: the index while its writer is killed, its disk is full, its readers ask, and a second writer comes."""

import subprocess
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import pytest

from wiki_assets.defs import indexing
from wiki_assets.defs.recipes import Cookbook
from wiki_assets.errors import DamagedArtifact
from wiki_assets.resources import chroma
from wiki_assets_tests.chaos import checks_index as checks
from wiki_assets_tests.chaos.checks_commit import rows_of, stages_before
from wiki_assets_tests.chaos.children import OK, in_child, planted
from wiki_assets_tests.chaos.mutants_commit import write_in_place
from wiki_assets_tests.chaos.plain import STEPS, Plain

pytestmark = pytest.mark.chroma


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Plain:
    return Plain.laid_out(tmp_path_factory.mktemp("plain") / "wiki", n_pages=30)


@pytest.fixture(scope="module")
def before(plain, tmp_path_factory) -> dict[str, Path]:
    return stages_before(plain, tmp_path_factory.mktemp("steps"), STEPS)


@pytest.fixture(scope="module")
def published(plain, before, tmp_path_factory) -> Plain:
    whole = plain.at(before["published_index"])
    assert in_child(lambda: whole.step("published_index")) == OK
    return whole


@pytest.mark.chaos("C1")
def test_a_writer_that_is_killed_leaves_no_wrong_row(
    plain, before, published, tmp_path, chaos_seed, chaos_tier, record_property
):
    n_kills = 20 if chaos_tier == "nightly" else 6
    oracle = rows_of(published)
    figures = checks.killed_builds_hold_the_right_rows(
        plain, before["lexical_index"], oracle, tmp_path, chaos_seed, n_kills
    )
    for name, value in figures.items():
        record_property(name, value)


@pytest.fixture
def disk(tmp_path):
    try:
        with checks.small_disk(tmp_path / "disk", "48m") as folder:
            yield folder
    except (subprocess.CalledProcessError, FileNotFoundError, PermissionError):
        pytest.skip("this process may not mount a file system")


@pytest.mark.chaos("C2")
def test_a_full_disk_costs_nothing_that_was_published(published, disk, chaos_tier, record_property):
    sizes = [0, 4_000, 40_000, 100_000, 300_000, 600_000, 1_000_000, 2_000_000, 4_000_000, 30_000_000]
    if chaos_tier == "pr":
        sizes = sizes[::2] + sizes[-1:]
    enough = [
        checks.a_full_disk_costs_nothing_that_was_published(published, disk, size, preflight=preflight)
        for size in sizes
        for preflight in ((False, True) if size > 1_000_000 else (False,))
    ]
    record_property("sizes", len(enough))
    record_property("typed failures", enough.count(False))
    record_property("recovered", len(enough))


@pytest.mark.chaos("C3")
def test_readers_see_one_whole_build_while_others_are_published(published, tmp_path, chaos_tier, record_property):
    n_publishes, n_clients, n_kills = (20, 4, 5) if chaos_tier == "nightly" else (8, 2, 4)
    for name, value in checks.readers_see_one_build(published, tmp_path, n_publishes, n_clients, n_kills).items():
        record_property(name, value)


@pytest.mark.chaos("C4")
def test_a_second_writer_is_refused(plain, before, tmp_path, record_property):
    record_property("refused", checks.second_writers_are_refused(plain, before["lexical_index"], tmp_path, 10))


@pytest.mark.parametrize("spoil", [checks.another_vector, checks.a_row_less])
def test_a_build_with_a_wrong_row_is_given_up(spoil, plain, before, tmp_path):
    checks.wrong_rows_are_not_published(plain, before["lexical_index"], tmp_path, spoil)


# Negative controls


@pytest.mark.chaos("mutants")
def test_rows_that_are_not_read_back_are_caught(plain, before, tmp_path):
    with planted(lambda: mock.patch.object(indexing, "check_rows")), pytest.raises(AssertionError):
        checks.wrong_rows_are_not_published(plain, before["lexical_index"], tmp_path, checks.another_vector)


@pytest.mark.chaos("mutants")
def test_a_missing_writers_lock_is_caught(plain, before, tmp_path):
    with (
        planted(lambda: mock.patch.object(chroma, "locked", return_value=nullcontext())),
        pytest.raises(AssertionError, match="let in"),
    ):
        checks.second_writers_are_refused(plain, before["lexical_index"], tmp_path, 1)


@pytest.mark.chaos("mutants")
def test_adding_to_the_published_build_is_caught(published, disk):
    with planted(lambda: mock.patch.object(Cookbook, "build_for", return_value=1)), pytest.raises(AssertionError):
        checks.a_full_disk_costs_nothing_that_was_published(published, disk, 1_000_000, preflight=False)


@pytest.mark.chaos("mutants")
def test_a_pointer_that_is_written_in_place_is_caught(published, tmp_path):
    with planted(write_in_place), pytest.raises((AssertionError, DamagedArtifact)):
        checks.readers_see_one_build(published, tmp_path, 4, 1, 4)
