"""What must hold of a whole snapshot, whatever happens to it or to us: tests ask it of the build, and of broken ones.

Each check is one trial: it takes dice and an empty folder, fails with an AssertionError, and returns counts to add up.
"""

import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from wiki_assets.errors import CorruptDump
from wiki_assets.files import Manifest, read_manifest, verify_files
from wiki_assets.keys import Snapshot
from wiki_assets.resources.store import Store
from wiki_assets_tests.chaos.downloader import Downloader
from wiki_assets_tests.chaos.source import (
    FOLDER,
    SNAPSHOT,
    SUCCESS,
    begin_of,
    fetched,
    mirror_of,
    numbered,
    outcome,
    packed,
    sha256,
    snapshot_files,
)
from wiki_assets_tests.resources.faulty_server import FaultyServer

EVENTS = {  # what happens meanwhile -> what an error may say of it
    "nothing": "^no error$",
    "never finished": "still being written: its folder has no _SUCCESS",
    "_SUCCESS goes": "still being written",
    "one more file": "list of its files changed",
    "a file goes": "not there|none numbered|changed",
    "the date goes": "not there|is not on",
    "an older one comes": "^no error$",
    "a newer one begins": "^no error$",
    "other bytes": "the listing|list of its files changed|the server now|ended after|more than the",
}


def published(server: FaultyServer) -> dict[str, str]:
    """SHA-256 of the snapshot's dump files that the server offers now, by name."""
    return {
        path.rpartition("/")[2]: sha256(data)
        for path, data in server.files.items()
        if path.startswith(FOLDER) and path != SUCCESS
    }


def recorded(manifest: Manifest) -> dict[str, str]:
    """The same as a manifest says it."""
    return {name.rpartition("/")[2]: record.sha256 for name, record in manifest.files.items()}


def dump_paths(files: dict[str, bytes]) -> list[str]:
    return sorted(path for path in files if path.endswith(".bz2"))


# D6, S2


def no_part_is_taken_for_a_snapshot(
    dice: random.Random, folder: Path, event: str | None = None, moment: int | None = None
) -> Counter[str]:
    """Whatever comes, goes or changes meanwhile: a manifest lists the whole snapshot, or there is none, and why."""
    event = event or dice.choice(sorted(EVENTS))
    files = snapshot_files(dice, dice.randint(2, 4))
    changed = dice.choice(dump_paths(files))
    moment = moment or dice.randint(1, len(files) + 4)
    store = Store(str(folder))
    happenings: dict[str, Callable[[], object]] = {
        "_SUCCESS goes": lambda: server.files.pop(SUCCESS, None),
        "one more file": lambda: server.files.update({numbered(len(files) - 1): packed(dice, 3)}),
        "a file goes": lambda: server.files.pop(changed, None),
        "the date goes": lambda: server.files.clear(),
        "an older one comes": lambda: server.files.update(snapshot_files(dice, 2, date="20260816")),
        "a newer one begins": lambda: server.files.update(snapshot_files(dice, 2, date="20260830", done=False)),
        "other bytes": lambda: server.files.update({changed: packed(dice, dice.randint(2, 12))}),
    }
    with FaultyServer(files) as server:
        if event == "never finished":
            del server.files[SUCCESS]
        elif event in happenings:
            server.on_request = lambda number, path: happenings[event]() if number == moment else None
        first = fetched(server, folder, max_attempts=3)
        manifest = first if isinstance(first, Manifest) else None
        on_disk = read_manifest(store.raw(SNAPSHOT) / "manifest.json")
        assert on_disk == manifest, f"{event} at request {moment}: an error, and a manifest"
        if manifest is not None:
            assert recorded(manifest) == published(server), f"{event} at request {moment}: {len(manifest.files)} files"
            whole = {numbered(n).rpartition("/")[2] for n in range(len(manifest.files))}
            assert recorded(manifest).keys() == whole, f"{event} at request {moment}: ingested with a gap"
            assert SUCCESS in server.files, f"{event} at request {moment}: a snapshot without _SUCCESS was ingested"
            verify_files(store.wiki("xwiki"), manifest)
        else:
            assert re.search(EVENTS[event], str(first)), f"{event} at request {moment}: {first}"
        server.on_request = lambda number, path: None
        server.files |= {path: data for path, data in files.items() if path not in server.files}
        again = fetched(server, folder, max_attempts=3)
        offered = published(server)
    if isinstance(again, Manifest):
        assert recorded(again) == (recorded(manifest) if manifest else offered), f"{event}: not whole"
    else:
        assert event == "other bytes" and "the server now" in str(again), f"{event}: {again}"
    ended_whole = isinstance(again, Manifest)
    return Counter(
        {"snapshots": 1, "refused": manifest is None, "partial ingested": 0, "whole in the end": ended_whole}
    )


