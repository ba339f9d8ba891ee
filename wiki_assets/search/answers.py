"""What is asked and what is answered."""

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal

from wiki_assets.stages.index import Hit

Mode = Literal["hybrid", "dense", "lexical"]
MODES: tuple[Mode, ...] = ("hybrid", "dense", "lexical")


@dataclass(frozen=True)
class Answer:
    """Hits, best first, and the build they come from. `mode` is the one that answered; `note` says why not another."""

    hits: list[Hit]
    wiki: str
    snapshot: str
    build: int
    collection: str
    mode: Mode
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class Article:
    """One page, whole, as the published snapshot has it."""

    page_id: int
    title: str
    text: str
    url: str
    revision: int
    updated: datetime | None  # of the last edit, UTC
    redirects: list[str]
    categories: list[str]
    language: str
    snapshot: str
    wiki: str
    permalink: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"updated": self.updated.isoformat() if self.updated else None}
