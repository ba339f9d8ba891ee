"""Which wikis this deployment keeps, and how: read from a small typed file, with defaults that fit most."""

import tomllib
from collections.abc import Sequence
from importlib.resources import files as package_files
from pathlib import Path

import msgspec

from wiki_assets.errors import BadRequest
from wiki_assets.keys import check_shard_count, check_wiki
from wiki_assets.resources.models import EmbeddingModel, find_model
from wiki_assets.resources.store import Store
from wiki_assets.settings import Settings

_DUMP_BYTES_PER_SHARD = 32 << 20  # compressed; gives simplewiki 32, and 512 for what is as large as enwiki
_MOST_SHARDS = 512
_ASKED = ("keep_snapshots", "keep_builds", "max_loss", "max_drift")  # settings that win over a wiki's line


class WikiConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How one wiki is kept. `shards` cannot change. A change of what decides what is made (model, encoding, word
    pieces, dtype) makes what it touches stale.
    """

    wiki: str
    shards: int
    model: str
    encoding: str = "cl100k_base"
    passage_word_pieces: int = 128
    vector_dtype: str = "float32"
    check_minutes: int = 60  # how often the mirror is asked for a new snapshot
    keep_snapshots: int = 3
    keep_builds: int = 2  # of the index: the published one, and those to roll back to
    max_loss: float = 0.1  # share of the published pages that a new snapshot may lack
    max_drift: float = 0.5  # share by which pages and passages may differ in number from the published ones
    own_questions: int = 200  # sentences and titles of its own that are asked of a build where it keeps no questions
    max_recall_drop: float = 0.02  # by which the kept questions may be answered worse than by the published build

    def __post_init__(self) -> None:
        check_wiki(self.wiki)
        check_shard_count(self.shards)
        if not 16 <= self.passage_word_pieces <= 8192:
            raise BadRequest(f"{self.wiki}: passage_word_pieces = {self.passage_word_pieces}: expected 16 to 8192")
        if self.vector_dtype not in ("float32", "float16"):
            raise BadRequest(f"{self.wiki}: vector_dtype = {self.vector_dtype!r}: expected float32 or float16")
        if not 1 <= self.check_minutes <= 10_080:
            raise BadRequest(f"{self.wiki}: check_minutes = {self.check_minutes}: expected 1 to 10080, a week")
        if not 0 <= self.own_questions <= 10_000:
            raise BadRequest(f"{self.wiki}: own_questions = {self.own_questions}: expected 0 to 10000")
        for name in ("keep_snapshots", "keep_builds"):
            if getattr(self, name) < 1:
                raise BadRequest(f"{self.wiki}: {name} = {getattr(self, name)}: expected 1 or more")
        for name, most in (("max_loss", 1), ("max_drift", 100), ("max_recall_drop", 1)):
            if not 0 <= getattr(self, name) <= most:
                raise BadRequest(f"{self.wiki}: {name} = {getattr(self, name)}: expected a share, such as 0.1")

    def find_model(self) -> EmbeddingModel:
        """The wiki's embedding model on this machine."""
        return find_model(self.model)


def shards_for(dump_bytes: int) -> int:
    """How many shards suit a wiki whose compressed dump is this large: a power of two from 2 to 512."""
    shards = 2
    while shards * _DUMP_BYTES_PER_SHARD < dump_bytes and shards < _MOST_SHARDS:
        shards *= 2
    return shards


def read_wikis(settings: Settings) -> dict[str, dict[str, object]]:
    """The lines of the wikis file, by wiki.

    Raises:
        BadRequest: if the file is missing, or is not of the form that `wikis.toml` shows.
    """
    path = (
        Path(settings.wikis).expanduser() if settings.wikis else Path(str(package_files("wiki_assets"))) / "wikis.toml"
    )
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BadRequest(f"wikis file {path}: {error}: expected TOML, a table a wiki, such as [simplewiki]") from None
    for wiki, line in table.items():
        check_wiki(wiki)
        if not isinstance(line, dict):
            raise BadRequest(f"wikis file {path}: {wiki} = {line!r}: expected a table, [{wiki}]")
    return table


def wiki_config(wiki: str, settings: Settings, store: Store, *, dump_bytes: int | None = None) -> WikiConfig:
    """How a wiki is kept. Its shard count is what its data has; of a wiki without data, `WIKI_ASSETS_SHARDS`, its
    line in the wikis file, or what suits the size of its dump.

    Args:
        wiki: its database name.
        settings: the model where the file names none, and the shard count.
        store: knows the shard count of a wiki that has data.
        dump_bytes: compressed size of the wiki's dump, if known.

    Raises:
        BadRequest: if a value is wrong, or nothing tells the shard count.
    """
    line = {"model": settings.model, **read_wikis(settings).get(wiki, {})}
    shards = store.shard_count(wiki) or settings.shards or line.get("shards")
    if not shards and dump_bytes is not None:
        shards = shards_for(dump_bytes)
    if not shards:
        raise BadRequest(
            f"{wiki}: no data, and no line in the wikis file: "
            f"run wiki-assets materialize {wiki}, or set WIKI_ASSETS_SHARDS"
        )
    asked = {name: value for name in _ASKED if (value := getattr(settings, name))}
    try:
        return msgspec.convert({**line, **asked, "wiki": check_wiki(wiki), "shards": shards}, WikiConfig)
    except msgspec.ValidationError as error:
        raise BadRequest(f"[{wiki}] in the wikis file: {error}") from None


def require_shard_count(config: WikiConfig, settings: Settings, store: Store) -> None:
    """Record the shard count of a wiki's first data; refuse settings that ask for another one.

    Raises:
        BadRequest: if the environment or the wikis file asks for another count than the data has.
    """
    asked = settings.shards or read_wikis(settings).get(config.wiki, {}).get("shards") or config.shards
    store.fix_shard_count(config.wiki, int(str(asked)))


def known_wikis(settings: Settings, store: Store) -> Sequence[WikiConfig]:
    """Every wiki of the wikis file, and every wiki that has data under the root."""
    names = sorted({*read_wikis(settings), *store.wikis()})
    return [wiki_config(name, settings, store, dump_bytes=0) for name in names]
