"""What must hold of a dump file's bytes and lines: tests ask it of the build, and of broken ones.

Each check is one trial: it takes dice and an empty folder, fails with an AssertionError, and returns counts to add up.
"""

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
from wiki_assets.keys import Shard
from wiki_assets.stages import articles, dump
from wiki_assets_tests.chaos.downloader import Downloader
from wiki_assets_tests.chaos.source import SNAPSHOT, dump_text, flipped, mirror_of, outcome, remote, streams
from wiki_assets_tests.resources.faulty_server import FaultyServer
from wiki_assets_tests.stages.dump_lines import BOM, CLASSES, action, document, pair

BOMB_BYTES = 3 << 25
ROOM_BYTES = 48 << 20  # bzip2 holds 4 MB, a chunk is 1 MiB; the rest is the allocator's


# D9


def no_text_is_lost_in_silence(dice: random.Random, folder: Path, damage: str | None = None) -> Counter[str]:
    """A packed file with damage: it is refused, or all of its text is there."""
    name = dice.choice(["x.json.bz2", "x.json.gz"])
    compress = bz2.compress if name.endswith("bz2") else gzip.compress
    text = dump_text(dice, 40)
    cut = dice.randrange(1, len(text))
    parts = streams(dice, text) if name.endswith("bz2") else [compress(text[:cut]), compress(text[cut:])]
    whole = b"".join(parts)
    last = len(whole) - len(parts[-1])
    damages = {
        "none": whole,
        "cut between streams": whole[:last],
        "cut in a stream": whole[: dice.randrange(last + 1, len(whole))],
        "the head of the last stream": flipped(dice, whole, last, last + 4),
        "a bit in the last stream": flipped(dice, whole, last + 4, len(whole)),
        "a bit anywhere": flipped(dice, whole, 0, len(whole)),
        "garbage at the end": whole + dice.randbytes(dice.randint(1, 40)),
        "zeros at the end": whole + bytes(dice.randint(1, 40)),
        "a stream lost": whole[len(parts[0]) :],
        "a stream twice": whole + parts[-1],
        "an empty stream between": parts[0] + compress(b"") + whole[len(parts[0]) :],
    }
    damage = damage or dice.choice(sorted(damages))
    data, right = damages[damage], text
    if damage == "a stream twice":  # nothing wrong with that as a packed file
        right += bz2.decompress(parts[-1]) if name.endswith("bz2") else gzip.decompress(parts[-1])
    told_by_the_listing = damage in ("cut between streams", "a stream lost")  # and by nothing else
    path = f"/{name}"
    with FaultyServer({path: data}) as server:
        file = remote(server, len(whole) if told_by_the_listing else len(data), path)
        end = outcome(lambda: mirror_of(server, max_attempts=3).fetch(file, folder))
    if isinstance(end, WikiAssetsError):
        assert damage not in ("none", "a stream twice", "an empty stream between"), f"{name}: {end}"
        assert not (folder / name).exists(), f"{damage} of {name}: refused, and in place"
        return Counter({"packed files": 1, "refused": 1, "lost in silence": 0})
    in_place = io.BytesIO((folder / name).read_bytes())
    read = outcome(lambda: b"".join(compression.decoded_chunks(in_place, name)))
    lost = read != right or end.decoded_bytes != len(right)
    assert not lost, f"{damage} of {name}: {end.decoded_bytes:,} of {len(right):,} bytes, and no error"
    return Counter({"packed files": 1, "whole": 1, "lost in silence": lost})


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
    return Counter({"bombs": 1, f"peak MiB on {name}": round(end["rss_growth"] / 2**20)})


# P1

FILTERED = {  # no pages, and no mistakes: the reason they are left out for
    "no_text": [{"text": None}, {"text": ""}, {"text": " \t "}],
    "other_namespace": [{"namespace": 1}, {"namespace": 14}, {"namespace": -1}],
    "redirect": [{"page_type": "redirect"}, {"page_type": "redirect", "text": "", "namespace": 4}],
}


