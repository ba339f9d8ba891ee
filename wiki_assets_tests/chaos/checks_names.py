"""What must hold of names and links: tests ask it of the build, and of broken ones.

Each check is one trial: it takes dice and an empty folder, fails with an AssertionError, and returns counts to add up.
"""

import os
import random
import tempfile
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import httpx
from upath import UPath

from wiki_assets.defs.recipes import collection_name
from wiki_assets.errors import BadRequest, WikiAssetsError
from wiki_assets.keys import Shard, Snapshot
from wiki_assets.resources.mirror import RemoteFile
from wiki_assets.resources.store import Store
from wiki_assets.stages.addresses import page_url
from wiki_assets_tests.chaos.source import (
    FOLDER,
    NAME,
    PATH,
    SNAPSHOT,
    SUCCESS,
    fetched,
    mirror_of,
    only_the_file,
    outcome,
    packed,
    remote,
    sha256,
    snapshot_files,
)
from wiki_assets_tests.resources.faulty_server import Fault, FaultyServer, listing_line, listing_page

RIGHT = ["xwiki", "20260823", "00003", "20260823|00003", NAME, "Lake Baikal"]
UPWARD = [  # to where a build that follows them does no harm
    *("..", "../..", "../escape", "../../escape", "/nonexistent/escape", "//nonexistent/escape", "\\\\host\\share"),
    *("~nobody/escape", "a/../../escape", "./"),
]
SMUGGLED = ["%2e%2e%2f", "..%00", "..%c0%af", "．．／", "‥/", "\u2215", "\0", "\n", "\r\n", "\u202e", "\ufeff", " "]
ODD = ["", ".", "-rf", "$(id)", "`id`", ";id", "|", "*", "a'; DROP TABLE runs; --", "CON", "nul.txt", "x:y", "\ud800"]
LONG = ["a" * 300, "é" * 150, "x" * 100_000, "0" * 300, "٢" * 8, "²" * 5]


def hostile_name(dice: random.Random) -> str:
    """A name that is wrong by itself, or a right one made wrong, or nearly."""
    wrong = dice.choice(UPWARD + SMUGGLED + ODD + LONG)
    right = dice.choice(RIGHT)
    place = dice.randint(0, len(right))
    return dice.choice(
        [
            *(wrong, wrong, right + wrong, wrong + right, right[:place] + wrong + right[place:], f"{right}/{wrong}"),
            *(right.upper(), right.swapcase(), unicodedata.normalize("NFKD", right + "é"), f"{wrong}|{right}"),
            "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in right),  # its full-width double
            right.replace(dice.choice(right), dice.choice("аеоｘ٣²ⅰſK"), 1),
        ]
    )


def names_stay_inside(dice: random.Random, folder: Path) -> Counter[str]:
    """A hostile wiki, date, shard, file or title is refused, or leads to a path of its own under the root."""
    root, refused = folder / "root", 0
    store = Store(str(root))
    paths: dict[str, set[str]] = defaultdict(set)  # as a file system that folds letters sees them, and as we do

    def tried(what: str, name: str, place: Callable[[], object]) -> None:
        nonlocal refused
        path = outcome(lambda: os.path.realpath(str(place())))
        if isinstance(path, BadRequest):
            assert "\n" not in str(path) and len(str(path)) < 400, f"{what} {name!r:.60}: {path}"
            refused += 1
            return
        assert isinstance(path, str), f"{what} {name!r:.60}: {path}"
        inside = path.startswith(f"{os.path.realpath(root)}{os.sep}") and len(Path(path).name.encode()) < 256
        assert inside, f"{what} {name!r:.60} leads to {path:.200}"
        paths[unicodedata.normalize("NFKC", path).casefold()].add(path)

    with FaultyServer({PATH: packed(dice, 2), SUCCESS: b""}) as server:
        mirror = mirror_of(server, max_attempts=1)
        for _ in range(12):
            name = hostile_name(dice)
            tried("wiki", name, lambda n=name: store.wiki(n))
            tried("wiki", name, lambda n=name: store.raw(Snapshot(n, "20260823")))
            tried("date", name, lambda n=name: store.raw(Snapshot("xwiki", n)))
            for key in (name, f"20260823|{name}", f"{name}|00003"):
                tried("key", key, lambda k=key: store.file("tokens", Shard.from_partition_key("xwiki", k)))
            tried("collection", name, lambda n=name: root / collection_name(Snapshot(n, n), 1))
            if name != "xwiki":
                tried("mirror", name, lambda n=name: root / str(mirror.latest(n)))
            _try_file(name, server, folder / "raw")
            _try_title(name)
        appeared = [path for path in folder.rglob("*") if path != folder / "raw"]
    assert not appeared, f"files appeared: {appeared}"
    collisions = [sorted(spellings) for spellings in paths.values() if len(spellings) > 1]
    assert not collisions, f"names that a file system may take for one: {collisions}"
    return Counter({"names": 12, "refused": refused, "escapes": len(appeared), "collisions": len(collisions)})


def _try_file(name: str, server: FaultyServer, folder: Path) -> None:
    """A dump file by that name is refused, or lies under it."""
    end = outcome(lambda: mirror_of(server, max_attempts=1).fetch(RemoteFile(name, server.url + PATH), folder))
    plain = name.isascii() and not set(name) & set("/\\") and len(name) < 220
    assert plain or isinstance(end, BadRequest), f"{name!r:.60} was taken for a file name"
    if not isinstance(end, WikiAssetsError):
        assert only_the_file(folder, name, server.files[PATH]), f"{name!r:.60} was written elsewhere"
        (folder / name).unlink()


