"""Negative controls: every deliberately broken build of the commit protocol is caught by the check meant for it."""

import shutil

import pytest

from wiki_assets_tests.chaos import checks_commit as checks
from wiki_assets_tests.chaos import mutants_commit as mutants
from wiki_assets_tests.chaos.children import OK, in_child, planted
from wiki_assets_tests.chaos.plain import Plain


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Plain:
    return Plain.laid_out(tmp_path_factory.mktemp("plain") / "wiki")


@pytest.fixture(scope="module")
def oracle(plain, tmp_path_factory) -> dict[str, str]:
    whole = plain.at(tmp_path_factory.mktemp("oracle") / "root")
    shutil.copytree(plain.root, whole.root)
    for name in ("split", "articles", "tokens", "embeddings"):
        assert in_child(lambda name=name: whole.step(name)) == OK
    return whole.bytes_made()


def fails_one_point(plain, oracle, folder, rule):
    """Step `split` fails at a point and is made again."""
    checks.fails_safely(plain, plain.root, "split", rule, folder, oracle)


def loses_power(plain, oracle, folder):
    root = folder / "root"
    shutil.copytree(plain.root, root)
    checks.power_loss_is_survived(plain.at(root), folder, range(60))


def is_fenced(plain, oracle, folder):
    checks.stale_writer_is_fenced(plain, folder, "split")


def is_killed(plain, oracle, folder):
    checks.kills_end_in_the_same_bytes(folder, 7, 6, real_every=100)


def is_cheap_again(plain, oracle, folder):
    checks.a_run_that_finds_all_done_is_cheap(folder / "again", 1, 100)


def torn_articles(plain, oracle, folder):
    root = folder / "split"
    shutil.copytree(plain.root, root)
    assert in_child(lambda: plain.at(root).step("split")) == OK
    checks.fails_safely(plain, root, "articles", "file.write=kill@2", folder, oracle)


PLANTED = {
    "no_file_sync": (mutants.no_file_sync, loses_power),
    "no_folder_sync": (mutants.no_folder_sync, loses_power),
    "write_in_place": (mutants.write_in_place, torn_articles),
    "old_manifest_stays": (mutants.old_manifest_stays, loses_power),
    "claims_mean_nothing": (mutants.claims_mean_nothing, is_fenced),
    "nothing_is_reused": (mutants.nothing_is_reused, is_killed),
    "nothing_is_reused, to its cost": (mutants.nothing_is_reused, is_cheap_again),
    "leftovers_stay": (
        mutants.leftovers_stay,
        lambda p, o, f: fails_one_point(p, o, f, "file.fsync=kill@1"),
    ),
}


@pytest.mark.chaos("mutants")
@pytest.mark.parametrize("name", PLANTED)
def test_a_broken_build_is_caught(name, plain, oracle, tmp_path):
    mutant, check = PLANTED[name]
    with planted(mutant), pytest.raises(AssertionError):
        check(plain, oracle, tmp_path)


@pytest.mark.chaos("controls")
@pytest.mark.parametrize(
    "check", dict.fromkeys(check for _, check in PLANTED.values()), ids=lambda check: check.__name__
)
def test_the_same_checks_pass_on_the_build_as_it_is(check, plain, oracle, tmp_path):
    check(plain, oracle, tmp_path)
