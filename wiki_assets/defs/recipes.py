"""What each artifact of a shard is made from, and whether what lies in the store is that.

Done means: the manifest is there, its files have the recorded sizes, and its fingerprint (inputs, code version,
parameters) is the one that would be made now. Nothing is done because a file exists.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from upath import UPath

from wiki_assets.defs.wikis import WikiConfig
from wiki_assets.files import FileRecord, Manifest, fingerprint, read_json, sealed, write_json
from wiki_assets.keys import Shard, Snapshot
from wiki_assets.resources.store import Store
from wiki_assets.stages import articles, embeddings, evaluation, fusion, index, lexical, passages, tokens

RAW_VERSION = "raw-1"
SHARD_ARTIFACTS = ("articles", "tokens", "embeddings", "chroma_collection")
STAGES = ("raw_dump", *SHARD_ARTIFACTS[:3], "lexical_index", *SHARD_ARTIFACTS[3:], "evaluation", "published_index")
OF_DATE = ("raw_dump", "lexical_index", "evaluation", "published_index")  # one partition a snapshot
UPSTREAM: Mapping[str, Sequence[str]] = {
    "articles": ("raw_dump",),
    "tokens": ("articles",),
    "embeddings": ("tokens",),
    "chroma_collection": ("embeddings",),
}


def code_version(artifact: str, config: WikiConfig) -> str:
    """The code and the settings that decide what an artifact holds, as Dagster shows them."""
    shards = f"n{config.shards}"
    model = config.model.rstrip("/").rpartition("/")[2]
    pieces = f"{config.passage_word_pieces}wp"
    return {
        "raw_dump": f"{RAW_VERSION}:{shards}",
        "articles": f"{articles.CODE_VERSION}:{shards}",
        "tokens": ":".join([tokens.CODE_VERSION, passages.CODE_VERSION, config.encoding, model, pieces]),
        "embeddings": f"{embeddings.CODE_VERSION}:{model}:{config.vector_dtype}",
        "lexical_index": lexical.CODE_VERSION,
        "chroma_collection": f"{index.CODE_VERSION}:{fingerprint(index.HNSW)[:8]}",
        "evaluation": f"{evaluation.CODE_VERSION}:{fusion.CODE_VERSION}",
        "published_index": "published-1",
    }[artifact]


def params(artifact: str, config: WikiConfig) -> dict[str, Any]:
    """The parameters of an artifact, as its manifest records them; what differs here differs in the bytes."""
    if artifact == "articles":
        return {"shards": config.shards}
    model = config.find_model()
    if artifact == "tokens":
        return {
            "encoding": config.encoding,
            "model": model.name,
            "tokenizer_sha256": model.sha256,
            **msgspec.to_builtins(tokens.PassageParams(config.passage_word_pieces, model.document_prompt)),
        }
    if artifact == "embeddings":
        return msgspec.to_builtins(embeddings.EmbeddingParams(model.name, model.sha256, model.dim, config.vector_dtype))
    return {"hnsw": index.HNSW, "model_sha256": model.sha256, "dim": model.dim}


class _Recipe:
    """What recipes of shards and of snapshots have in common."""

    artifact: str
    code_version: str
    params: dict[str, Any]
    inputs: dict[str, str]

    @property
    def fingerprint(self) -> str:
        """Of inputs, code version and parameters."""
        return fingerprint(self.code_version, self.params, self.inputs)

    @property
    def _place(self) -> tuple[Snapshot, int | None]:
        """The snapshot, and the shard's number, if it is of one."""
        raise NotImplementedError

    def manifest(self, files: dict[str, FileRecord], counts: dict[str, Any], stats: dict[str, Any]) -> Manifest:
        """The manifest that vouches for the result."""
        snapshot, shard = self._place
        return Manifest(
            artifact=self.artifact,
            wiki=snapshot.wiki,
            snapshot=snapshot.date,
            shard=shard,
            fingerprint=self.fingerprint,
            code_version=self.code_version,
            params=self.params,
            inputs=self.inputs,
            files=files,
            counts=counts,
            stats=stats,
        )


@dataclass(frozen=True)
class SnapshotRecipe(_Recipe):
    """What one artifact of a whole snapshot would be made from now."""

    artifact: str
    snapshot: Snapshot
    code_version: str
    params: dict[str, Any]
    inputs: dict[str, str]

    @property
    def _place(self) -> tuple[Snapshot, int | None]:
        return self.snapshot, None


