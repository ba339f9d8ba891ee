"""Builds broken on purpose, each in one way, and the check that must fail for each.

A mutant is an edit of the source of a function, so that what is tested is the build as it is but for that edit. An edit
that finds no such source any more is an error: bring it up to date.
"""

import bz2
import gzip
import importlib
import inspect
import io
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from wiki_assets.resources.partial import PartialFile
from wiki_assets.stages import dump
from wiki_assets_tests.chaos import checks_content, checks_names, checks_network, checks_snapshot, checks_source
from wiki_assets_tests.chaos.downloader import Downloader
from wiki_assets_tests.chaos.trials import Check, one_trial

_PACKAGE = "wiki_assets"
MAX_TRIALS = 40  # to fail for a mutant once in more would be luck


@dataclass(frozen=True)
class Edit:
    """In the source of the function `module:function` or `module:Class.function`, `new` instead of `old`."""

    where: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutant:
    """A broken build, and the check that must fail for it, with what it is given beside dice and folder."""

    edits: tuple[Edit, ...]
    check: Check
    more: Mapping[str, Any]

    def plant(self) -> list[tuple[Any, str, Any]]:
        """Break the build of this process; returns what to set back: owner, name, value."""
        set_back = []
        for where in dict.fromkeys(edit.where for edit in self.edits):
            owner, found = _find(where)
            broken = _broken(where, found, [edit for edit in self.edits if edit.where == where])
            modules = [module for name, module in list(sys.modules.items()) if name.startswith(_PACKAGE)]
            for place in [owner] if inspect.isclass(owner) else modules:
                for name in [name for name, value in vars(place).items() if value is found]:
                    set_back.append((place, name, found))
                    setattr(place, name, broken)
        return set_back

    @contextmanager
    def planted(self) -> Iterator[None]:
        """Break the build for a while."""
        set_back = self.plant()
        try:
            yield
        finally:
            for owner, name, value in set_back:
                setattr(owner, name, value)


def _find(where: str) -> tuple[Any, Any]:
    """The module or class that has a function, and the function as it is there."""
    module, _, path = where.partition(":")
    owner: Any = importlib.import_module(f"{_PACKAGE}.{module}")
    *classes, name = path.split(".")
    for each in classes:
        owner = getattr(owner, each)
    return owner, vars(owner)[name]


@cache
def _source(where: str) -> str:
    """The source of a function; read once, while the file is what was imported."""
    _, found = _find(where)
    return textwrap.dedent(inspect.getsource(inspect.unwrap(getattr(found, "__func__", found))))


def _broken(where: str, found: Any, edits: list[Edit]) -> Any:
    """The function as it would be with these edits."""
    source = _source(where)
    for edit in edits:
        assert source.count(edit.old) == 1, f"{where} has {edit.old!r} {source.count(edit.old)} times, not once"
        source = source.replace(edit.old, edit.new)
    function, made = inspect.unwrap(getattr(found, "__func__", found)), dict[str, Any]()
    exec(compile(source, f"<{where}>", "exec"), vars(sys.modules[function.__module__]), made)
    return made[function.__name__]


def undecoded_chunks(source: Any, name: str, on_stream: Callable[[int], object]) -> Iterator[bytes]:
    """As who does not look into packed files."""
    on_stream(0)
    yield source.read()


def lenient_chunks(source: Any, name: str, on_stream: Callable[[int], object]) -> Iterator[bytes]:
    """As the standard library reads packed files."""
    data = io.BytesIO(source.read())
    on_stream(0)
    with bz2.open(data) if name.endswith("bz2") else gzip.open(data) as unpacked:
        yield unpacked.read()


def documents_in_pairs(reader: dump.DumpReader, chunks: Any) -> Iterator[dump.Document]:
    """As a reader that takes lines two by two."""
    lines = (line for _, line in reader.lines(chunks))
    for action, line in zip(lines, lines, strict=False):
        try:
            page_id = dump._decode_action(action or b"").index.id
            document = dump._decode_document(line or b"")
        except (ValueError, RecursionError):
            continue
        document.page_id = document.page_id or dump._page_id(page_id) or 1
        reader.n_documents += 1
        yield document


def _line_of(function: Callable[..., Any], text: str) -> str:
    """Where a line of our own is, as a survey names it."""
    lines, first = inspect.getsourcelines(function)
    (number,) = (n for n, line in enumerate(lines, first) if text in line)
    return f"{Path(inspect.getfile(function)).name}:{number}"


