"""Negative controls: every deliberately broken build of the compute side is caught by the check that is for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wiki_assets_tests.chaos import checks_compute as checks
from wiki_assets_tests.chaos import mutants_compute as mutants
from wiki_assets_tests.chaos.children import OK, OS_ERROR, in_child, planted
from wiki_assets_tests.chaos.kept import Kept, make_kept
from wiki_assets_tests.tinywiki.serve import serving


@pytest.fixture(scope="module")
def articles(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """Tinywiki with its articles made."""
    with serving() as mirror:
        kept = make_kept(tmp_path_factory.mktemp("articles") / "root", mirror, shards=2, until="articles")
    return kept


def panics(kept: Kept, folder: Path) -> None:
    checks.a_page_that_fails_costs_only_itself(kept.plain, "panic", "panic")


def disk_fails(kept: Kept, folder: Path) -> None:
    page = checks.pages_of(kept.plain, kept.plain.shard(0))[0]
    code = in_child(lambda: kept.plain.step("tokens"), f"tokens.page[{page}]=eio")
    assert code == OS_ERROR, f"exit code {code}"


def kills(kept: Kept, folder: Path) -> None:
    checks.pages_that_kill_are_set_aside(kept.plain, 1, 1)


def blames(kept: Kept, folder: Path) -> None:
    checks.nothing_else_is_blamed_on_a_row(1)


def publishes(kept: Kept, folder: Path) -> None:
    for step in ("tokens", "embeddings"):
        assert in_child(lambda step=step: kept.plain.step(step)) == OK
    checks.a_lost_row_stops_publication(kept.plain)


def watches(kept: Kept, folder: Path) -> None:
    checks.a_silent_head_is_noticed()


def retries(kept: Kept, folder: Path) -> None:
    checks.only_listed_errors_are_tried_again()


def gets_stuck(kept: Kept, folder: Path) -> None:
    checks.a_stuck_task_is_ended(folder, limit_s=15, gone_s=10)


Check = Callable[[Kept, Path], None]
PLANTED: dict[str, tuple[Callable[[], Any], Check]] = {
    "only_exceptions_are_caught": (mutants.only_exceptions_are_caught, panics),
    "rows_vanish": (mutants.rows_vanish, panics),
    "disk_errors_are_blamed_on_rows": (mutants.disk_errors_are_blamed_on_rows, disk_fails),
    "no_search_for_poison": (mutants.no_search_for_poison, kills),
    "one_death_is_enough": (mutants.one_death_is_enough, blames),
    "no_limit_of_poison": (mutants.no_limit_of_poison, blames),
    "no_gate": (mutants.no_gate, publishes),
    "nobody_looks_after_the_head": (mutants.nobody_looks_after_the_head, watches),
    "a_connection_is_an_answer": (mutants.a_connection_is_an_answer, watches),
    "everything_is_tried_again": (mutants.everything_is_tried_again, retries),
    "nothing_is_tried_again": (mutants.nothing_is_tried_again, retries),
}
WITH_RAY: dict[str, tuple[Callable[[], Any], Check]] = {
    "no_deadline": (mutants.no_deadline, gets_stuck),
    "stuck_workers_stay": (mutants.stuck_workers_stay, gets_stuck),
}


@pytest.mark.chaos("mutants")
@pytest.mark.parametrize("name", PLANTED)
def test_a_broken_build_is_caught(name: str, articles: Kept, tmp_path: Path) -> None:
    mutant, check = PLANTED[name]
    with planted(mutant), pytest.raises(AssertionError):
        check(articles.copy(tmp_path / "root"), tmp_path)


@pytest.mark.chaos("controls")
@pytest.mark.parametrize(
    "check", dict.fromkeys(check for _, check in PLANTED.values()), ids=lambda check: check.__name__
)
def test_the_same_checks_pass_on_the_build_as_it_is(check: Check, articles: Kept, tmp_path: Path) -> None:
    check(articles.copy(tmp_path / "root"), tmp_path)


@pytest.mark.ray
@pytest.mark.chaos("mutants")
@pytest.mark.parametrize("name", WITH_RAY)
def test_a_broken_wait_is_caught(name: str, ray_cluster: None, articles: Kept, tmp_path: Path) -> None:
    mutant, check = WITH_RAY[name]
    with planted(mutant), pytest.raises(AssertionError):
        check(articles, tmp_path)
