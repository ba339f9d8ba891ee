"""One large gzip file, split by many tasks: the same articles and the same ledger as by one, or an error."""

import gzip
import hashlib
import json
import random
import shutil
from collections import Counter

import pytest

from wiki_assets.defs import work
from wiki_assets.defs.raw import fetch_snapshot
from wiki_assets.defs.recipes import Cookbook
from wiki_assets.defs.upkeep.evidence import gather
from wiki_assets.defs.upkeep.proof import State
from wiki_assets.defs.wikis import wiki_config
from wiki_assets.errors import CorruptDump, DamagedArtifact
from wiki_assets.files import Manifest, json_text, read_manifest, sealed
from wiki_assets.keys import Snapshot
from wiki_assets.resources import download
from wiki_assets.resources.mirror import DumpMirror
from wiki_assets.resources.store import Store
from wiki_assets.settings import Settings
from wiki_assets_tests.chaos.plain import Plain
from wiki_assets_tests.resources.faulty_server import FaultyServer
from wiki_assets_tests.stages.dump_lines import pair

SNAPSHOT = Snapshot("xwiki", "20251229")
NAME = "xwiki-20251229-cirrussearch-content.json.gz"
PATH = f"/other/cirrussearch/20251229/{NAME}"


def dump_text() -> bytes:
    """About 10 MB, enough for restart points within one gzip member; with bad lines and pages that come twice."""
    dice = random.Random(5)
    words = [dice.randbytes(5).hex() for _ in range(3_000)]
    pieces = []
    for n in range(1, 6_001):
        pieces.append(pair(1 + n % 5_900, version=n, text=" ".join(dice.choices(words, k=150))))
        if n % 300 == 0:
            pieces.append(dice.choice([b"garbage\n", b'{"index":{"_id":"5"}}\n', b'{"title":"no id"}\n', b"\n"]))
    return b"".join(pieces)


@pytest.fixture(scope="module")
def packed() -> bytes:
    return gzip.compress(dump_text(), 6)


def fetched(packed: bytes, root, range_bytes: int) -> Plain:
    """A root with the dump fetched, in ranges of so much text."""
    settings = Settings(root=str(root))
    store = Store(settings.root)
    store.fix_shard_count("xwiki", 3)
    with FaultyServer({PATH: packed}) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(download, "RANGE_BYTES", range_bytes)
        fetch_snapshot(SNAPSHOT, DumpMirror(base_url=server.url, backoff_s=0), store, lambda line: None)
    return Plain(Cookbook(wiki_config("xwiki", settings, store), store), settings, SNAPSHOT)


@pytest.fixture(scope="module")
def whole(packed, tmp_path_factory) -> Plain:
    plain = fetched(packed, tmp_path_factory.mktemp("whole"), 1 << 30)
    assert plain.step("split") == 1
    plain.step("articles")
    return plain


@pytest.fixture(scope="module")
def ranges(packed, tmp_path_factory) -> Plain:
    """Fetched, not split."""
    return fetched(packed, tmp_path_factory.mktemp("ranges"), 1 << 20)


def ledger(plain: Plain) -> Counter[str]:
    found: Counter[str] = Counter()
    for split in work.splits_of(plain.book.store, plain.book.config, SNAPSHOT):
        manifest = split.made()
        assert manifest is not None
        counts = manifest.counts
        found.update({"documents": counts["documents"], "pages": counts["pages"], "chars": counts["text_chars"]})
        found.update(counts["filtered"])
        found.update(counts["quarantined"])
    return found


def quarantined(plain: Plain) -> list[tuple[int, str, str]]:
    """Every bad line: its number in the file, the reason, and how it begins."""
    files = plain.book.store.split(SNAPSHOT).glob("*.quarantine.jsonl")
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return sorted((line["line"], line["reason"], line["start"]) for line in lines)


def articles(plain: Plain) -> list[str]:
    """The bytes of each shard."""
    files = [plain.book.store.file("articles", plain.shard(n)) for n in range(3)]
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def test_ranges_give_the_articles_and_the_ledger_of_the_whole(whole, ranges, tmp_path):
    store = ranges.book.store
    (file,) = store.raw_manifest(SNAPSHOT).counts["files"]
    assert len(file["ranges"]) >= 8 and file["restarts"]
    assert sum(r["size_bytes"] for r in file["ranges"]) == file["decoded_bytes"]
    assert sum(r["lines"] for r in file["ranges"]) == file["lines"]
    assert ranges.step("split") == len(file["ranges"])
    assert ranges.step("split") == 0
    assert ledger(ranges) == ledger(whole)
    ranges.step("articles")
    assert articles(ranges) == articles(whole)
    assert quarantined(ranges) == quarantined(whole) != []
    proofs = gather(ranges.book, SNAPSHOT, index=False).of("articles")
    assert {proof.state for proof in proofs.values()} == {State.PROVEN}


def test_a_range_whose_ledger_is_lost_is_missed(ranges):
    path = work.splits_of(ranges.book.store, ranges.book.config, SNAPSHOT)[4].manifest_path
    if not path.exists():
        ranges.step("split")
        ranges.step("articles")
    data = path.read_bytes()
    path.unlink()
    try:
        damaged = [p for p in gather(ranges.book, SNAPSHOT, index=False).of("articles").values() if p.problem]
        assert len(damaged) == 1 and f"{NAME}@00004.json" in damaged[0].problem
    finally:
        path.write_bytes(data)


@pytest.mark.parametrize("restarts", ["there", "lost", "damaged"])
def test_restart_points_only_save_time(ranges, tmp_path, restarts):
    shutil.copytree(ranges.root / "xwiki" / "raw", tmp_path / "xwiki" / "raw")
    plain = ranges.at(tmp_path)
    path = download.restarts_path(plain.book.store.raw(SNAPSHOT), NAME)
    if restarts == "lost":
        path.unlink()
    elif restarts == "damaged":
        path.write_bytes(path.read_bytes()[:-1])
    split = work.splits_of(plain.book.store, plain.book.config, SNAPSHOT)[-1]
    assert bool(split._restarts()) == (restarts == "there")
    assert work.split_dump_file(split).counts["pages"] > 0


def test_damage_in_a_range_is_an_error_of_that_range(ranges, tmp_path):
    shutil.copytree(ranges.root / "xwiki" / "raw", tmp_path / "xwiki" / "raw")
    plain = ranges.at(tmp_path)
    path = plain.book.store.raw(SNAPSHOT) / NAME
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    broken = []
    for split in work.splits_of(plain.book.store, plain.book.config, SNAPSHOT):
        try:
            work.split_dump_file(split)
        except CorruptDump:
            broken.append(split.number)
    assert broken and len(work.splits_of(plain.book.store, plain.book.config, SNAPSHOT)) > len(broken)


def test_ranges_with_a_gap_are_refused(ranges, tmp_path):
    shutil.copytree(ranges.root / "xwiki" / "raw", tmp_path / "xwiki" / "raw")
    plain = ranges.at(tmp_path)
    path = plain.book.store.raw(SNAPSHOT) / "manifest.json"
    manifest = read_manifest(path)
    assert isinstance(manifest, Manifest)
    del manifest.counts["files"][0]["ranges"][3]
    path.write_bytes(json_text(sealed(manifest)))
    with pytest.raises(DamagedArtifact, match="its ranges leave gaps"):
        work.splits_of(plain.book.store, plain.book.config, SNAPSHOT)


def test_a_file_of_one_range_is_read_whole(whole):
    (file,) = whole.book.store.raw_manifest(SNAPSHOT).counts["files"]
    assert (file["ranges"], file["restarts"]) == ([], "")
