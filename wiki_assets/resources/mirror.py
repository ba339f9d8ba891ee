"""Which snapshots are published; fetch their bytes.

Source: the folders of https://dumps.wikimedia.org/other/, as of 2026:

    cirrus_search_index/20260823/index_name=enwiki_content/    the layout since 2026, one folder a wiki
        enwiki_content-20260823-00000.json.bz2                 numbered from 00000 without gaps
        _SUCCESS                                               written last
    cirrussearch/20251229/enwiki-20251229-cirrussearch-content.json.gz   the layout before; a listed file is whole
"""

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import quote

import dagster as dg
import httpx
from pydantic import Field, ValidationInfo, field_validator
from upath import UPath

from wiki_assets.errors import BadRequest, CorruptDump, SourceUnavailable, TransientSource
from wiki_assets.files import sha256_of
from wiki_assets.keys import Snapshot, check_date, check_wiki
from wiki_assets.resources.download import FetchedFile, Progress, RemoteFile, fetch_file
from wiki_assets.resources.partial import forget_note, partial_path
from wiki_assets.resources.session import NotThere, Patience, Session, check_root

__all__ = ["DumpMirror", "FetchedFile", "Progress", "RemoteFile"]

PROJECT_URL = "https://github.com/wiki-assets/wiki_assets"
_NEW = ("other", "cirrus_search_index")
_OLD = ("other", "cirrussearch")
_SUCCESS = "_SUCCESS"


class _State(StrEnum):
    """What a date folder of the new layout holds of a wiki."""

    COMPLETE = "complete"
    WRITING = "still being written"
    MISSING = "without this wiki"


