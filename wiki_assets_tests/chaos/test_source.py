"""D1-D7, D9, P1, S2, Q2: whatever server, line, file or name do, what lies in place is what was published."""

import random
from collections import Counter

import pytest

from wiki_assets_tests.chaos import checks_content, checks_names, checks_network, checks_snapshot, checks_source
from wiki_assets_tests.chaos.downloader import Downloader
from wiki_assets_tests.chaos.mutants_source import MUTANTS, survivors
from wiki_assets_tests.chaos.source import snapshot_files
from wiki_assets_tests.chaos.trials import run_trials
from wiki_assets_tests.resources.faulty_server import FaultyServer

BOMBS = ["bomb.json.bz2", "bomb.json.gz"]


@pytest.fixture
def n_seeds(chaos_tier) -> int:
    """How often a check is made, with other dice each time."""
    return 200 if chaos_tier == "nightly" else 20


@pytest.fixture
def tried(chaos_seed, n_seeds, tmp_path, record_property):
    """Runs a check for every seed, and records what it counts."""

    def run(check, n: int | None = None, *, at_once: int = 1, **more) -> Counter[str]:
        figures = run_trials(check, chaos_seed, n or n_seeds, tmp_path, at_once=at_once, **more)
        for name, value in {"seeds": n or n_seeds, **figures}.items():
            record_property(name, value)
        return figures

    return run


@pytest.fixture(scope="module")
def downloader(tmp_path_factory):
    """Processes to kill."""
    with Downloader() as downloader:
        with FaultyServer(snapshot_files(random.Random(1), 3)) as server:
            downloader.look(server.url, tmp_path_factory.mktemp("survey"))
        yield downloader


@pytest.fixture(scope="module")
def bombs():
    return {name: checks_content.bomb(name) for name in BOMBS}


@pytest.mark.chaos("D1")
def test_drops_end_in_the_same_bytes(tried, record_property, n_seeds):
    figures = tried(checks_source.drops_end_in_the_same_bytes, at_once=8)
    assert figures["SHA equal"] == n_seeds
    record_property("bytes fetched / size", round(figures["bytes sent"] / figures["bytes"], 3))


@pytest.mark.chaos("D1")
def test_trickles_are_dropped(tried):
    tried(checks_source.trickles_are_dropped, at_once=8)


@pytest.mark.chaos("D1")
def test_a_file_is_downloaded_once_at_a_time(tried, n_seeds):
    tried(checks_source.one_download_at_a_time, n_seeds // 4)


@pytest.mark.chaos("D1")
def test_a_killed_download_goes_on(tried, downloader, record_property, n_seeds):
    figures = tried(checks_snapshot.a_killed_download_goes_on, downloader=downloader)
    assert figures["SHA equal"] == n_seeds and figures["kills"] > n_seeds // 2
    record_property("lines to be killed at", len(downloader.survey.places))


@pytest.mark.chaos("D2")
def test_no_request_comes_before_its_time(tried):
    tried(checks_source.no_request_before_its_time, at_once=20)


@pytest.mark.chaos("D2")
def test_the_longest_wait_holds_for_all(tried, n_seeds, record_property):
    with checks_source.connections.counted():
        tried(checks_source.the_longest_wait_holds_for_all, n_seeds // 4, at_once=5)
    record_property("connections at once", max(checks_source.connections.most.values()))


@pytest.mark.chaos("D2")
def test_a_hopeless_server_is_given_up(tried):
    tried(checks_source.a_hopeless_server_is_given_up, at_once=8)


@pytest.mark.chaos("D2")
def test_a_name_without_addresses_is_asked_again(tried):
    tried(checks_network.a_name_without_addresses_is_asked_again)


@pytest.mark.chaos("D3")
def test_lies_about_a_file_are_not_believed(tried, n_seeds):
    figures = tried(checks_source.lies_about_a_file_are_not_believed, 3 * n_seeds, at_once=4)
    assert figures["right bytes"] and figures["refused"]


@pytest.mark.chaos("D4")
def test_editions_are_never_joined(tried, n_seeds):
    tried(checks_source.editions_are_never_joined, 2 * n_seeds, at_once=4)


@pytest.mark.chaos("D5")
@pytest.mark.parametrize("check", checks_network.BLOCKING, ids=lambda check: check.__name__)
def test_nothing_leads_elsewhere(tried, check):
    figures = tried(check)
    assert figures["blocked"] == figures["asked"]


@pytest.mark.chaos("D5")
def test_what_is_checked_is_what_is_connected_to(tried):
    tried(checks_network.the_name_stays_on_the_wire)


@pytest.mark.chaos("D6")
def test_no_part_is_taken_for_a_snapshot(tried, n_seeds):
    figures = tried(checks_snapshot.no_part_is_taken_for_a_snapshot, 2 * n_seeds, at_once=4)
    assert figures["refused"] and figures["whole in the end"] > figures["snapshots"] // 2


@pytest.mark.chaos("S2")
def test_the_newest_whole_snapshot_is_the_latest(tried, n_seeds):
    tried(checks_snapshot.the_newest_whole_snapshot_is_the_latest, n_seeds // 2, at_once=4)


@pytest.mark.chaos("D7")
def test_what_was_fetched_stays_the_truth(tried):
    tried(checks_snapshot.what_was_fetched_stays_the_truth, at_once=4)


@pytest.mark.chaos("D9")
def test_no_text_is_lost_in_silence(tried, n_seeds):
    figures = tried(checks_content.no_text_is_lost_in_silence, 3 * n_seeds, at_once=4)
    assert figures["refused"] and figures["whole"]


@pytest.mark.chaos("D9")
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_not_unpacked(tried, bombs, downloader, name):
    tried(checks_content.a_bomb_is_not_unpacked, 1, data=bombs[name], name=name, downloader=downloader)


@pytest.mark.chaos("P1")
def test_a_bad_line_costs_only_itself(tried, n_seeds):
    tried(checks_content.a_bad_line_costs_only_itself, 4 * n_seeds)


@pytest.mark.chaos("P1")
def test_a_huge_line_costs_only_itself(record_property):
    for name, value in checks_content.a_huge_line_costs_only_itself().items():
        record_property(name, value)


@pytest.mark.chaos("Q2")
@pytest.mark.parametrize("check", checks_names.CHECKS, ids=lambda check: check.__name__)
def test_names_and_links_lead_nowhere_else(tried, check):
    tried(check)


@pytest.mark.chaos("mutants")
def test_every_broken_source_is_caught(tmp_path, chaos_seed, downloader, bombs, record_property):
    alive = survivors(chaos_seed, tmp_path, downloader, (BOMBS[0], bombs[BOMBS[0]]))
    record_property("mutants planted", len(MUTANTS))
    record_property("mutants caught", len(MUTANTS) - len(alive))
    assert not alive, f"no check fails for these builds: {alive}"