@dataclass(frozen=True)
class Recipe(_Recipe):
    """What one artifact of one shard would be made from now."""

    artifact: str
    shard: Shard
    code_version: str
    params: dict[str, Any]
    inputs: dict[str, str]

    @property
    def _place(self) -> tuple[Snapshot, int | None]:
        return self.shard.snapshot, self.shard.number

    def metadata(self, config: WikiConfig) -> dict[str, str]:
        """What the Parquet file says of itself."""
        snapshot = self.shard.snapshot
        facts = {
            "wiki": snapshot.wiki,
            "snapshot": snapshot.date,
            "shard": self.shard.name,
            "shards": str(config.shards),
            "code_version": self.code_version,
            "fingerprint": self.fingerprint,
            "licence": articles.LICENCE,
            "changes": "markup removed by Wikimedia; split into shards, tokens and passages",
            **{name: str(value) for name, value in self.params.items()},
        }
        return {f"wiki_assets.{name}": value for name, value in facts.items()}


class Blocked(Exception):
    """An artifact's input is not there, or is not up to date."""


@dataclass(frozen=True)
class Cookbook:
    """The recipes of one wiki. `chroma` is the server that holds its collections; empty for embedded stores."""

    config: WikiConfig
    store: Store
    chroma: str = ""

    def recipe(self, artifact: str, shard: Shard, raw: Manifest | None = None) -> Recipe:
        """What an artifact of a shard would be made from now.

        Args:
            artifact: one of `SHARD_ARTIFACTS`.
            shard: which one.
            raw: the snapshot's raw manifest, where the caller has it at hand.

        Raises:
            Blocked: if an input is missing; the message names it.
        """
        inputs: dict[str, str] = {}
        for name in UPSTREAM[artifact]:
            if name == "raw_dump":
                manifest = raw or self.store.raw_manifest(shard.snapshot)
                label = str(shard.snapshot)
            else:
                manifest = self.store.manifest(name, shard)
                label = str(shard)
            if manifest is None:
                raise Blocked(f"{name} of {label} is not there: materialize {name} first")
            inputs[name] = manifest.data_version
        return Recipe(artifact, shard, code_version(artifact, self.config), params(artifact, self.config), inputs)

    def made(self, artifact: str, shard: Shard, raw: Manifest | None = None) -> Manifest | None:
        """The manifest of an artifact that is there and up to date, else None."""
        try:
            return self.made_by(self.recipe(artifact, shard, raw))
        except Blocked:
            return None

    def made_by(self, recipe: Recipe) -> Manifest | None:
        """The manifest of what lies in the store, if this recipe made it; else None."""
        if recipe.artifact == "chroma_collection":
            build = self.current_build(recipe.shard.snapshot)
            manifest = self.store.index_manifest(recipe.shard, build) if build else None
        else:
            manifest = self.store.manifest(recipe.artifact, recipe.shard)
        return manifest if manifest and manifest.fingerprint == recipe.fingerprint else None

    def shards(self, snapshot: Snapshot) -> list[Shard]:
        """Every shard of a snapshot."""
        return [Shard(snapshot, number) for number in range(self.config.shards)]

    def current_build(self, snapshot: Snapshot) -> int | None:
        """The build of the index to go on with: the newest, if it was begun with today's parameters and holds."""
        builds = self.store.builds(snapshot)
        if not builds:
            return None
        begun = read_json(self.store.build(snapshot, builds[-1]) / "build.json")
        if not begun or begun.get("params") != self._build_params() or begun.get("given_up"):
            return None
        return None if self._lost(self.store.build(snapshot, builds[-1])) else builds[-1]

    def _lost(self, build: UPath) -> bool:
        """Whether an embedded store that had rows is gone."""
        return not self.chroma and (build / "shards").is_dir() and not (build / "chroma" / "chroma.sqlite3").exists()

    def build_for(self, snapshot: Snapshot, todo: Sequence[Recipe]) -> int:
        """The build to add `todo` to; a new one if the current one holds other vectors of these shards.

        A collection is only ever added to, so a shard whose vectors changed cannot go into the build that has
        its old ones.
        """
        build = self.current_build(snapshot)
        stale = build is not None and any(
            (old := self.store.index_manifest(recipe.shard, build)) and old.fingerprint != recipe.fingerprint
            for recipe in todo
        )
        if build is None or stale:
            build = max(self.store.builds(snapshot), default=0) + 1
            write_json(
                self.store.build(snapshot, build) / "build.json",
                sealed(
                    {"wiki": snapshot.wiki, "snapshot": snapshot.date, "build": build, "params": self._build_params()}
                ),
            )
        return build

    def give_up_build(self, snapshot: Snapshot, build: int, reason: str) -> None:
        """Never add to this build again, nor publish it: its store holds something else than it should."""
        path = self.store.build(snapshot, build) / "build.json"
        write_json(path, sealed({**(read_json(path) or {}), "given_up": reason}))

    def _build_params(self) -> dict[str, Any]:
        return {
            "code_version": code_version("chroma_collection", self.config),
            "shards": self.config.shards,
            "server": self.chroma,
            **params("chroma_collection", self.config),
        }


def collection_name(snapshot: Snapshot, build: int) -> str:
    """The name of a build's collection: `simplewiki-20251103-1`."""
    return f"{snapshot}-{build}"
