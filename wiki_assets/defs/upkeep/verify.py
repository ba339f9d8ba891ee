"""Hold what Dagster shows against what the files prove."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from wiki_assets.defs.recipes import STAGES, Cookbook
from wiki_assets.defs.report import aligned
from wiki_assets.defs.upkeep.evidence import gather, snapshots_of
from wiki_assets.defs.upkeep.proof import Evidence, Proof, State
from wiki_assets.defs.upkeep.status import Shown, shown
from wiki_assets.defs.wikis import wiki_config
from wiki_assets.keys import Snapshot
from wiki_assets.resources.store import Store
from wiki_assets.settings import Settings

DOWNSTREAM = {"articles": "tokens", "tokens": "embeddings", "embeddings": "chroma_collection"}


@dataclass(frozen=True)
class Report:
    """What was found of one wiki: the evidence of each snapshot, and what Dagster shows of each asset.

    `shows` is empty where there is no Dagster instance to ask.
    """

    wiki: str
    evidence: list[Evidence]
    shows: dict[str, Shown]

    def proofs(self) -> Iterator[Proof]:
        """Of every partition of every snapshot looked at."""
        return (proof for evidence in self.evidence for proof in evidence.proofs)

    def damaged(self) -> list[Proof]:
        """Partitions that something vouches for, wrongly."""
        return [proof for proof in self.proofs() if proof.state is State.DAMAGED]

    def lost(self) -> list[Proof]:
        """Partitions that nothing vouches for, though what was made from them is here.

        Where Dagster can be asked it says whether they are done; without it this is the only trace of them.
        """
        return [] if self.shows else [proof for evidence in self.evidence for proof in _lost(evidence)]

    def phantoms(self) -> list[tuple[str, str]]:
        """Asset and partition: shown as made, by Dagster, and not proven."""
        good = {(p.artifact, p.partition) for p in self.proofs() if p.state in (State.PROVEN, State.PAST)}
        return [
            (artifact, partition)
            for artifact, shows in self.shows.items()
            for partition in sorted(shows.made - shows.busy)
            if (artifact, partition) not in good and self._looked_at(partition)
        ]

    def untold(self) -> list[Proof]:
        """Proven partitions that Dagster does not show as made."""
        return [
            proof
            for proof in self.proofs()
            if proof.state is State.PROVEN
            and (shows := self.shows.get(proof.artifact)) is not None
            and proof.partition not in shows.busy
            and (proof.partition not in shows.made or proof.partition in shows.failed)
        ]

    @property
    def whole(self) -> bool:
        """Whether everything that is shown or vouched for is there, byte for byte."""
        return not (self.damaged() or self.lost() or self.phantoms())

    def _looked_at(self, partition: str) -> bool:
        return self.every_snapshot or partition[:8] in {evidence.snapshot.date for evidence in self.evidence}

    every_snapshot: bool = True


def verify(
    wiki: str,
    settings: Settings,
    store: Store,
    *,
    instance: dg.DagsterInstance | None = None,
    date: str | None = None,
    index: bool = True,
) -> Report:
    """Read and hash everything that lies in the store of a wiki, and compare it with what Dagster shows.

    Args:
        wiki: which one.
        settings: of this deployment.
        store: its data.
        instance: Dagster's; without one the files are held against their manifests alone.
        date: only this snapshot.
        index: also compare every row of the collections with their files.

    Raises:
        SourceUnavailable: if the Chroma server does not answer; without `index` it is not asked.
    """
    shards = store.shard_count(wiki)
    shows = {artifact: shown(instance, wiki, artifact, shards) for artifact in STAGES} if instance else {}
    if shards is None:
        return Report(wiki, [], shows)
    book = Cookbook(wiki_config(wiki, settings, store), store, settings.chroma)
    snapshots = [Snapshot(wiki, date)] if date else snapshots_of(book)
    evidence = [gather(book, snapshot, index=index) for snapshot in snapshots]
    return Report(wiki, evidence, shows, every_snapshot=date is None)


def _lost(evidence: Evidence) -> Iterator[Proof]:
    for artifact, after in DOWNSTREAM.items():
        later = evidence.of(after)
        for partition, proof in evidence.of(artifact).items():
            if proof.state is State.ABSENT and later[partition].manifest is not None:
                yield proof
    raw = next(iter(evidence.of("raw_dump").values()), None)
    if raw is not None and raw.state is State.ABSENT and any(p.manifest for p in evidence.of("articles").values()):
        yield raw


# --- for people and pipes


def rows(report: Report) -> list[dict[str, Any]]:
    """One row an asset of a snapshot; every bad partition is named in one of its lists."""
    found = []
    lost, phantoms, untold = report.lost(), report.phantoms(), report.untold()
    for evidence in report.evidence:
        for artifact in STAGES:
            proofs = list(evidence.of(artifact).values())
            date = evidence.snapshot.date
            found.append(
                {
                    "wiki": report.wiki,
                    "snapshot": date,
                    "asset": artifact,
                    "proven": [p.partition for p in proofs if p.state is State.PROVEN],
                    "of": len(proofs),
                    "files": sum(p.files for p in proofs),
                    "rows": sum(p.rows for p in proofs),
                    "size_bytes": sum(p.size_bytes for p in proofs),
                    "damaged": {p.partition: p.problem for p in proofs if p.state is State.DAMAGED},
                    "lost": [p.partition for p in lost if (p.artifact, p.snapshot.date) == (artifact, date)],
                    "stale": [p.partition for p in proofs if p.stale],
                    "shown_not_proven": [p for a, p in phantoms if a == artifact and p[:8] == date],
                    "proven_not_shown": [
                        p.partition for p in untold if (p.artifact, p.snapshot.date) == (artifact, date)
                    ],
                    "unvouched": [name for name in evidence.unvouched if name.startswith(f"{artifact}/")],
                }
            )
    seen = {evidence.snapshot.date for evidence in report.evidence}
    for artifact, partition in phantoms:
        if partition[:8] not in seen:
            found.append(_nothing_left(report.wiki, artifact, partition))
    return found


def _nothing_left(wiki: str, artifact: str, partition: str) -> dict[str, Any]:
    lists: dict[str, Any] = {name: [] for name in ("proven", "lost", "stale", "proven_not_shown", "unvouched")}
    counts = dict.fromkeys(("of", "files", "rows", "size_bytes"), 0)
    place = {"wiki": wiki, "snapshot": partition[:8], "asset": artifact}
    return {**place, **counts, **lists, "damaged": {}, "shown_not_proven": [partition]}


def problems(report: Report) -> list[str]:
    """One line a bad partition: what was found of it."""
    found = {(p.artifact, p.partition): p.problem for p in report.damaged()}
    for proof in report.lost():
        what = f"its manifest is gone, and {DOWNSTREAM.get(proof.artifact, 'articles')} was made from it"
        found.setdefault((proof.artifact, proof.partition), what)
    for place in report.phantoms():
        found.setdefault(place, "Dagster shows it as made, and nothing vouches for it")
    order = {artifact: number for number, artifact in enumerate(STAGES)}
    return [
        f"{report.wiki} {artifact} {partition}: {problem}"
        for (artifact, partition), problem in sorted(found.items(), key=lambda item: (order[item[0][0]], item[0][1]))
    ]


def table(found: Sequence[dict[str, Any]]) -> str:
    """Rows as a table."""
    head = ("snapshot", "asset", "proven", "files", "rows", "size", "stale", "not shown in Dagster")
    lines: list[tuple[str, ...]] = [head]
    for row in found:
        lines.append(
            (
                f"{row['wiki']}-{row['snapshot']}",
                row["asset"],
                f"{len(row['proven'])}/{row['of']}",
                f"{row['files']:,}" if row["files"] else "",
                f"{row['rows']:,}" if row["rows"] else "",
                f"{row['size_bytes'] / 1e6:,.1f} MB" if row["size_bytes"] else "",
                str(len(row["stale"]) or ""),
                str(len(row["proven_not_shown"]) or ""),
            )
        )
    return aligned(lines)
