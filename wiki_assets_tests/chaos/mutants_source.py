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
from pathlib import Path
from typing import Any

import wiki_assets.defs.raw  # noqa: F401  # whatever has imported the functions that are broken
from wiki_assets.resources.partial import PartialFile
from wiki_assets.stages import dump
from wiki_assets_tests.chaos import checks_content, checks_names, checks_network, checks_source
from wiki_assets_tests.chaos.downloader import Downloader
from wiki_assets_tests.chaos.trials import Check, one_trial

_PACKAGE = "wiki_assets"
MAX_TRIALS = 40  # a check that fails for a mutant once in so many trials would be luck


@dataclass(frozen=True)
class Edit:
    """Source of a function to be replaced: in `module:function`, or `module:Class.function`, `old` by `new`."""

    where: str
    old: str
    new: str

    def broken(self) -> tuple[Any, Callable[..., Any]]:
        """The function as it is, and as it would be."""
        module = importlib.import_module(f"{_PACKAGE}.{self.where.partition(':')[0]}")
        found: Any = module
        for name in self.where.partition(":")[2].split("."):
            found = inspect.getattr_static(found, name)
        function = inspect.unwrap(getattr(found, "__func__", found))
        source = textwrap.dedent(inspect.getsource(function))
        assert source.count(self.old) == 1, f"{self.where} has {self.old!r} {source.count(self.old)} times, not once"
        made: dict[str, Any] = {}
        exec(compile(source.replace(self.old, self.new), f"<{self.where}>", "exec"), vars(module), made)
        return found, made[function.__name__]

    def plant(self) -> list[tuple[Any, str, Any]]:
        """Break the build; returns what to set back."""
        found, broken = self.broken()
        owners: list[Any] = [module for name, module in list(sys.modules.items()) if name.startswith(f"{_PACKAGE}.")]
        *classes, _ = self.where.partition(":")[2].split(".")
        if classes:
            owners = [getattr(importlib.import_module(f"{_PACKAGE}.{self.where.partition(':')[0]}"), classes[0])]
        set_back = [
            (owner, name, value) for owner in owners for name, value in list(vars(owner).items()) if value is found
        ]
        for owner, name, _ in set_back:
            setattr(owner, name, broken)
        return set_back


@dataclass(frozen=True)
class Mutant:
    """A broken build, and the check that must fail for it, with what it is to be given beside dice and folder."""

    edits: tuple[Edit, ...]
    check: Check
    more: Mapping[str, Any]

    def plant(self) -> list[tuple[Any, str, Any]]:
        """Break the build of this process."""
        return [item for edit in self.edits for item in edit.plant()]

    @contextmanager
    def planted(self) -> Iterator[None]:
        """Break the build for a while."""
        set_back = self.plant()
        try:
            yield
        finally:
            for owner, name, value in reversed(set_back):
                setattr(owner, name, value)


def lenient_chunks(source: Any, name: str) -> Iterator[bytes]:
    """As the standard library reads packed files."""
    data = io.BytesIO(source.read())
    with bz2.open(data) if name.endswith("bz2") else gzip.open(data) as unpacked:
        yield unpacked.read()


def documents_by_pairs(reader: dump.DumpReader, chunks: Any) -> Iterator[dump.Document]:
    """As a reader that counts lines in twos."""
    lines = (line for _, line in reader._lines(chunks))
    for action, line in zip(lines, lines, strict=False):
        try:
            dump._decode_action(action or b"")
            document = dump._decode_document(line or b"")
        except (ValueError, RecursionError):
            continue
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
_UNCHECKED = (  # without which the checksums of the format find most of it out
    "resources.download:_check",
    "decoded_chunks(cast(IO[bytes], source), file.name)",
    "iter([source.read()])",
)
_SHORT_IS_FINE = ("resources.download:_receive", "if partial.size != expected:", "if False:")
_LONG_IS_FINE = ("resources.download:_receive", "if partial.size + len(chunk) > expected:", "if False:")

