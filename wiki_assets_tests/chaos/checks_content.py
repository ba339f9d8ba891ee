"""What must hold of a dump file's bytes and lines: chaos tests ask it of the build, mutant tests of broken ones."""

import bz2
import gzip
import io
import json
import random
import zlib
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

from wiki_assets import compression
from wiki_assets.errors import CorruptDump, WikiAssetsError
from wiki_assets.keys import Shard, Snapshot
from wiki_assets.stages import articles, dump
from wiki_assets_tests.chaos.checks_source import dump_text, mirror_of, remote, streams
from wiki_assets_tests.chaos.downloader import Downloader
from wiki_assets_tests.resources.faulty_server import FaultyServer
from wiki_assets_tests.stages.dump_lines import BOM, CLASSES, action, document, pair

BOMB_BYTES = 1 << 28
ROOM_BYTES = 48 << 20  # bzip2 holds 4 MB, a chunk is 1 MiB; the rest is the allocator's


# D9


def no_text_is_lost_in_silence(dice: random.Random, folder: Path) -> Counter[str]:
    """A packed file with damage: it is refused, or all of its text is there."""
    name = dice.choice(["x.json.bz2", "x.json.gz"])
    text = dump_text(dice, 40)
    if name.endswith("bz2"):
        parts = streams(dice, text)
    else:
        cut = dice.randrange(1, len(text))
        parts = [gzip.compress(text[:cut]), gzip.compress(text[cut:])]
    whole = b"".join(parts)
    last = len(whole) - len(parts[-1])
    damages = {
        "none": whole,
        "cut between streams": whole[:last],
        "cut in a stream": whole[: dice.randrange(last + 1, len(whole))],
        "head of the last stream": _flip(dice, whole, last, last + 4),
        "a bit in the last stream": _flip(dice, whole, last + 4, len(whole)),
        "a bit anywhere": _flip(dice, whole, 0, len(whole)),
        "garbage at the end": whole + dice.randbytes(dice.randint(1, 40)),
        "zeros at the end": whole + bytes(dice.randint(1, 40)),
        "a stream lost": whole[: len(parts[0])] + whole[last:] if len(parts) > 2 else whole[:last],
        "a stream twice": whole + parts[-1],
        "an empty stream between": parts[0]
        + (bz2.compress(b"") if name.endswith("bz2") else gzip.compress(b""))
        + whole[len(parts[0]) :],
    }
    damage = dice.choice(sorted(damages))
    data, right = damages[damage], text
    if damage == "a stream twice":  # two whole files, one after the other: a file, too
        right = text + _unpacked(parts[-1])
    shorter = damage in ("cut between streams", "a stream lost")  # no decoder can know; the listing does
    path = f"/{name}"
    with FaultyServer({path: data}) as server:
        listed = len(whole) if shorter else len(data)
        try:
            fetched = mirror_of(server, max_attempts=3).fetch(remote(server, listed, path), folder)
        except WikiAssetsError as error:
            assert damage not in ("none", "a stream twice", "an empty stream between"), f"{name}: {error}"
            assert [path.name for path in folder.iterdir() if not path.name.startswith(f"{name}.partial")] == []
            return Counter({"files": 1, "refused": 1})
    read = b"".join(compression.decoded_chunks(io.BytesIO((folder / name).read_bytes()), name))
    lost = read != right or fetched.decoded_bytes != len(right)
    assert not lost, f"{damage} of {name}: {fetched.decoded_bytes:,} of {len(right):,} bytes, and no error"
    return Counter({"files": 1, "whole": 1, "lost in silence": lost})


def _flip(dice: random.Random, data: bytes, begin: int, end: int) -> bytes:
    changed = bytearray(data)
    changed[dice.randrange(begin, end)] ^= 1 << dice.randrange(8)
    return bytes(changed)


def _unpacked(data: bytes) -> bytes:
    return bz2.decompress(data) if data.startswith(b"BZh") else gzip.decompress(data)


def bomb(name: str) -> bytes:
    """Few bytes that unpack to `BOMB_BYTES`."""
    if name.endswith("bz2"):
        return bz2.compress(bytes(BOMB_BYTES))
    packer = zlib.compressobj(9, wbits=31)
    return packer.compress(bytes(BOMB_BYTES)) + packer.flush()


def a_bomb_is_not_unpacked(
    dice: random.Random, folder: Path, data: bytes, name: str, downloader: Downloader, mutant: str = ""
) -> Counter[str]:
    """A bomb is refused before its end, in little memory."""
    with FaultyServer({f"/{name}": data}) as server:
        end = downloader.run(server.url, folder, only=name, mutant=mutant)
    assert end["error"], f"{name}: a bomb of 1 to {BOMB_BYTES // len(data):,} was accepted"
    assert end["error"].startswith(CorruptDump.__name__) and "times its size" in end["error"], end["error"]
    assert end["rss_growth"] < ROOM_BYTES, f"{name}: {end['rss_growth'] / 2**20:.0f} MiB for a bomb"
    return Counter({"bombs": 1, "peak MiB": round(end["rss_growth"] / 2**20)})


# P1