def _try_title(title: str) -> None:
    """A page's address stays on its wiki."""
    try:
        url = httpx.URL(page_url("xwiki", title))
    except UnicodeEncodeError:  # half a surrogate pair: the reader of dumps lets none through
        return
    except httpx.InvalidURL:
        if len(title) > 10_000:  # too long for httpx
            return
        raise
    there = (url.scheme, url.host, url.port, url.userinfo) == ("https", "x.wikipedia.org", None, b"")
    assert there and not url.query and not url.fragment, f"{title!r:.60} leads to {url}"


def a_listing_cannot_name_other_places(dice: random.Random, folder: Path) -> Counter[str]:
    """Names that a server lists beside the dump files, however like them, are not fetched and not written."""
    numbers = ["٠٠٠٠١", "00001/../../x", "0000１", "000001", "00001.json.bz2\0", "1"]
    lookalikes = [
        *("..%2f..%2fescape.json.bz2", "..\\escape.json.bz2", "/escape.json.bz2", "....//escape.json.bz2"),
        *(NAME.replace("00000", number) for number in numbers),
        *(NAME.upper(), NAME.replace("x", "х", 1), f"{NAME}/../../escape"),
        *("a" * 300 + ".json.bz2", NAME.replace("20260823", "20260830"), f"&#46;&#46;/{NAME}", f"{NAME}%00.exe"),
    ]
    blob = packed(dice, 3)
    lines = [listing_line("_SUCCESS", 0), listing_line(NAME, len(blob))]
    for name in dice.sample(lookalikes, dice.randint(1, len(lookalikes))):
        line = dice.choice([listing_line(name, 7), f'<a href="{name}">x</a>  23-Aug-2026 12:00  7\n'])
        lines.insert(dice.randint(0, len(lines)), line)
    with FaultyServer({PATH: blob}) as server:
        server.faults[FOLDER] = [Fault(body=listing_page(lines).encode("utf-8", "replace"))] * 9
        end = fetched(server, folder / "root")
        asked = {path.rpartition("/")[2] for path, _, _ in server.requests} - {""}
    assert not isinstance(end, WikiAssetsError), f"a name that is none stopped the download: {end}"
    assert asked == {NAME}, f"asked for {asked}"
    written = sorted(path.name for path in folder.rglob("*") if path.is_file())
    assert written == sorted([NAME, "manifest.json"]), written
    assert [record.sha256 for record in end.files.values()] == [sha256(blob)]
    return Counter({"listings": 1, "escapes": 0})


def links_are_not_followed(dice: random.Random, folder: Path) -> Counter[str]:
    """A link in the data root, where a download writes: what it leads to is not written to."""
    raw = folder / "root" / "xwiki" / "raw" / SNAPSHOT.date
    raw.mkdir(parents=True)
    victim = folder / "victim"
    victim.write_bytes(b"precious")
    names = [NAME, f"{NAME}.partial", f"{NAME}.partial", f"{NAME}.partial.json", "fetched.json", "manifest.json"]
    place = dice.choice(names)
    if dice.random() < 0.7:
        (raw / place).symlink_to(dice.choice([victim, Path("../../../../victim")]))
    else:
        os.link(victim, raw / place)
    with FaultyServer(snapshot_files(dice, 1)) as server:
        server.faults[PATH] = [Fault(drop_after=40)]
        end = fetched(server, folder / "root")
    assert victim.read_bytes() == b"precious", f"{place}: what the link leads to was written to"
    refused = isinstance(end, WikiAssetsError)
    if refused:
        assert "a link, or no file" in str(end), end
    else:
        assert not any(path.is_symlink() for path in raw.iterdir()), f"{place}: a link was taken for a file"
        assert sorted(path.name for path in raw.iterdir()) == sorted([NAME, "manifest.json"])
    return Counter({"links": 1, "refused": refused, "escapes": 0})


def bytes_wait_where_only_we_can_write(dice: random.Random, folder: Path) -> Counter[str]:
    """On the way to an object store, bytes lie in a folder that no other user can have put anything in."""
    kind = dice.choice(["none", "open to all", "open to the group", "link", "file"])
    place, elsewhere = folder / f"wiki_assets-{os.getuid()}", folder / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    if kind.startswith("open"):
        place.mkdir()
        place.chmod(0o777 if "all" in kind else 0o750)
    elif kind == "link":
        place.symlink_to(elsewhere)
    elif kind == "file":
        place.write_bytes(b"")
    bucket = UPath(f"memory://bucket{folder}")
    blob = packed(dice, 3)
    with FaultyServer({PATH: blob}) as server, mock.patch.object(tempfile, "tempdir", str(folder)):
        server.faults[PATH] = [Fault(drop_after=40)]
        end = outcome(lambda: mirror_of(server).fetch(remote(server), bucket))
    refused = isinstance(end, WikiAssetsError)
    assert refused == (kind != "none"), f"{kind}: {end!r}"
    assert list(elsewhere.iterdir()) == []
    if refused:
        assert "not a folder that only we can open" in str(end), end
    else:
        assert (bucket / NAME).read_bytes() == blob and place.stat().st_mode & 0o077 == 0
    return Counter({"spools": 1, "refused": refused})


CHECKS = (
    names_stay_inside,
    a_listing_cannot_name_other_places,
    links_are_not_followed,
    bytes_wait_where_only_we_can_write,
)