MUTANTS: Mapping[str, Mutant] = {
    "append to what is there when a whole file comes": _of(
        checks_source.editions_are_never_joined,
        ("resources.partial:PartialFile.begin", "self.clear()", "pass"),
        (
            "resources.download:_receive",
            "if partial.size + len(chunk) > expected:",
            "expected = max(expected, partial.size + len(chunk))\n        if False:",
        ),
        _UNCHECKED,
        lie="ignores Range",
    ),
    "go on in another edition": _of(
        checks_source.editions_are_never_joined,
        ("resources.download:_continues", "return same_etag and same_date and", "return"),
        _UNCHECKED,
        changes="same ETag",
        lie="ignores If-Range",
    ),
    "go on wherever the server goes on": _of(
        checks_source.editions_are_never_joined,
        ("resources.download:_continues", "and _content_range(reply) == (partial.size, note.size_bytes)", ""),
        _UNCHECKED,
        changes="nothing",
        lie="begins elsewhere",
    ),
    "ask for the rest of any edition": _of(
        checks_source.editions_are_never_joined, ("resources.download:_receive", '"If-Range"', '"X-If-Range"')
    ),
    "take 416 for the end": _of(
        checks_source.editions_are_never_joined,
        ("resources.download:_receive", "416 and total == partial.size == note.size_bytes:", "416:"),
        _UNCHECKED,
        lie="416",
    ),
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
        ("resources.download:_check", "if file.size_bytes not in (None, source.size_bytes):", "if False:"),
        lie="no length, cut between streams",
        listed=True,
    ),
    "take a web page": _of(
        checks_source.lies_about_a_file_are_not_believed,
        ("resources.download:_receive", "require_magic(first, file.name)", "pass"),
        _UNCHECKED,
        lie="a web page",
        listed=False,
    ),
    "take what cannot be unpacked": _of(checks_source.lies_about_a_file_are_not_believed, _UNCHECKED, lie="damaged"),
    "keep no lock": _of(
        checks_source.one_download_at_a_time,
        ("resources.partial:PartialFile.opened", "fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass"),
    ),
    "drink a trickle": _of(
        checks_source.trickles_are_dropped,
        ("resources.connections:_Stream.read", "if self._waited_s > self._stall_s:", "if False:"),
    ),
    "forget what has arrived": _of(
        checks_source.a_killed_download_goes_on,
        ("resources.partial:PartialFile.__init__", "self._read_note()", "None"),
        place=_line_of(PartialFile.append, "self._on_progress(n)"),
    ),
    "write down a file only when it is in place": _of(
        checks_source.a_killed_download_goes_on,
        (
            "resources.download:fetch_file",
            "if on_fetched is not None:",
            "partial.put_in_place(folder / file.name)\n            if on_fetched is not None:",
        ),
        ("resources.download:fetch_file", "partial.put_in_place(folder / file.name)\n            return", "return"),
        place=_line_of(PartialFile.put_in_place, "sync_folder("),
    ),
    "do not hear Retry-After": _of(
        checks_source.no_request_before_its_time,
        ("resources.session:Session._require_status", "= retry_after(reply.headers)", "= 0.0"),
    ),
    "read no dates in Retry-After": _of(
        checks_source.no_request_before_its_time,
        ("resources.session:retry_after", "if when else 0.0", "if False else 0.0"),
    ),
    "wait alone": _of(
        checks_source.the_longest_wait_holds_for_all,
        ("resources.session:Session._require_status", "max(self._not_before, time.monotonic() + retry_after_s)", "0.0"),
    ),
    "wait once": _of(
        checks_source.the_longest_wait_holds_for_all,
        ("resources.session:Session._wait_until_welcome", "while (", "if ("),
    ),
    "open more connections than allowed": _of(
        checks_source.the_longest_wait_holds_for_all,
        ("resources.connections:Transport.__init__", '"max_connections": max_connections', '"max_connections": 9'),
        ("resources.mirror:DumpMirror.fetch_all", "BoundedSemaphore(self.max_connections)", "BoundedSemaphore(9)"),
    ),
    "try once more": _of(
        checks_source.a_hopeless_server_is_given_up,
        (
            "resources.session:Session.retry",
            "return too_long or state.attempt_number >=",
            "return too_long or state.attempt_number >",
        ),
    ),
    "follow any redirect": _of(
        checks_network.redirects_lead_nowhere_else,
        ("resources.session:Session.open", "self._require_ours(target, url)", "pass"),
    ),
    "follow a downgrade": _of(
        checks_network.downgrades_are_refused,
        (
            "resources.session:Session._require_ours",
            'target.scheme == "https" and target.port is None',
            "target.port is None",
        ),
    ),
    "connect to any address": _of(
        checks_network.only_public_addresses_are_asked,
        (
            "resources.connections:look_up",
            "if not (address.is_loopback if loopback else is_public(address)):",
            "if False:",
        ),
    ),
    "check one address of several": _of(
        checks_network.only_public_addresses_are_asked,
        ("resources.connections:look_up", "for address in addresses:", "for address in addresses[:1]:"),
    ),
    "take for public what is not private": _of(
        checks_network.only_public_addresses_are_asked,
        ("resources.connections:look_up", "else is_public(address)", "else not address.is_private"),
    ),
    "look a name up again to connect": _of(
        checks_network.a_rebinding_name_reaches_nothing,
        ("resources.connections:_Backend.connect_tcp", "connect_tcp(address,", "connect_tcp(host,"),
    ),
    "take this machine's name on trust": _of(
        checks_network.this_machine_means_this_machine,
        ("resources.connections:look_up", "address.is_loopback if loopback", "True if loopback"),
    ),
    "trust a folder without _SUCCESS": _of(
        checks_source.no_part_is_taken_for_a_snapshot,
        ("resources.mirror:DumpMirror._new_folder", "if _SUCCESS in names", "if True"),
        event="never finished",
    ),
    "look at the list once": _of(
        checks_source.no_part_is_taken_for_a_snapshot,
        ("resources.mirror:DumpMirror.fetch_all", "if self._dump_files(session, snapshot) != files:", "if False:"),
        event="one more file",
    ),
    "overlook a gap": _of(
        checks_source.no_part_is_taken_for_a_snapshot,
        (
            "resources.mirror:DumpMirror._numbered_files",
            "if not found or found != list(range(len(found))):",
            "if not found:",
        ),
        event="a file goes",
    ),
    "take the oldest for the latest": _of(
        checks_source.the_newest_whole_snapshot_is_the_latest,
        ("resources.mirror:DumpMirror._dates", "reverse=True", "reverse=False"),
    ),
    "take other bytes than those recorded": _of(
        checks_source.what_was_fetched_stays_the_truth,
        ("resources.download:fetch_file", "if recorded and fetched.sha256 != recorded.sha256:", "if False:"),
    ),
    "forget what the manifest says": _of(
        checks_source.what_was_fetched_stays_the_truth,
        ("defs.raw:fetch_snapshot", "_recorded(manifest_path) | _noted(notes)", "_noted(notes)"),
    ),
    "unpack as the standard library does": _of(
        checks_content.no_text_is_lost_in_silence,
        ("resources.download:_check", "decoded_chunks(", f"{_HERE}.lenient_chunks("),
    ),
    "stop after the first stream": _of(
        checks_content.no_text_is_lost_in_silence,
        ("compression:decoded_chunks", "if number and not pending:", "if number:"),
    ),
    "unpack a bomb to its end": _of(
        checks_content.a_bomb_is_not_unpacked,
        ("resources.download:_check", "if decoded_bytes > MAX_RATIO * partial.size + RATIO_FLOOR_BYTES:", "if False:"),
    ),
    "unpack in one go": _of(
        checks_content.a_bomb_is_not_unpacked,
        ("resources.download:_check", "file.name):", "file.name, 1 << 40):"),
    ),
    "stop at a bad line": _of(
        checks_content.a_bad_line_costs_only_itself,
        (
            "stages.dump:DumpReader.documents",
            "self._reject(document)\n",
            "self._reject(document)\n                return\n",
        ),
    ),
    "read lines in pairs": _of(
        checks_content.a_bad_line_costs_only_itself,
        (
            "stages.dump:DumpReader.documents",
            "action: tuple",
            f"return (yield from {_HERE}.documents_by_pairs(self, chunks))\n    action: tuple",
        ),
    ),
    "keep a byte order mark": _of(
        checks_content.a_bad_line_costs_only_itself,
        ("stages.dump:DumpReader._lines", "elif line := line.removeprefix(_BOM)", "elif line := line"),
    ),
    "take any name for a wiki": _of(
        checks_names.names_stay_inside,
        ("keys:check_wiki", "if not isinstance(name, str) or not _WIKI.fullmatch(name):", "if False:"),
    ),
    "take any name for a file": _of(
        checks_names.names_stay_inside,
        ("resources.download:fetch_file", "if not _NAME.fullmatch(file.name):", "if False:"),
    ),
    "read digits of any script": _of(
        checks_names.a_listing_cannot_name_other_places,
        ("resources.mirror:DumpMirror._numbered_files", "([0-9]{{5}})", "(\\d{{5}})"),
    ),
    "follow links": _of(
        checks_names.links_are_not_followed,
        (
            "resources.partial:PartialFile.opened",
            "if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:",
            "if False:",
        ),
        ("resources.partial:PartialFile.opened", " | os.O_NOFOLLOW", ""),
    ),
    "let bytes wait anywhere": _of(
        checks_names.bytes_wait_where_only_we_can_write,
        ("resources.partial:partial_path", "if not stat.S_ISDIR(found.st_mode)", "if False and not"),
    ),
}


def survivors(seed: int, folder: Path, downloader: Downloader, bombs: Mapping[str, bytes]) -> list[str]:
    """The mutants that no trial of their check fails for."""
    alive = []
    for name, mutant in MUTANTS.items():
        more = dict(mutant.more)
        in_child = mutant.check in (checks_source.a_killed_download_goes_on, checks_content.a_bomb_is_not_unpacked)
        if in_child:
            more |= {"downloader": downloader, "mutant": name}
        if mutant.check is checks_content.a_bomb_is_not_unpacked:
            bomb, data = next(iter(bombs.items()))
            more |= {"name": bomb, "data": data}
        with mutant.planted():
            if not any(_fails(mutant.check, seed, n, folder, more) for n in range(MAX_TRIALS)):
                alive.append(name)
    return alive


def _fails(check: Check, seed: int, number: int, folder: Path, more: dict[str, Any]) -> bool:
    try:
        one_trial(check, seed, number, folder, **more)
    except AssertionError:
        return True
    return False