def a_bad_line_costs_only_itself(dice: random.Random, folder: Path) -> Counter[str]:
    """Among pages of any layout, every class of bad line: no page beside it is lost, and each line has its reason."""
    form = dice.choice([_page, _doc, _string, pair, _spaced])
    good = list(range(1001, 1001 + dice.randint(5, 40)))
    pieces = [(form(page_id), "") for page_id in good]
    expected, filtered, readable, twice = Counter[str](), Counter[str](), 0, dice.sample(good, dice.randint(0, 3))

    def put_in(piece: bytes, what: str) -> None:
        pieces.insert(dice.randint(0, len(pieces)), (piece, what))

    for name in dice.sample(sorted(CLASSES), dice.randint(1, 8)):
        bad, reasons, is_read = CLASSES[name]
        expected += Counter(reasons)
        readable += 2 if name == "a document written twice" else is_read
        put_in(bad, name)
    for n in range(dice.randint(0, 5)):
        reason = dice.choice(sorted(FILTERED))
        filtered[reason] += 1
        put_in(pair(9001 + n, **dice.choice(FILTERED[reason])), reason)
    for page_id in twice:
        put_in(pair(page_id, version=3), "an older revision of the same page")
    data = b"".join(piece for piece, _ in pieces)
    if dice.random() < 0.2:
        data = BOM + data.removeprefix(BOM)
    what = [name for _, name in pieces if name]
    size = dice.choice([1 << 20, 1000, 77])

    reader, shard = dump.DumpReader(), Shard(SNAPSHOT, 0)
    fragment, redirects, merged = folder / "fragment.arrow", folder / "redirects.parquet", folder / "0.parquet"
    with fragment.open("wb") as out, redirects.open("wb") as moved:
        chunks = (data[n : n + size] for n in range(0, len(data), size))
        counts = articles.split_documents(reader.documents(chunks), out, moved, shards=1)
    assert reader.quarantined == expected, f"{what}: quarantined {dict(reader.quarantined)}"
    assert counts.filtered == filtered, f"{what}: filtered {dict(counts.filtered)}"
    assert reader.n_documents == counts.pages + counts.filtered.total(), what
    expected_documents = len(good) + readable + len(twice) + filtered.total()
    assert reader.n_documents == expected_documents, f"{what}: {expected_documents - reader.n_documents} are missing"
    with merged.open("wb") as out:
        fragments = [articles.Fragment(fragment, counts.batches_by_shard[0], redirects)]
        ledger = articles.merge_shard(fragments, out, shard=shard, metadata={})
    rows = pq.read_table(merged, columns=["page_id", "revision"]).to_pylist()
    found = {row["page_id"]: row["revision"] for row in rows}
    missing = sorted(set(good) - set(found))
    assert not missing, f"{what}: pages {missing} are lost"
    assert all(found[page_id] == 7 for page_id in good), f"{what}: an older revision stayed"
    assert len(rows) + ledger["superseded"] == counts.pages, what
    return Counter({"bad lines": expected.total(), "pages": len(good), "lost beyond the bad line": len(missing)})


def _page(page_id: int) -> bytes:
    """Until 2019: the document has no id of its own."""
    return action(str(page_id), "page") + b"\n" + document(None, title=f"Page {page_id}") + b"\n"


def _doc(page_id: int) -> bytes:
    return action(str(page_id), "_doc") + b"\n" + document(page_id) + b"\n"


def _string(page_id: int) -> bytes:
    return action(str(page_id)) + b"\n" + document(page_id) + b"\n"


def _spaced(page_id: int) -> bytes:
    return json.dumps({"index": {"_id": page_id}}).encode() + b"\n" + document(None) + b"\n"


def a_huge_line_costs_only_itself() -> Counter[str]:
    """A line over the limit, 64 MiB, among pages."""
    head, tail = b"".join(map(_page, range(1, 40))), b"".join(map(_page, range(40, 80)))
    chunk = b" " * (8 << 20)
    n_chunks = (dump.MAX_LINE_BYTES >> 23) + 1
    line = (head + action(7) + b'\n{"page_id":7,"text":"', *[chunk] * n_chunks, b'"}\n' + tail)
    reader = dump.DumpReader()
    ids = [document.page_id for document in reader.documents(line)]
    assert ids == list(range(1, 80)), f"{79 - len(ids)} pages lost beside a line of {8 * n_chunks} MiB"
    assert reader.quarantined == {"too_long": 1}, reader.quarantined
    return Counter({"bad lines": 1, "pages": 79, "lost beyond the bad line": 0})