def _of(check: Check, *edits: tuple[str, str, str], **more: Any) -> Mutant:
    return Mutant(tuple(Edit(*edit) for edit in edits), check, more)


_HERE = f"__import__({__name__!r}, fromlist=['x'])"
_PAIRS = f"{_HERE}.documents_in_pairs"
_CHECK = "resources.download:_check"
_RECEIVE = "resources.download:_receive"
_FETCH = "resources.download:fetch_file"
_OPENED = "resources.partial:PartialFile.opened"
_SESSION = "resources.session:Session"
_MIRROR = "resources.mirror:DumpMirror"
_LOOK_UP = "resources.connections:look_up"
_DOCUMENTS = "stages.dump:DumpReader.documents"
_PUT = "partial.put_in_place(folder / file.name)\n"
_NOT_UNPACKED = (_CHECK, "decoded_chunks(", f"{_HERE}.undecoded_chunks(")  # its checksums find most of the rest out
_SHORT_IS_FINE = (_RECEIVE, "if partial.size != expected:", "if False:")
_LONG_IS_FINE = (_RECEIVE, "if partial.size + len(chunk) > expected:", "expected += len(chunk)\n            if False:")

MUTANTS: Mapping[str, Mutant] = {
    # D1
    "keep no lock": _of(
        checks_source.one_download_at_a_time, (_OPENED, "fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass")
    ),
    "drink a trickle": _of(
        checks_source.trickles_are_dropped,
        ("resources.connections:_Stream.read", "if self._waited_s > self._stall_s:", "if False:"),
    ),
    "begin anew after each failure": _of(
        checks_source.drops_end_in_the_same_bytes,
        (_RECEIVE, "resume = note is not None and", "resume = False and note is not None and"),
    ),
    "forget what has arrived": _of(
        checks_snapshot.a_killed_download_goes_on,
        ("resources.partial:PartialFile.__init__", "self._read_note()", "None"),
        place=_line_of(PartialFile.append, "self._on_progress(n)"),
    ),
    "write a file down only when it is in place": _of(
        checks_snapshot.a_killed_download_goes_on,
        (_FETCH, f"            {_PUT}", ""),
        (_FETCH, "if on_fetched is not None:", f"{_PUT}            if on_fetched is not None:"),
        place=_line_of(PartialFile.put_in_place, "sync_folder("),
    ),
    # D2
    "do not hear Retry-After": _of(
        checks_source.no_request_before_its_time,
        (f"{_SESSION}.busy", "retry_after(reply.headers))", "0.0)"),
    ),
    "read no dates in Retry-After": _of(
        checks_source.no_request_before_its_time,
        ("resources.session:retry_after", "if when else 0.0", "if False else 0.0"),
    ),
    "wait alone": _of(
        checks_source.the_longest_wait_holds_for_all,
        (f"{_SESSION}.busy", "max(self._not_before, time.monotonic() + wait_s)", "0.0"),
    ),
    "wait once": _of(
        checks_source.the_longest_wait_holds_for_all, (f"{_SESSION}._wait_until_welcome", "while (", "if (")
    ),
    "open more connections than allowed": _of(
        checks_source.the_longest_wait_holds_for_all,
        ("resources.connections:Transport.__init__", '"max_connections": max_connections', '"max_connections": 9'),
        (f"{_MIRROR}.fetch_all", "BoundedSemaphore(self.max_connections)", "BoundedSemaphore(9)"),
    ),
    "try once more": _of(
        checks_source.a_hopeless_server_is_given_up,
        (f"{_SESSION}.retry", "too_long or state.attempt_number >=", "too_long or state.attempt_number >"),
    ),
    "give up a name that cannot be looked up": _of(
        checks_network.a_name_without_addresses_is_asked_again,
        (_LOOK_UP, 'raise httpcore.ConnectError(f"{host}: {error}") from', "raise SourceUnavailable(host) from"),
    ),
    # D3
    "believe that a body without a length is whole": _of(
        checks_source.lies_about_a_file_are_not_believed,
        ("resources.download:_note_of", "else file.size_bytes", "else file.size_bytes or 1 << 40"),
        _SHORT_IS_FINE,
        lie="no length, cut between streams",
        listed=False,
    ),
    "take a short body": _of(
        checks_source.lies_about_a_file_are_not_believed,
        _SHORT_IS_FINE,
        (_CHECK, "if file.size_bytes not in (None, source.size_bytes):", "if False:"),
        lie="no length, cut between streams",
        listed=True,
    ),
    "take a web page": _of(
        checks_source.lies_about_a_file_are_not_believed,
        (_RECEIVE, "require_magic(first, file.name)", "pass"),
        _NOT_UNPACKED,
        lie="a web page",
        listed=False,
    ),
    "take what cannot be unpacked": _of(checks_source.lies_about_a_file_are_not_believed, _NOT_UNPACKED, lie="damaged"),
    # D4
    "append a whole file to what is there": _of(
        checks_source.editions_are_never_joined,
        ("resources.partial:PartialFile.begin", "self.clear()", "pass"),
        _LONG_IS_FINE,
        _SHORT_IS_FINE,
        (_CHECK, "if file.size_bytes not in (None, source.size_bytes):", "if False:"),
        _NOT_UNPACKED,
        lie="ignores Range",
    ),
    "go on in another edition": _of(
        checks_source.editions_are_never_joined,
        ("resources.download:_continues", "return same_etag and same_date and", "return"),
        (_RECEIVE, '"If-Range": note.validator or ""', '"If-Range": ""'),
        _NOT_UNPACKED,
        changes="same ETag",
        lie="ignores If-Range",
    ),
    "go on wherever the server goes on": _of(
        checks_source.editions_are_never_joined,
        ("resources.download:_continues", "and _content_range(reply) == (partial.size, note.size_bytes)", ""),
        _LONG_IS_FINE,
        _SHORT_IS_FINE,
        (_CHECK, "if file.size_bytes not in (None, source.size_bytes):", "if False:"),
        _NOT_UNPACKED,
        changes="nothing",
        lie="begins elsewhere",
    ),
    "ask for the rest of any edition": _of(
        checks_source.editions_are_never_joined, (_RECEIVE, '"If-Range"', '"X-If-Range"')
    ),
    "take 416 for the end": _of(
        checks_source.editions_are_never_joined,
        (_RECEIVE, "416 and total == partial.size == note.size_bytes:", "416:"),
        (_CHECK, "if file.size_bytes not in (None, source.size_bytes):", "if False:"),
        _NOT_UNPACKED,
        lie="416",
    ),
    # D5
    "follow any redirect": _of(
        checks_network.redirects_lead_nowhere_else, (f"{_SESSION}.open", "self._require_ours(target, url)", "pass")
    ),
    "follow redirects for ever": _of(
        checks_network.redirects_lead_nowhere_else,
        (f"{_SESSION}.open", "for _ in range(MAX_REDIRECTS + 1):", "for _ in range(99):"),
    ),
    "follow a downgrade": _of(
        checks_network.downgrades_are_refused,
        (f"{_SESSION}._require_ours", 'target.scheme == "https" and target.port is None', "target.port is None"),
    ),
    "connect to any address": _of(
        checks_network.only_public_addresses_are_asked,
        (_LOOK_UP, "if not (address.is_loopback if loopback else is_public(address)):", "if False:"),
    ),
    "check one address of several": _of(
        checks_network.only_public_addresses_are_asked,
        (_LOOK_UP, "for address in addresses:", "for address in addresses[:1]:"),
    ),
    "take for public what is not private": _of(
        checks_network.only_public_addresses_are_asked,
        (_LOOK_UP, "else is_public(address)", "else not address.is_private"),
    ),
    "look a name up again to connect": _of(
        checks_network.a_rebinding_name_reaches_nothing,
        ("resources.connections:_Backend.connect_tcp", "connect_tcp(address,", "connect_tcp(host,"),
    ),
    "trust what this machine's name leads to": _of(
        checks_network.this_machine_means_this_machine,
        (_LOOK_UP, "address.is_loopback if", "True if"),
    ),
    # D6, S2
    "trust a folder without _SUCCESS": _of(
        checks_snapshot.no_part_is_taken_for_a_snapshot,
        (f"{_MIRROR}._new_folder", "if _SUCCESS in names", "if True"),
        event="never finished",
    ),
    "look at the list once": _of(
        checks_snapshot.no_part_is_taken_for_a_snapshot,
        (f"{_MIRROR}.fetch_all", "if self._dump_files(session, snapshot) != files:", "if False:"),
        event="one more file",
    ),
    "overlook a gap": _of(
        checks_snapshot.no_part_is_taken_for_a_snapshot,
        (f"{_MIRROR}._numbered_files", "if not found or found != list(range(len(found))):", "if not found:"),
        (f"{_MIRROR}.fetch_all", "if self._dump_files(session, snapshot) != files:", "if False:"),
        event="a file goes",
        moment=1,
    ),
    "take the oldest for the latest": _of(
        checks_snapshot.the_newest_whole_snapshot_is_the_latest,
        (f"{_MIRROR}._dates", "reverse=True", "reverse=False"),
    ),
    # D7
    "take other bytes than those recorded": _of(
        checks_snapshot.what_was_fetched_stays_the_truth,
        (_FETCH, "if recorded and fetched.sha256 != recorded.sha256:", "if False:"),
    ),
    "forget what the manifest says": _of(
        checks_snapshot.what_was_fetched_stays_the_truth,
        ("defs.raw:fetch_snapshot", "_recorded(manifest_path) | _noted(notes)", "_noted(notes)"),
    ),
    # D9
    "unpack as the standard library does": _of(
        checks_content.no_text_is_lost_in_silence,
        (_CHECK, "decoded_chunks(", f"{_HERE}.lenient_chunks("),
        damage="the head of the last stream",
    ),
    "stop after the first stream": _of(
        checks_content.no_text_is_lost_in_silence,
        ("compression:decoded_chunks", "if number and not pending:", "if number:"),
    ),
    "unpack a bomb to its end": _of(
        checks_content.a_bomb_is_not_unpacked,
        (_CHECK, "if decoded_bytes > MAX_RATIO * partial.size + RATIO_FLOOR_BYTES:", "if False:"),
    ),
    "unpack in one go": _of(checks_content.a_bomb_is_not_unpacked, (_CHECK, "file.name, on", "file.name, 1 << 40, on")),
    # P1
    "stop at a bad line": _of(
        checks_content.a_bad_line_costs_only_itself,
        (_DOCUMENTS, "self._reject(document)\n", "self._reject(document)\n            return\n"),
    ),
    "take lines two by two": _of(
        checks_content.a_bad_line_costs_only_itself,
        (
            _DOCUMENTS,
            "action: tuple",
            f"return (yield from {_PAIRS}(self, chunks))\n    action: tuple",
        ),
    ),
    "keep a byte order mark": _of(
        checks_content.a_bad_line_costs_only_itself,
        ("stages.dump:DumpReader.lines", "elif line := line.removeprefix(_BOM)", "elif line := line"),
    ),
    # Q2
    "take any name for a wiki": _of(
        checks_names.names_stay_inside,
        ("keys:check_wiki", "if not isinstance(name, str) or not _WIKI.fullmatch(name):", "if False:"),
    ),
    "take any name for a file": _of(
        checks_names.names_stay_inside, (_FETCH, "if not _NAME.fullmatch(file.name):", "if False:")
    ),
    "read digits of any script": _of(
        checks_names.a_listing_cannot_name_other_places,
        (f"{_MIRROR}._numbered_files", "([0-9]{{5}})", "(\\d{{5}})"),
    ),
    "follow links": _of(
        checks_names.links_are_not_followed,
        (_OPENED, "if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:", "if False:"),
        (_OPENED, " | os.O_NOFOLLOW", ""),
    ),
    "let bytes wait anywhere": _of(
        checks_names.bytes_wait_where_only_we_can_write,
        (
            "files:spool_folder",
            "if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:",
            "if False:",
        ),
    ),
}
for _mutant in MUTANTS.values():
    for _edit in _mutant.edits:
        _source(_edit.where)
