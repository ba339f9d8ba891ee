"""A wiki that lives: each week it is edited, moved, merged and weeded, and published as a dump of its own."""

import random
from collections import Counter
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import lru_cache
from pathlib import Path

from wiki_assets_tests.bench.dumps import Dump
from wiki_assets_tests.tinywiki.build import NEW, compress_bz2, read_pages

WIKI = "weekwiki"
FIRST = date(2026, 1, 4)
PARTS = 2


@dataclass(frozen=True)
class Page:
    """An article of one week."""

    page_id: int
    title: str
    revision: int
    sentences: tuple[str, ...]

    @property
    def text(self) -> str:
        return " ".join(self.sentences)


@lru_cache(maxsize=1)
def _words() -> list[str]:
    return sorted({word for page in read_pages() for word in page.text.split() if word.isalpha()})


class LivingWiki:
    """Its articles now, and what became of them."""

    def __init__(self, dice: random.Random, n_pages: int) -> None:
        self._dice = dice
        self._revision = 0
        self._next_id = 1
        self.week = 0
        self.pages: dict[int, Page] = {}
        self.redirects: dict[str, str] = {}  # title, and where it leads
        for _ in range(n_pages):
            self._create()

    @property
    def date(self) -> str:
        """Of this week's dump."""
        return (FIRST + timedelta(weeks=self.week)).strftime("%Y%m%d")

    def live(self) -> Counter[str]:
        """Let a week pass; returns what was done in it."""
        self.week += 1
        done: Counter[str] = Counter()
        n = len(self.pages)
        for act, times in {
            self._edit: max(3, n // 10),
            self._touch: 2,
            self._move: 2,
            self._replace: 1,
            self._delete: 2,
            self._merge: 1,
            self._create: 3,
        }.items():
            for _ in range(times):
                act()
                done[act.__name__.strip("_")] += 1
        return done

    # --- what people do

    def _some(self) -> Page:
        return self._dice.choice(list(self.pages.values()))

    def _put(self, page: Page) -> None:
        self.pages[page.page_id] = page

    def _new_revision(self) -> int:
        self._revision += self._dice.randrange(1, 9)
        return self._revision

    def _sentence(self) -> str:
        words = self._dice.choices(_words(), k=self._dice.randrange(6, 14))
        return " ".join([words[0].capitalize(), *words[1:]]) + "."

    def _title(self) -> str:
        return " ".join(word.capitalize() for word in self._dice.sample(_words(), 2)) + f" {self._new_revision()}"

    def _create(self) -> None:
        sentences = tuple(self._sentence() for _ in range(self._dice.randrange(2, 40)))
        self._put(Page(self._next_id, self._title(), self._new_revision(), sentences))
        self._next_id += self._dice.randrange(1, 50)

    def _edit(self) -> None:
        """A sentence is added, goes, or becomes another."""
        page = self._some()
        at = self._dice.randrange(len(page.sentences))
        kept = self._dice.choice([page.sentences[:at], page.sentences[: at + 1]])
        new = () if self._dice.random() < 0.2 and len(page.sentences) > 1 else (self._sentence(),)
        sentences = (*kept, *new, *page.sentences[at + 1 :])
        self._put(replace(page, revision=self._new_revision(), sentences=sentences or page.sentences))

    def _touch(self) -> None:
        """A new revision with the same text: of a category, of a template."""
        self._put(replace(self._some(), revision=self._new_revision()))

    def _move(self) -> None:
        """Another title; the old one leads there."""
        page = self._some()
        moved = replace(page, title=self._title())
        self.redirects[page.title] = moved.title
        self._put(replace(moved, revision=self._new_revision()) if self._dice.random() < 0.5 else moved)

    def _replace(self) -> None:
        """Another article under the same page id."""
        page = self._some()
        sentences = tuple(self._sentence() for _ in range(self._dice.randrange(2, 20)))
        self._put(Page(page.page_id, self._title(), self._new_revision(), sentences))

    def _delete(self) -> Page:
        page = self.pages.pop(self._some().page_id)
        self.redirects = {name: target for name, target in self.redirects.items() if target != page.title}
        return page

    def _merge(self) -> None:
        """An article becomes part of another, and its title leads there."""
        gone, into = self._delete(), self._some()
        self.redirects[gone.title] = into.title
        sentences = into.sentences + gone.sentences
        self._put(replace(into, revision=self._new_revision(), sentences=sentences))

    # --- as a dump

    def dump(self, folder: Path) -> Dump:
        """This week's dump files: articles in no order, redirects, an outdated revision and a broken line."""
        pages = self._dice.sample(list(self.pages.values()), len(self.pages))
        rows = [NEW.row(_document(page)).data for page in pages]
        for number, (title, target) in enumerate(sorted(self.redirects.items())):
            page = Page(10**6 + number, title, self._new_revision(), (f"Redirect to: {target}",))
            leads = {"namespace": 0, "title": target, "fragment": "", "interwiki": "", "link": target}
            fields = {"page_type": "redirect", "redirect_target": leads}
            rows.append(NEW.row(_document(page) | fields).data)
        rows.append(NEW.row(_document(replace(pages[0], revision=0, sentences=("Old.",)))).data)
        rows.insert(len(rows) // 2, b"#### this line is no JSON ####\n")
        files = []
        for part in range(PARTS):
            path = folder / f"{WIKI}_content-{self.date}-{part:05d}.json.bz2"
            path.write_bytes(compress_bz2(b"".join(rows[part::PARTS]), 1))
            files.append(path)
        return Dump(tuple(files))


def _document(page: Page) -> dict[str, object]:
    return {
        "page_id": page.page_id,
        "title": page.title,
        "text": page.text,
        "version": page.revision,
        "timestamp": "2026-01-01T00:00:00Z",
        "language": "en",
        "namespace": 0,
        "wiki": WIKI,
        "category": [],
        "redirect": [],
    }


def ledger(before: dict[int, Page], now: dict[int, Page]) -> dict[str, int]:
    """What became of the pages from one week to the next, by looking at both."""
    stayed = before.keys() & now.keys()
    moved = {i for i in stayed if before[i].title != now[i].title}
    changed = {i for i in stayed - moved if before[i] != now[i]}
    return {
        "pages_added": len(now.keys() - stayed),
        "pages_changed": len(changed),
        "pages_moved": len(moved),
        "pages_gone": len(before.keys() - stayed),
        "pages_unchanged": len(stayed - moved - changed),
    }