class DumpMirror(dg.ConfigurableResource):
    """Wikimedia's dump server, or any server laid out like it."""

    base_url: str = Field(
        default="https://dumps.wikimedia.org",
        description="Root of the server; below it the paths are Wikimedia's. Plain http only for this machine",
    )
    contact: str = Field(
        default="", description="E-mail address or web page, sent with each request, as Wikimedia asks"
    )
    max_connections: int = Field(default=2, ge=1, le=3, description="Wikimedia allows 3 per address")
    max_attempts: int = Field(default=8, ge=1, description="Requests for one file or listing before giving up")
    max_wait_s: float = Field(default=3600, ge=0, description="Wait this long for a busy server, in all, per file")
    connect_timeout_s: float = Field(default=10, gt=0)
    read_timeout_s: float = Field(default=60, gt=0, description="Longest silence within a reply")
    stall_s: float = Field(default=120, gt=0, description="A connection slower than 1 KiB/s for this long is dropped")
    backoff_s: float = Field(default=1.0, ge=0, description="Base of the exponential back-off, before jitter")

    @field_validator("base_url", "contact", mode="before")
    @classmethod
    def _check_text(cls, text: object, info: ValidationInfo) -> object:
        """Refuse a wrong setting as soon as it is known: an EnvVar is, when Dagster has read it."""
        if not isinstance(text, str) or isinstance(text, dg.EnvVar):
            return text
        if info.field_name == "base_url":
            return check_root(text)
        if not re.fullmatch(r"[ -'*-~]*", text):
            raise BadRequest(f"contact {text!r:.80}: expected an e-mail address or URL: plain ASCII, no parentheses")
        return text

    @property
    def user_agent(self) -> str:
        """How we introduce ourselves, in the form of Wikimedia's User-Agent policy."""
        try:
            release = version("wiki_assets")
        except PackageNotFoundError:
            release = "0"
        who = "; ".join(filter(None, (f"+{PROJECT_URL}", self.contact.strip())))
        return f"wiki_assets/{release} ({who}) httpx/{httpx.__version__}"

    def snapshots(self, wiki: str) -> list[Snapshot]:
        """Complete snapshots of a wiki, oldest first: those whose folder holds `_SUCCESS`.

        Only where the new layout has none, those of the old layout. Empty where neither has any.

        Raises:
            SourceUnavailable: if the server cannot be asked.
        """
        with self._session() as session:
            return self._snapshots(session, check_wiki(wiki))

    def latest(self, wiki: str) -> Snapshot:
        """The newest complete snapshot of a wiki. Looks no further back than it must.

        Raises:
            SourceUnavailable: if there is none, saying what was found instead.
        """
        with self._session() as session:
            return self._latest(session, check_wiki(wiki))

    def dump_files(self, snapshot: Snapshot) -> list[RemoteFile]:
        """The files of a snapshot, in the order of their numbers.

        Raises:
            SourceUnavailable: if the snapshot is not on offer, is still being written, or has gaps.
        """
        with self._session() as session:
            return self._dump_files(session, snapshot)

    def fetch(self, file: RemoteFile, folder: UPath | Path, on_progress: Progress | None = None) -> FetchedFile:
        """Download one file to `<folder>/<name>`; raises and reports progress as `fetch_file` does."""
        with self._session() as session:
            return fetch_file(session, file, folder, on_progress=on_progress)

    def fetch_all(
        self,
        snapshot: Snapshot,
        folder: UPath | Path,
        on_progress: Progress | None = None,
        *,
        known: Mapping[str, FetchedFile] | None = None,
        on_fetched: Callable[[FetchedFile], object] | None = None,
    ) -> list[FetchedFile]:
        """Download every file of a snapshot, `max_connections` at once. The first final error ends the rest.

        Args:
            folder: where they shall lie. Finished files stay there, whatever happens to the others.
            on_progress: told bytes as `fetch_file` tells them, one call at a time.
            known: by name, what was found when a file was fetched before. A file in place that is, byte for
                byte, the one known is not fetched again; a server that now has other bytes is refused.
            on_fetched: told of each file fetched anew, whole and checked, just before it is in place, one call at
                a time, so that the caller can write down what `known` shall say after a kill.

        Returns:
            One record a file, in the order of `dump_files`.

        Raises:
            SourceUnavailable: as `dump_files`, or if a file cannot be had.
            TransientSource: if the server's list of files changed meanwhile.
            CorruptDump: if a file is damaged, or is not the one known.
        """
        one_at_a_time = threading.Lock()
        slots = threading.BoundedSemaphore(self.max_connections)

        def report(n_bytes: int) -> None:
            with one_at_a_time:
                if on_progress is not None:
                    on_progress(n_bytes)

        def tell(fetched: FetchedFile) -> None:
            with one_at_a_time:
                if on_fetched is not None:
                    on_fetched(fetched)

        def have_or_fetch(file: RemoteFile) -> FetchedFile:
            record = (known or {}).get(file.name)
            if record is not None and file.size_bytes not in (None, record.size_bytes):
                raise CorruptDump(
                    f"{file.name}: the server now lists {file.size_bytes:,} bytes, {record.size_bytes:,} are recorded: "
                    "delete this snapshot's raw folder to take the new edition"
                )
            if record is not None and _is_in_place(folder / file.name, record):
                forget_note(partial_path(folder, file.name))
                report(record.size_bytes)
                return record
            session.check_stopped()
            return fetch_file(session, file, folder, on_progress=report, recorded=record, on_fetched=tell, slots=slots)

        with self._session() as session:
            files = self._dump_files(session, snapshot)
            with ThreadPoolExecutor(2 * self.max_connections) as pool:  # half of them may be checking what they fetched
                tasks = [pool.submit(have_or_fetch, file) for file in files]
                try:
                    for task in as_completed(tasks):
                        task.result()
                except BaseException:
                    session.stop()
                    pool.shutdown(cancel_futures=True)
                    raise
            if self._dump_files(session, snapshot) != files:
                raise TransientSource(f"{snapshot}: the list of its files changed while they were fetched: run again")
            return [task.result() for task in tasks]

    def _session(self) -> Session:
        patience = Patience(
            connect_s=self.connect_timeout_s,
            read_s=self.read_timeout_s,
            stall_s=self.stall_s,
            backoff_s=self.backoff_s,
            max_wait_s=self.max_wait_s,
            max_attempts=self.max_attempts,
        )
        return Session(self.base_url, self.user_agent, max_connections=self.max_connections, patience=patience)

    def _url(self, *names: str) -> str:
        """A folder's URL; `=` is written %3D, as the server's own links write it."""
        return "/".join([self.base_url.rstrip("/"), *(quote(name, safe="") for name in names)]) + "/"

    def _dates(self, session: Session, layout: tuple[str, str]) -> list[str]:
        """The date folders of a layout, newest first; none where the server lacks the layout."""
        try:
            names = session.listing(self._url(*layout))
        except NotThere:
            return []
        return sorted((name.rstrip("/") for name in names if _is_date(name.rstrip("/"))), reverse=True)

    def _new_folder(self, session: Session, snapshot: Snapshot) -> tuple[_State, dict[str, int | None]]:
        try:
            names = session.listing(self._url(*_NEW, snapshot.date, f"index_name={snapshot.wiki}_content"))
        except NotThere:
            return _State.MISSING, {}
        return _State.COMPLETE if _SUCCESS in names else _State.WRITING, names

    def _survey(self, session: Session, wiki: str) -> Iterator[tuple[Snapshot, _State]]:
        """Each date of the new layout, newest first, asking for one at a time."""
        for date in self._dates(session, _NEW):
            snapshot = Snapshot(wiki, date)
            yield snapshot, self._new_folder(session, snapshot)[0]

    def _old_files(self, session: Session, snapshot: Snapshot) -> list[RemoteFile]:
        """The one file that the old layout may hold of a snapshot."""
        name = f"{snapshot.wiki}-{snapshot.date}-cirrussearch-content.json.gz"
        folder = self._url(*_OLD, snapshot.date)
        try:
            names = session.listing(folder)
        except NotThere:
            return []
        return [RemoteFile(name, folder + quote(name), names[name])] if name in names else []

    def _old_snapshots(self, session: Session, wiki: str) -> Iterator[Snapshot]:
        """Snapshots of the old layout, newest first."""
        dates = (Snapshot(wiki, date) for date in self._dates(session, _OLD))
        return (snapshot for snapshot in dates if self._old_files(session, snapshot))

    def _snapshots(self, session: Session, wiki: str) -> list[Snapshot]:
        complete = [snapshot for snapshot, state in self._survey(session, wiki) if state is _State.COMPLETE]
        return sorted(complete or self._old_snapshots(session, wiki))

    def _latest(self, session: Session, wiki: str) -> Snapshot:
        found: dict[_State, list[str]] = {}
        for snapshot, state in self._survey(session, wiki):
            if state is _State.COMPLETE:
                return snapshot
            found.setdefault(state, []).append(snapshot.date)
        for snapshot in self._old_snapshots(session, wiki):
            return snapshot
        seen = "; ".join(f"{', '.join(dates)} {state}" for state, dates in found.items()) or "no dates are listed"
        raise SourceUnavailable(
            f"{self.base_url} has no complete snapshot of {wiki}: {seen}. Check the wiki's name, or come back when "
            f"{self._url(*_NEW)} lists it with {_SUCCESS}"
        )

    def _dump_files(self, session: Session, snapshot: Snapshot) -> list[RemoteFile]:
        state, names = self._new_folder(session, snapshot)
        if state is _State.COMPLETE:
            return self._numbered_files(snapshot, names)
        if state is _State.WRITING:
            try:
                newest = f"the newest complete one is {self._latest(session, snapshot.wiki)}"
            except SourceUnavailable:
                newest = "there is no complete one yet"
            raise SourceUnavailable(
                f"{snapshot} is still being written: its folder has no {_SUCCESS}; {newest}. Take that or wait"
            )
        if files := self._old_files(session, snapshot):
            return files
        offers = ", ".join(offer.date for offer in self._snapshots(session, snapshot.wiki)) or "nothing"
        raise SourceUnavailable(
            f"{snapshot} is not on {self.base_url}; of {snapshot.wiki} it has {offers}: name one of those"
        )

    def _numbered_files(self, snapshot: Snapshot, names: Mapping[str, int | None]) -> list[RemoteFile]:
        """The dump files among `names`, which must be numbered from 00000 without gaps."""
        folder = self._url(*_NEW, snapshot.date, f"index_name={snapshot.wiki}_content")
        pattern = re.compile(rf"{snapshot.wiki}_content-{snapshot.date}-([0-9]{{5}})\.json\.bz2")
        numbered = sorted((match[1], name) for name in names if (match := pattern.fullmatch(name)))
        found = [int(number) for number, _ in numbered]
        if not found or found != list(range(len(found))):
            missing = sorted(set(range(max(found, default=0))) - set(found)) or [0]
            raise SourceUnavailable(
                f"{snapshot} has {_SUCCESS} and {len(found)} dump files, none numbered {missing[0]:05d}; expected all "
                "from 00000 on: take another snapshot, or come back later"
            )
        return [RemoteFile(name, folder + quote(name), names[name]) for _, name in numbered]


def _is_date(text: str) -> bool:
    try:
        return bool(check_date(text))
    except BadRequest:
        return False


def _is_in_place(path: UPath | Path, record: FetchedFile) -> bool:
    """Whether the file at `path` is, byte for byte, the one recorded."""
    try:
        return path.stat().st_size == record.size_bytes and sha256_of(path) == record.sha256
    except FileNotFoundError:
        return False