_IN_CHILD = (checks_snapshot.a_killed_download_goes_on, checks_content.a_bomb_is_not_unpacked)


def survivors(seed: int, folder: Path, downloader: Downloader, bomb: tuple[str, bytes]) -> list[str]:
    """The mutants that no trial of their check fails for.

    Args:
        seed: of the dice.
        folder: scratch.
        downloader: where those are planted whose checks kill processes or weigh them.
        bomb: name and bytes.
    """
    alive = []
    with checks_source.connections.counted():
        for name, mutant in MUTANTS.items():
            more = dict(mutant.more)
            if mutant.check in _IN_CHILD:
                more |= {"downloader": downloader, "mutant": name}
            if mutant.check is checks_content.a_bomb_is_not_unpacked:
                more |= dict(zip(("name", "data"), bomb, strict=True))
            with mutant.planted():
                if not any(_fails(mutant.check, seed, n, folder, more) for n in range(MAX_TRIALS)):
                    alive.append(name)
    return alive


def _fails(check: Check, seed: int, number: int, folder: Path, more: dict[str, Any]) -> bool:
    try:
        one_trial(check, seed, number, folder, **more)
    except AssertionError as error:
        if isinstance(error.__cause__, AttributeError | NameError | TypeError):
            raise  # the edit is wrong, not the build
        return True
    return False
