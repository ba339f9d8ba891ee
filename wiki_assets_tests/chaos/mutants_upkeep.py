"""Broken builds of the upkeep commands, each of which its check must catch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from wiki_assets.defs.upkeep import file_proofs, index_proofs, proof, reap, reconcile, status
from wiki_assets_tests.chaos import checks_upkeep as checks
from wiki_assets_tests.chaos.kept import Kept

Patch = pytest.MonkeyPatch


def _trusts_sizes(patch: Patch) -> None:
    def file(reader: Any, named: Any) -> str:
        name, record = named
        path = reader._root / name
        if not path.exists():
            return "" if name.endswith(file_proofs._DROPPED) else "missing"
        return "" if path.stat().st_size == record.size_bytes else "another size"

    patch.setattr(file_proofs.FileProofs, "_file", file)


def _trusts_existence(patch: Patch) -> None:
    patch.setattr(
        file_proofs.FileProofs, "_file", lambda reader, named: "" if (reader._root / named[0]).exists() else "missing"
    )  # fmt: skip


def _trusts_manifests(patch: Patch) -> None:
    patch.setattr(proof, "as_written", lambda record, data: True)
    patch.setattr(proof, "seal_holds", lambda record: True)


def _trusts_the_index(patch: Patch) -> None:
    patch.setattr(index_proofs, "check_rows", lambda collection, rows: None)


def _leaves_lying_manifests(patch: Patch) -> None:
    patch.setattr(reconcile, "_aside", lambda *args: True)


def _only_tells(patch: Patch) -> None:
    patch.setattr(reconcile, "forget", lambda *args: None)


def _only_forgets(patch: Patch) -> None:
    patch.setattr(reconcile, "tell", lambda *args: None)


def _forgets_whole_assets(patch: Patch) -> None:
    def forget(instance: Any, wiki: str, artifact: str, partitions: Any) -> None:
        instance.wipe_assets([reconcile.dg.AssetKey([wiki, artifact])])

    patch.setattr(reconcile, "forget", forget)


def _keeps_the_cache(patch: Patch) -> None:
    patch.setattr(status, "_take_off", lambda *args: None)


def _trusts_process_ids(patch: Patch) -> None:
    patch.setattr(reap, "was_there", lambda pid, at: psutil.pid_exists(pid))
    patch.setattr(reap, "birth", lambda pid: "" if psutil.pid_exists(pid) else None)


def _reaps_everything(patch: Patch) -> None:
    patch.setattr(reap, "birth", lambda pid: None)


def _keeps_slots(patch: Patch) -> None:
    patch.setattr(reap, "_free_slots", lambda instance: None)


def _damage(*faults: checks.Fault) -> Callable[[Kept, Path], object]:
    return lambda kept, root: checks.damage_is_found_and_made_again(kept, root, faults, seed=3)


def _status(kept: Kept, root: Path) -> object:
    return checks.status_follows_the_files(kept, root)


def _reap(kept: Kept, root: Path) -> object:
    return checks.dead_runs_are_reaped_and_living_ones_are_not(2)


Mutant = tuple[Callable[[Patch], None], Callable[[Kept, Path], object]]
MUTANTS: dict[str, Mutant] = {
    "verify trusts sizes": (_trusts_sizes, _damage(checks.Fault("embeddings file", "flip", 1))),
    "verify trusts existence": (_trusts_existence, _damage(checks.Fault("tokens file", "truncate", 1))),
    "verify trusts what a manifest says": (_trusts_manifests, checks.changed_number_is_found),
    "verify counts rows, and does not compare them": (_trusts_the_index, _damage(checks.Fault("collection", "flip"))),
    "reconcile leaves manifests that lie": (
        _leaves_lying_manifests,
        _damage(checks.Fault("articles file", "flip", 1)),
    ),
    "reconcile never forgets": (_only_tells, _status),
    "reconcile never tells": (_only_forgets, _status),
    "reconcile forgets whole assets": (_forgets_whole_assets, _status),
    "forgetting forgets nothing but a cache": (_keeps_the_cache, _status),
    "reap trusts process ids": (_trusts_process_ids, _reap),
    "reap trusts nobody": (_reaps_everything, _reap),
    "reap keeps places in pools": (_keeps_slots, _reap),
}
"""By name: what is broken, and the check that must say so."""
