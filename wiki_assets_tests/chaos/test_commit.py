"""K1, K2, K3, K8: whatever fails and whenever, nothing counts as done that is not, and nothing is done twice."""

import re
import shutil
from pathlib import Path

import pytest

from wiki_assets import failpoints
from wiki_assets_tests.chaos import checks_commit as checks
from wiki_assets_tests.chaos.plain import PARQUET_STEPS, STEPS, Plain
from wiki_assets_tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Plain:
    """A raw dump, and nothing made of it."""
    return Plain.laid_out(tmp_path_factory.mktemp("plain") / "wiki")


@pytest.fixture(scope="module")
def before(plain, tmp_path_factory) -> dict[str, Path]:
    """A root for each step, in which everything before it is done."""
    return checks.stages_before(plain, tmp_path_factory.mktemp("steps"), STEPS)


@pytest.fixture(scope="module")
def oracle(plain, before) -> dict[str, str]:
    """The bytes that an undisturbed run makes."""
    return plain.at(before["published_index"]).bytes_made()


def test_every_failpoint_in_the_code_is_listed():
    named = set()
    for path in (REPOSITORY / "wiki_assets").rglob("*.py"):
        named |= set(re.findall(r'failpoint\(\s*"([\w.]+)"', path.read_text()))
    assert named == set(failpoints.POINTS)


@pytest.mark.chaos("K2")
@pytest.mark.parametrize("step", STEPS)
def test_every_point_of_the_commit_protocol_may_fail(
    step, plain, before, oracle, tmp_path, chaos_tier, record_property
):
    hits = checks.points_of(plain, before[step], step, tmp_path)
    assert set(hits) <= set(failpoints.POINTS)
    assert hits.keys() >= set(failpoints.COMMIT)
    rules = [
        f"{point}={action}@{n}"
        for point in failpoints.COMMIT
        for n in range(1, hits[point] + 1)
        for action in checks.EXPECTED
    ]
    if chaos_tier == "pr" and step not in PARQUET_STEPS:  # a Chroma store costs a second
        rules = [rule for rule in rules if "=kill" in rule or rule.endswith("=enospc@1")][:12]
    elif chaos_tier == "pr":  # every point of every file, but of its many writes the first ones
        rules = [rule for rule in rules if not rule.startswith("file.write") or int(rule.partition("@")[2]) <= 3]
    for rule in rules:
        checks.fails_safely(plain, before[step], step, rule, tmp_path, oracle)
    record_property("points x actions", len(rules))
    record_property("points", len({rule.split("=")[0] for rule in rules}))


@pytest.mark.chaos("K3")
@pytest.mark.parametrize("step", PARQUET_STEPS)
def test_a_run_that_was_stopped_while_another_took_over_publishes_nothing(
    step, plain, before, tmp_path, record_property
):
    checks.stale_writer_is_fenced(plain.at(before[step]), tmp_path, step)
    record_property("stale commits", 0)


@pytest.mark.chaos("K8")
def test_a_power_loss_leaves_nothing_done_that_is_not(plain, tmp_path, chaos_seed, chaos_tier, record_property):
    root = tmp_path / "root"
    shutil.copytree(plain.root, root)
    seeds = range(chaos_seed, chaos_seed + (2000 if chaos_tier == "nightly" else 200))
    n = checks.power_loss_is_survived(plain.at(root), tmp_path, seeds)
    record_property("crash states", n)
    record_property("bad", 0)


@pytest.mark.chaos("K1")
@pytest.mark.timeout(3600)  # 50 kills with the real model, nightly: ten minutes
def test_kills_at_random_times_end_in_the_same_bytes(tmp_path, chaos_seed, chaos_tier, record_property):
    n_kills, real_every = (50, 1) if chaos_tier == "nightly" else (10, 5)
    figures = checks.kills_end_in_the_same_bytes(tmp_path, chaos_seed, n_kills, real_every=real_every)
    for name, value in figures.items():
        record_property(name, value)


@pytest.mark.chaos("K1")
@pytest.mark.chroma
def test_a_run_that_finds_all_done_costs_next_to_nothing(tmp_path, chaos_seed, record_property):
    share = checks.a_run_that_finds_all_done_is_cheap(tmp_path, chaos_seed)
    record_property("nothing to do, share of the first run's CPU", f"{share:.2%}")
