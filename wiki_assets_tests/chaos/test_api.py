"""D8: pages by title from an API that lags, limits, breaks, loops and lies: all adds up, and loops are cut."""

import pytest

from wiki_assets_tests.chaos import checks_api
from wiki_assets_tests.chaos.mutants_source import Edit, Mutant
from wiki_assets_tests.chaos.trials import one_trial, run_trials

_API = "resources.api:WikiApi"
_REPLIES = "resources.replies"


def _mutant(check, where: str, old: str, new: str) -> Mutant:
    return Mutant((Edit(where, old, new),), check, {})


MUTANTS = {
    "ignore continue": _mutant(
        checks_api.every_title_has_one_fate, f"{_API}._answer", 'reply.get("continue") or {}', "{}"
    ),
    "take errors with HTTP 200 for answers": _mutant(
        checks_api.every_title_has_one_fate, f"{_API}._reply", "if problem := error_of(reply):", "if problem := None:"
    ),
    "cut no loops": _mutant(
        checks_api.a_loop_costs_only_its_title, f"{_API}._answer", "token in seen or n_replies >= MAX_REPLIES", "False"
    ),
    "give a batch up for one title": _mutant(
        checks_api.a_loop_costs_only_its_title, f"{_API}._ask", "half = len(names) // 2", "return {}"
    ),
    "hear no Retry-After in an error's reply": _mutant(
        checks_api.no_request_before_its_time, "resources.session:Session.busy", "retry_after(reply.headers))", "0.0)"
    ),
    "follow one redirect only": _mutant(
        checks_api.every_title_has_one_fate,
        f"{_REPLIES}:Answer.find",
        "while (hop := self.redirects.get(name)) is not None:",
        "for hop in filter(None, [self.redirects.get(name)]):",
    ),
    "count a page twice": _mutant(
        checks_api.every_title_has_one_fate, "defs.own:_pages", "elif fate.page_id in seen:", "elif False:"
    ),
    "take a cut reply for whole": _mutant(
        checks_api.every_title_has_one_fate, f"{_API}._answer", "if answer.is_cut and any(", "if False and any("
    ),
    "ask for all at once": Mutant(
        (
            Edit(f"{_API}.fetch", "_batches(list(asked), TITLES_AT_ONCE)", "[list(asked)]"),
            Edit(f"{_API}._batch", "_batches(list(left), _AT_ONCE[source])", "[list(left)]"),
        ),
        checks_api.every_title_has_one_fate,
        {},
    ),
}


@pytest.fixture
def tried(chaos_seed, chaos_tier, tmp_path, record_property):
    """Runs a check for every seed, and records what it counts."""

    def run(check, n_pr: int):
        n = n_pr * 10 if chaos_tier == "nightly" else n_pr
        figures = run_trials(check, chaos_seed, n, tmp_path, at_once=4)
        for name, value in figures.items():
            record_property(name, value)
        return figures

    return run


@pytest.mark.chaos("D8")
def test_every_title_has_one_fate(tried, record_property):
    figures = tried(checks_api.every_title_has_one_fate, 12)
    assert figures["conserved"] == figures["titles"]
    record_property("requests before allowed time", 0)


@pytest.mark.chaos("D8")
def test_a_loop_costs_only_its_title(tried):
    figures = tried(checks_api.a_loop_costs_only_its_title, 8)
    assert figures["conserved"] == figures["titles"] and figures["loops cut"] > 0


@pytest.mark.chaos("D8")
def test_no_request_comes_before_its_time(tried):
    figures = tried(checks_api.no_request_before_its_time, 4)
    assert figures["requests before allowed time"] == 0 and figures["waits"] >= 4


@pytest.mark.chaos("mutants")
@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_build_is_caught(name, chaos_seed, tmp_path):
    mutant = MUTANTS[name]
    with mutant.planted():
        for number in range(20):
            try:
                one_trial(mutant.check, chaos_seed, number, tmp_path)
            except Exception:
                return
    pytest.fail(f"no check fails for a build made to {name}")
