"""Make Dagster's status and the manifests agree, whichever of the two is wrong.

What the files prove and Dagster does not show is reported to it. What Dagster shows and nothing proves is forgotten
by it. A manifest that vouches for what is not so is set aside, and a collection that is not what its files say is
given up; so the next materialization makes exactly these again. Nothing is computed here, and nothing is deleted.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import dagster as dg
from upath import UPath

from wiki_assets.claims import claim
from wiki_assets.defs.partitions import dates_name
from wiki_assets.defs.recipes import STAGES, Cookbook
from wiki_assets.defs.upkeep.proof import Evidence, Proof, State, read_bytes
from wiki_assets.defs.upkeep.status import forget, tell, tell_checks
from wiki_assets.defs.upkeep.verify import Report, verify
from wiki_assets.defs.wikis import wiki_config
from wiki_assets.errors import StoreLocked
from wiki_assets.files import is_local, local_path, sync_folder
from wiki_assets.resources.store import Store
from wiki_assets.settings import Settings


@dataclass
class Changes:
    """What was changed, or would be: by asset, which partitions."""

    set_aside: list[str] = field(default_factory=list)  # files, under the wiki's folder
    given_up: list[str] = field(default_factory=list)  # builds of an index
    dates: list[str] = field(default_factory=list)  # registered as partitions
    forgotten: dict[str, list[str]] = field(default_factory=dict)
    told: dict[str, list[str]] = field(default_factory=dict)
    busy: list[str] = field(default_factory=list)  # left alone: a run is at work there

    def __bool__(self) -> bool:
        return bool(self.set_aside or self.given_up or self.dates or self.forgotten or self.told)

    def lines(self) -> Iterator[str]:
        """One a change, for a person."""
        yield from (f"set aside {name}" for name in self.set_aside)
        yield from (f"gave up {name}" for name in self.given_up)
        if self.dates:
            yield f"registered {', '.join(self.dates)}"
        yield from (f"{artifact}: forgot {_some(cells)}" for artifact, cells in self.forgotten.items())
        yield from (f"{artifact}: told Dagster of {_some(cells)}" for artifact, cells in self.told.items())
        yield from (f"left alone, a run is at work there: {name}" for name in self.busy)


def reconcile(
    wiki: str,
    settings: Settings,
    store: Store,
    *,
    instance: dg.DagsterInstance,
    index: bool = True,
    dry_run: bool = False,
) -> tuple[Report, Changes]:
    """Verify a wiki, and mend what does not agree. Done twice, the second time changes nothing.

    Args:
        wiki: which one.
        settings: of this deployment.
        store: its data.
        instance: Dagster's.
        index: also compare every row of the collections with their files.
        dry_run: only say what would be done.

    Returns:
        What was found, and what was changed.
    """
    report = verify(wiki, settings, store, instance=instance, index=index)
    changes = Changes()
    config = wiki_config(wiki, settings, store) if report.evidence else None
    if config:
        for evidence in report.evidence:
            _set_aside(Cookbook(config, store, settings.chroma), report, evidence, changes, dry_run)
    for artifact in STAGES:
        if gone := [partition for name, partition in report.phantoms() if name == artifact]:
            changes.forgotten[artifact] = gone
            if not dry_run:
                forget(instance, wiki, artifact, gone)
    untold = report.untold()
    if config:
        known = set(instance.get_dynamic_partitions(dates_name(wiki)))
        changes.dates = sorted({p.snapshot.date for p in report.proofs() if p.state is State.PROVEN} - known)
        if changes.dates and not dry_run:
            instance.add_dynamic_partitions(dates_name(wiki), changes.dates)
    for proof in sorted(untold, key=lambda p: (STAGES.index(p.artifact), p.partition)):
        changes.told.setdefault(proof.artifact, []).append(proof.partition)
    if config and untold and not dry_run:
        tell(instance, config, store, untold)
        for artifact in changes.told:
            proofs = [p for p in report.proofs() if p.artifact == artifact and p.state is State.PROVEN]
            tell_checks(instance, wiki, artifact, [p.manifest for p in proofs if p.manifest])
    return report, changes


def _set_aside(book: Cookbook, report: Report, evidence: Evidence, changes: Changes, dry_run: bool) -> None:
    """Take the word from manifests that lie, and give up a collection that is not whole."""
    root = book.store.wiki(report.wiki)
    for proof in evidence.proofs:
        if proof.state is not State.DAMAGED:
            continue
        if _busy(report, [proof]):
            changes.busy.append(proof.name)
            continue
        for path in proof.suspects:
            name = str(path).removeprefix(f"{root}/")
            if name not in changes.set_aside and (dry_run or _aside(path, proof, book.store)):
                changes.set_aside.append(name)
    if not evidence.build_problem:
        return
    rows = evidence.of("chroma_collection").values()
    if _busy(report, rows):
        changes.busy.append(f"{evidence.snapshot} chroma_collection")
        return
    store, snapshot = book.store, evidence.snapshot
    build = evidence.build or max(store.builds(snapshot), default=None)
    if build is None:
        return
    note = store.build(snapshot, build) / "build.json"
    changes.given_up.append(f"build {build} of {snapshot}: {evidence.build_problem}")
    if dry_run:
        return
    if evidence.build is None:  # its note is not what was written, so it can only be set aside
        _rename(note)
    book.give_up_build(snapshot, build, evidence.build_problem)


def _busy(report: Report, proofs: Iterable[Proof]) -> bool:
    """Whether a run is making any of these now."""
    shows = report.shows
    return any(p.artifact in shows and p.partition in shows[p.artifact].busy for p in proofs)


def _aside(path: UPath, proof: Proof, store: Store) -> bool:
    """Rename a file that is not what it should be to `….damaged`; false if it was replaced since it was looked at."""
    if proof.artifact == "raw_dump":
        _rename(path)
        return True
    if proof.artifact == "published_index":
        store.withdraw(proof.snapshot.wiki)
        return True
    seen = read_bytes(path)
    if seen is None:
        return False
    try:
        mine = claim(path, "reconcile")  # whoever is at work on it unseen may not vouch for it any more
        if read_bytes(path) != seen:
            return False
        with mine.fence():  # which takes the manifest away
            path.with_name(f"{path.name}.damaged").write_bytes(seen)
    except StoreLocked:
        return False
    return True


def _rename(path: UPath) -> None:
    target = path.with_name(f"{path.name}.damaged")
    if is_local(path):
        os.replace(local_path(path), local_path(target))
        sync_folder(local_path(path).parent)
    else:
        path.fs.mv(path.path, target.path)


def _some(cells: list[str]) -> str:
    return ", ".join(cells[:8]) + (f" and {len(cells) - 8} more" if len(cells) > 8 else "")