FILTERED = {  # no pages, and no mistakes: the reason they are left out for
    "no_text": [{"text": None}, {"text": ""}, {"text": " \t "}],
    "other_namespace": [{"namespace": 1}, {"namespace": 14}, {"namespace": -1}],
    "redirect": [{"page_type": "redirect"}, {"page_type": "redirect", "text": "", "namespace": 4}],
}


def a_bad_line_costs_only_itself(dice: random.Random, folder: Path) -> Counter[str]:
    """Among pages of any layout, every class of bad line: no page beside it is lost, and each line has its reason."""
    form = dice.choice([_page, _doc, _string, _integer, _spaced])
    good = list(range(1001, 1001 + dice.randint(5, 40)))
    pieces = [(form(page_id), None) for page_id in good]
    expected, filtered, readable = Counter[str](), Counter[str](), 0
    for name in dice.sample(sorted(CLASSES), dice.randint(1, 8)):
        bad, reasons, is_read = CLASSES[name]
        expected += Counter(reasons)
        pieces.insert(dice.randint(0, len(pieces)), (bad, name))
        readable += max(is_read, (2 if name == "a document written twice" else 0))
    for n in range(dice.randint(0, 5)):
        reason = dice.choice(sorted(FILTERED))
        filtered[reason] += 1
        pieces.insert(dice.randint(0, len(pieces)), (pair(9001 + n, **dice.choice(FILTERED[reason])), reason))
    for page_id in dice.sample(good, dice.randint(0, 3)):  # an older revision of the same page
        pieces.insert(dice.randint(0, len(pieces)), (pair(page_id, version=3), "an id twice"))
    twice = sum(name == "an id twice" for _, name in pieces)
    data = b"".join(piece for piece, _ in pieces)
    if dice.random() < 0.2:
        data = BOM + data.removeprefix(BOM)
    what = [name for _, name in pieces if name]
    size = dice.choice([1 << 20, 1000, 77])

    reader, snapshot = dump.DumpReader(), Snapshot("xwiki", "20260823")
    fragment, redirects = folder / "fragment.arrow", folder / "redirects.parquet"
    with fragment.open("wb") as out, redirects.open("wb") as moved:
        chunks = (data[n : n + size] for n in range(0, len(data), size))
        counts = articles.split_documents(reader.documents(chunks), out, moved, shards=1)
    assert reader.quarantined == expected, f"{what}: quarantined {dict(reader.quarantined)}"
    assert counts.filtered == filtered, f"{what}: filtered {dict(counts.filtered)}"
    assert reader.n_documents == counts.pages + counts.filtered.total(), what
    assert reader.n_documents == len(good) + readable + twice + filtered.total(), f"{what}: documents are missing"
    assert reader.bytes_read == len(data), what
    shard = Shard(snapshot, 0)
    whole = [articles.Fragment(fragment, counts.batches_by_shard[0], redirects)]
    with (folder / "0.parquet").open("wb") as out:
        ledger = articles.merge_shard(whole, out, shard=shard, metadata={})
    ids = pq.read_table(folder / "0.parquet", columns=["page_id", "revision"]).to_pylist()
    found = {row["page_id"]: row["revision"] for row in ids}
    missing = sorted(set(good) - set(found))
    assert not missing, f"{what}: pages {missing} are lost"
    assert all(found[page_id] == 7 for page_id in good), "an older revision stayed"
    assert len(found) + ledger["superseded"] == counts.pages, what
    return Counter(
        {
            "bad lines": expected.total(),
            "pages": len(good),
            "lost beyond the bad line": len(missing),
            "classes": len(what),
        }
    )


def _page(page_id: int) -> bytes:
    """Until 2019: the document has no id of its own."""
    return action(str(page_id), "page") + b"\n" + document(None, title=f"Page {page_id}") + b"\n"


def _doc(page_id: int) -> bytes:
    return action(str(page_id), "_doc") + b"\n" + document(page_id) + b"\n"


def _string(page_id: int) -> bytes:
    return action(str(page_id)) + b"\n" + document(page_id) + b"\n"


def _integer(page_id: int) -> bytes:
    return pair(page_id)


def _spaced(page_id: int) -> bytes:
    return json.dumps({"index": {"_id": page_id}}).encode() + b"\n" + document(None) + b"\n"


def a_huge_line_costs_only_itself() -> Counter[str]:
    """A line over 64 MiB among pages."""
    head, tail = b"".join(map(_page, range(1, 40))), b"".join(map(_page, range(40, 80)))
    chunk = bytes([32]) * (1 << 20)

    def chunks():
        yield head + action(7) + b'\n{"page_id":7,"text":"'
        for _ in range((dump.MAX_LINE_BYTES >> 20) + 1):
            yield chunk
        yield b'"}\n' + tail

    reader = dump.DumpReader()
    ids = [document.page_id for document in reader.documents(chunks())]
    assert ids == list(range(1, 80)), f"{79 - len(ids)} pages lost beside a line of 65 MiB"
    assert reader.quarantined == {"too_long": 1}, reader.quarantined
    return Counter({"bad lines": 1, "pages": 79})
