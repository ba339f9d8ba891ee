"""P3: any order of making, crashing, losing files and remaking keeps to a model of what is done."""

import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from wiki_assets import failpoints
from wiki_assets_tests.chaos.checks_commit import stages_before
from wiki_assets_tests.chaos.children import OK, in_child
from wiki_assets_tests.chaos.plain import PARQUET_STEPS, Plain

SHARD_STEPS = PARQUET_STEPS[1:]
N_SHARDS = 2


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Plain:
    return Plain.laid_out(tmp_path_factory.mktemp("plain") / "wiki")


@pytest.fixture(scope="module")
def oracle(plain, tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("oracle")
    stages_before(plain, folder, PARQUET_STEPS)
    return plain.at(folder / f"after-{PARQUET_STEPS[-1]}").bytes_made()


class Pipeline(RuleBasedStateMachine):
    """What is there for each shard of each step: it counts as done if it and what it is made from are there."""

    plain: Plain
    oracle: dict[str, str]
    folder: Path
    n_machines = 0
    n_actions = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).n_machines += 1
        root = self.folder / f"machine-{self.n_machines}"
        shutil.copytree(self.plain.root, root)
        self.wiki = self.plain.at(root)
        self.there: set[tuple[str, int]] = set()

    def done(self) -> set[tuple[str, int]]:
        """By the model."""
        made_from = dict(zip(SHARD_STEPS[1:], SHARD_STEPS, strict=False))
        return {
            (step, shard)
            for step, shard in self.there
            if step not in made_from or (made_from[step], shard) in self.there
        }

    def can_make(self, step: str) -> bool:
        """Whether every shard's input is there."""
        before = SHARD_STEPS[: SHARD_STEPS.index(step)]
        return all((name, shard) in self.there for name in before[-1:] for shard in range(N_SHARDS))

    @rule(step=st.sampled_from(SHARD_STEPS))
    def make(self, step: str) -> None:
        """Do a step, or be told that its input is missing."""
        type(self).n_actions += 1
        code = self._make(step)
        if step == "articles" or self.can_make(step):
            assert code == OK
            self.there |= {(step, shard) for shard in range(N_SHARDS)}
        else:
            assert code != OK

    def _make(self, step: str, rules: str | None = None) -> int:
        wiki, steps = self.wiki, ("split", "articles") if step == "articles" else (step,)
        return in_child(lambda: [wiki.step(name) for name in steps], rules)

    @rule(
        step=st.sampled_from(SHARD_STEPS),
        point=st.sampled_from(failpoints.COMMIT),
        action=st.sampled_from(["kill", "enospc", "eio"]),
        nth=st.integers(1, 12),
    )
    def crash(self, step: str, point: str, action: str, nth: int) -> None:
        """Do a step that may not end."""
        type(self).n_actions += 1
        before = self.done()
        self._make(step, f"{point}={action}@{nth}")
        there = {tuple(name.split()) for name in self.wiki.done()}
        now = {(artifact, int(shard)) for artifact, shard in there}
        assert before <= now, "what was done is not done any more"
        assert now - before <= {(later, shard) for later in SHARD_STEPS[SHARD_STEPS.index(step) :] for _, shard in now}
        self.there |= {(step, shard) for name, shard in self._manifests() if name == step}

    def _manifests(self) -> set[tuple[str, int]]:
        return {
            (step, shard)
            for step in SHARD_STEPS
            for shard in range(N_SHARDS)
            if self.wiki.book.store.manifest(step, self.wiki.shard(shard)) is not None
        }

    @rule(
        step=st.sampled_from(SHARD_STEPS), shard=st.integers(0, N_SHARDS - 1), what=st.sampled_from(["json", "parquet"])
    )
    def lose(self, step: str, shard: int, what: str) -> None:
        """A file is deleted, or its manifest."""
        type(self).n_actions += 1
        path = Path(str(self.wiki.book.store.file(step, self.wiki.shard(shard)).with_suffix(f".{what}")))
        path.unlink(missing_ok=True)
        self.there.discard((step, shard))

    @rule(step=st.sampled_from(SHARD_STEPS), shard=st.integers(0, N_SHARDS - 1))
    def cut(self, step: str, shard: int) -> None:
        """A file loses its last byte."""
        type(self).n_actions += 1
        path = Path(str(self.wiki.book.store.file(step, self.wiki.shard(shard))))
        if path.exists():
            path.write_bytes(path.read_bytes()[:-1])
            self.there.discard((step, shard))

    @invariant()
    def the_store_agrees_with_the_model(self) -> None:
        found = {(artifact, int(shard)) for artifact, shard in (name.split() for name in self.wiki.done())}
        assert found == self.done()

    def teardown(self) -> None:
        """Whatever happened, the steps done once more end in the oracle's bytes."""
        for step in SHARD_STEPS:
            assert self._make(step) == OK
        assert self.wiki.bytes_made() == self.oracle
        assert self.wiki.phantoms() == []
        assert self.wiki.leftovers() == []
        shutil.rmtree(self.wiki.root)


@pytest.mark.chaos("P3")
def test_any_order_of_faults_keeps_to_the_model(plain, oracle, tmp_path, chaos_tier, record_property):
    machine = type("Machine", (Pipeline,), {"plain": plain, "oracle": oracle, "folder": tmp_path})
    effort = settings(
        max_examples=60 if chaos_tier == "nightly" else 12,
        stateful_step_count=12,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=effort)
    record_property("machines", machine.n_machines)
    record_property("actions", machine.n_actions)
    record_property("crashes of the model", 0)