def the_newest_whole_snapshot_is_the_latest(dice: random.Random, folder: Path) -> Counter[str]:
    """Dates come, are finished, and go: `latest` is the newest finished one at every moment, and never an older one."""
    dates = [f"202608{day:02d}" for day in range(1, 29)]
    with FaultyServer() as server:
        mirror = mirror_of(server)
        for step in range(6):
            for date in dice.sample(dates, dice.randint(1, 3)):
                mark = SUCCESS.replace(SNAPSHOT.date, date)
                here = [path for path in server.files if f"/{date}/" in path]
                if not here:
                    server.files |= snapshot_files(dice, 1, date=date, done=dice.random() < 0.5)
                elif mark not in server.files:
                    server.files[mark] = b""
                elif dice.random() < 0.5:
                    for path in here:
                        del server.files[path]
            whole = sorted(path.split("/")[3] for path in server.files if path.endswith("_SUCCESS"))
            assert [snapshot.date for snapshot in mirror.snapshots("xwiki")] == whole, f"step {step}"
            latest = outcome(lambda: mirror.latest("xwiki"))
            found = latest.date if isinstance(latest, Snapshot) else None
            assert found == max(whole, default=None), f"step {step}: {latest}, of {whole}"
    return Counter({"states": 6, "older taken for newer": 0})


# D7


def what_was_fetched_stays_the_truth(dice: random.Random, folder: Path) -> Counter[str]:
    """A file that is lost comes back as the very bytes it was; others are refused, and nothing else is touched."""
    files = snapshot_files(dice, 3)
    raw = Path(str(Store(str(folder)).raw(SNAPSHOT)))
    lost = dice.choice(dump_paths(files))
    name = lost.rpartition("/")[2]
    with FaultyServer(files) as server:
        manifest = fetched(server, folder)
        assert isinstance(manifest, Manifest), manifest
        (raw / name).unlink()
        before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in raw.iterdir()}
        if dice.random() < 0.5:
            server.files[lost] = packed(dice, dice.randint(2, 12))
        else:  # the same length, and the same text: the digit of the level in the head of a stream
            server.files[lost] = files[lost].replace(b"BZh9", b"BZh8", 1)
        server.requests.clear()
        other = fetched(server, folder)
        assert isinstance(other, CorruptDump), f"other bytes were taken for those recorded: {other!r:.200}"
        assert name in str(other) and "the server now" in str(other), other
        after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in raw.iterdir()}
        assert after == before, "what was there was touched"
        server.files = files
        again = fetched(server, folder)
        asked = {path.rpartition("/")[2] for path, _, _ in server.requests if path.endswith(".bz2")}
    assert isinstance(again, Manifest) and again.data_version == manifest.data_version, again
    assert asked <= {name}, f"{asked} were fetched again, {name} was lost"
    return Counter({"refused": 1, "others touched": 0})


# Kills


def a_killed_download_goes_on(
    dice: random.Random, folder: Path, downloader: Downloader, *, place: str = "", mutant: str = ""
) -> Counter[str]:
    """SIGKILL at any line of it: the next process ends with the same bytes, and fetches no durable one again."""
    survey, store = downloader.survey, Store(str(folder))
    raw = Path(str(store.raw(SNAPSHOT)))
    if not place and dice.random() < 0.5:
        death: dict[str, Any] = {"die_at": dice.randint(1, survey.n_lines)}
    else:
        place = place or dice.choice(sorted(survey.places))
        death = {"die_at_place": place, "hit": dice.randint(1, survey.places[place])}
    files = snapshot_files(dice, 3)
    with FaultyServer(files) as server:
        end = downloader.run(server.url, folder, mutant=mutant, **death)
        assert end["signal"] in (0, 9), end
        durable = _durable(raw)
        server.requests.clear()
        unknown = [path for path in dump_paths(files) if path.rpartition("/")[2] not in _noted(raw)]
        changed = bool(unknown) and store.raw_manifest(SNAPSHOT) is None and dice.random() < 0.2
        if changed:  # what is whole and recorded already is D7
            path = dice.choice(unknown)
            server.files[path] = packed(dice)
            durable.pop(path.rpartition("/")[2], None)
        end_again = downloader.run(server.url, folder, mutant=mutant)
        assert end_again["error"] is None, f"{death}: {end_again}"
        again = sum(
            max(0, durable.get(path.rpartition("/")[2], 0) - begin_of(headers)) for path, headers, _ in server.requests
        )
        offered = published(server)
    manifest = read_manifest(raw / "manifest.json")
    assert manifest is not None and recorded(manifest) == offered, f"{death}: other bytes"
    verify_files(store.wiki("xwiki"), manifest)
    assert again == 0, f"{death}: {again:,} durable bytes were fetched again"
    left = sorted(path.name for path in raw.iterdir())
    assert left == sorted(["manifest.json", *offered]), f"{death}: leftovers: {left}"
    kills = end["signal"] == 9
    return Counter({"kills": kills, "SHA equal": 1, "bytes fetched again": again, "editions changed": changed})


def _noted(raw: Path) -> dict[str, Any]:
    """What a killed process had written down of whole files."""
    notes = raw / "fetched.json"
    return msgspec.json.decode(notes.read_bytes()) if notes.exists() else {}


def _durable(raw: Path) -> dict[str, int]:
    """How many bytes of each file a killed process left that the next one may use."""
    found: dict[str, int] = {}
    for path in raw.iterdir() if raw.is_dir() else ():
        if path.name.endswith(".json.bz2"):
            found[path.name] = path.stat().st_size
        elif path.name.endswith(".partial") and path.with_name(f"{path.name}.json").exists():
            found.setdefault(path.name.removesuffix(".partial"), path.stat().st_size)
    return found
