"""A wiki of many snapshots as its folders look, without a byte of sense in them: for tests of what is kept."""

from pathlib import Path
from typing import Any

from wiki_assets.defs.recipes import Cookbook, Recipe, code_version, collection_name, params
from wiki_assets.defs.wikis import WikiConfig
from wiki_assets.files import sealed, write_json
from wiki_assets.keys import Shard, Snapshot
from wiki_assets.resources.models import DEFAULT_MODEL
from wiki_assets.resources.store import Store

WIKI = "keptwiki"
ARTIFACTS = ("raw", "articles", "tokens", "passages", "embeddings")


class KeptWiki:
    """Two shards, and as many snapshots and builds as are laid out."""

    def __init__(self, root: Path, **config: Any) -> None:
        self.root = root / WIKI
        store = Store(str(root))
        store.fix_shard_count(WIKI, 2)
        self.book = Cookbook(WikiConfig(WIKI, 2, DEFAULT_MODEL, **config), store)

    def snapshot(self, date: str, *, artifacts: tuple[str, ...] = ARTIFACTS, builds: tuple[int, ...] = (1,)) -> None:
        """Lay out a snapshot."""
        for artifact in artifacts:
            folder = self.root / artifact / date
            folder.mkdir(parents=True)
            (folder / "00000.parquet").write_bytes(b"x" * 100)
        for number in builds:
            self.build(date, number)

    def build(self, date: str, number: int, **note: Any) -> Path:
        """Lay out a whole build of an index."""
        folder = self.root / "index" / f"{date}-{number}"
        for name in ("chroma", "shards"):
            (folder / name).mkdir(parents=True)
        (folder / "chroma" / "chroma.sqlite3").write_bytes(b"x" * 1000)
        for number_of_shard in range(2):
            (folder / "shards" / f"{number_of_shard:05d}.json").write_text("{}")
        write_json(folder / "build.json", sealed({"params": {"server": ""}, **note}))
        return folder

    def vectors(self, date: str, *shards: int) -> None:
        """Manifests of embeddings that today's code would make."""
        version, values = code_version("embeddings", self.book.config), params("embeddings", self.book.config)
        for number in shards:
            shard = Shard(Snapshot(WIKI, date), number)
            manifest = Recipe("embeddings", shard, version, values, {}).manifest({}, {}, {})
            write_json(self.book.store.manifest_path("embeddings", shard), manifest)

    def publish(self, *builds: tuple[str, int], rolled_back: tuple[tuple[str, int], ...] = ()) -> None:
        """Point to the first of the builds; the others were published before it."""
        pointer: dict[str, Any] | None = None
        for date, number in reversed(builds):
            pointer = self.pointer(date, number) | {"previous": pointer}
        assert pointer is not None
        if rolled_back:
            pointer["rolled_back"] = [self.pointer(*build) for build in rolled_back]
        store = self.book.store
        store.publish(WIKI, pointer, instead_of=store.pointer(WIKI))

    def pointer(self, date: str, number: int) -> dict[str, Any]:
        collection = collection_name(Snapshot(WIKI, date), number)
        return {"wiki": WIKI, "snapshot": date, "build": number, "collection": collection}

    def dates(self, artifact: str = "articles") -> list[str]:
        """Snapshots of which files are there."""
        folder = self.root / artifact
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def indexes(self) -> list[str]:
        """Builds that have rows."""
        return sorted(path.parent.name for path in (self.root / "index").glob("*/chroma"))
