"""What the files prove: for each partition, whether every byte that its manifest vouches for is there.

Nothing here asks Dagster, or trusts a size: every file is read and hashed. A partition is

    PROVEN    its manifest is as it was written, and every file has the recorded SHA-256
    DAMAGED   something vouches for it, and is wrong; `problem` says what was found
    ABSENT    nothing vouches for it
    PAST      of `published_index`: another snapshot is the published one, and its index is there or was retired; of
              `chroma_collection`: the index was retired, newer ones are kept
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgspec
from upath import UPath

from wiki_assets.files import Manifest, json_text, seal_holds, sealed
from wiki_assets.keys import Shard, Snapshot


class State(StrEnum):
    """What is known of a partition."""

    PROVEN = "proven"
    DAMAGED = "damaged"
    ABSENT = "absent"
    PAST = "past"


@dataclass(frozen=True)
class Proof:
    """What the store proves of one partition of one asset.

    `suspects` are the files to set aside, so that it is made again: the manifest that vouches for what is not so; of
    a dump, the file that is not what was fetched. `stale` tells whether today's recipe would make
    something else; None where that cannot be told. `rows` were compared in the collection.
    """

    artifact: str
    snapshot: Snapshot
    partition: str
    state: State
    manifest: Manifest | None = None
    problem: str = ""
    suspects: tuple[UPath, ...] = ()
    files: int = 0
    size_bytes: int = 0
    rows: int = 0
    stale: bool | None = None
    shard: Shard | None = None

    @property
    def name(self) -> str:
        """As a person names it: `tinywiki articles 20250105|00002`."""
        return f"{self.snapshot.wiki} {self.artifact} {self.partition}"


@dataclass
class Evidence:
    """The proofs of one snapshot, and what else was seen."""

    snapshot: Snapshot
    proofs: list[Proof] = field(default_factory=list)
    pointer: dict[str, Any] | None = None
    build: int | None = None  # the current build of the index
    build_problem: str = ""  # why its collection cannot be gone on with
    unvouched: list[str] = field(default_factory=list)  # data files that no manifest names

    def of(self, artifact: str) -> dict[str, Proof]:
        """The proofs of one asset, by partition."""
        return {proof.partition: proof for proof in self.proofs if proof.artifact == artifact}


def read_bytes(path: UPath) -> bytes | None:
    """A small file's bytes; None where there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def parse_manifest(data: bytes) -> tuple[Manifest | None, str]:
    """A manifest that is, byte for byte, as it was written; or what is wrong with it."""
    try:
        record = msgspec.json.decode(data)
        manifest = msgspec.convert(record, Manifest)
    except (ValueError, RecursionError):
        return None, "no manifest, though it stands where one should"
    return (manifest, "") if as_written(record, data) else (None, "its bytes are not those that were written")


def as_written(record: dict[str, Any], data: bytes) -> bool:
    """Whether a record's bytes are those that were written: its seal holds, and is not hidden under another name."""
    if not seal_holds(record) or json_text(record) != data:
        return False
    rest = ({key: value for key, value in record.items() if key != name} for name in record if "seal" not in record)
    return all(sealed(body)["seal"] not in record.values() for body in rest)


def misplaced(blank: Proof, manifest: Manifest) -> str:
    """Whether a manifest is another partition's."""
    found = (manifest.artifact, manifest.wiki, manifest.snapshot, manifest.shard)
    number = blank.shard.number if blank.shard else None
    expected = (blank.artifact, blank.snapshot.wiki, blank.snapshot.date, number)
    return "" if found == expected else f"the manifest of {blank.name} describes {found}, expected {expected}"
