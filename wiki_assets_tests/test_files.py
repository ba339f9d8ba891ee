"""Files appear whole or not at all, and a manifest vouches for nothing else."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import uuid
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from upath import UPath

from wiki_assets.errors import DamagedArtifact, WikiAssetsError
from wiki_assets.files import (
    FileRecord,
    Manifest,
    fingerprint,
    is_local,
    read_json,
    read_manifest,
    root_path,
    sha256_of,
    sizes_agree,
    verify_files,
    whole_file,
    write_json,
)

OLD, NEW = b"old\n" * 1_000, b"new\n" * 2_000


class Refused(Exception):
    """What the body or the check of a test raises."""


@pytest.fixture
def target(tmp_path):
    return tmp_path / "folder" / "00003.parquet"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(target: Path | UPath, data: bytes, **options) -> FileRecord:
    with whole_file(target, **options) as out:
        out.write(data)
    return out.record


def refuse(file) -> None:
    raise Refused


def write_and_fail(target: Path | UPath, error: type[BaseException]) -> None:
    with whole_file(target) as out:
        out.write(NEW)
        raise error


def python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run some lines in a process of their own."""
    environment = os.environ | variables
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=environment, capture_output=True, text=True, timeout=60
    )


# Whole, or not at all


def test_the_record_is_what_lies_there(target):
    record = write(target, NEW)
    assert target.read_bytes() == NEW
    assert record == FileRecord(len(NEW), hashlib.sha256(NEW).hexdigest())
    assert record.sha256 == sha256_of(target)
    assert names(target.parent) == [target.name]


@given(pieces=st.lists(st.binary(max_size=100)))
def test_pieces_are_joined(tmp_path_factory, pieces):
    target = tmp_path_factory.mktemp("pieces") / "file"
    with whole_file(target) as out:
        for piece in pieces:
            assert out.write(piece) == len(piece)
        assert out.tell() == len(b"".join(pieces))
    assert target.read_bytes() == b"".join(pieces)
    assert out.record.size_bytes == target.stat().st_size


@pytest.mark.parametrize("error", [Refused, KeyboardInterrupt, SystemExit, OSError])
@pytest.mark.parametrize("before", [None, OLD], ids=["nothing there", "old file there"])
def test_a_body_that_fails_changes_nothing(target, before, error):
    if before:
        write(target, before)
    with pytest.raises(error):
        write_and_fail(target, error)
    assert names(target.parent) == ([target.name] if before else [])
    assert before is None or target.read_bytes() == before


@pytest.mark.parametrize("before", [None, OLD], ids=["nothing there", "old file there"])
def test_a_check_that_fails_changes_nothing(target, before):
    if before:
        write(target, before)
    with pytest.raises(Refused):
        write(target, NEW, check=refuse)
    assert names(target.parent) == ([target.name] if before else [])
    assert before is None or target.read_bytes() == before


def test_the_check_reads_what_was_written_before_it_appears(target):
    seen = []
    write(target, NEW, check=lambda file: seen.append((file.read(), target.exists())))
    assert seen == [(NEW, False)]


def test_a_killed_writer_changes_nothing(target):
    write(target, OLD)
    killed = python(f"""
        import os, signal
        from pathlib import Path
        from wiki_assets.files import whole_file
        with whole_file(Path({str(target)!r})) as out:
            out.write(b"new" * 100_000)
            out.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    assert killed.returncode == -signal.SIGKILL
    assert target.read_bytes() == OLD


def test_a_reader_sees_the_old_file_or_the_new_one(target):
    write(target, OLD)
    seen, done = set(), threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(target.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for n in range(60):
        with whole_file(target) as out:
            for start in range(0, len(NEW), 500):
                out.write((OLD, NEW)[n % 2][start : start + 500])
                out.flush()
    done.set()
    reader.join()
    assert seen <= {OLD, NEW}


def test_two_writers_of_one_file_do_not_mix(target):
    contents = [bytes([letter]) * 50_000 for letter in b"abcdefgh"]
    threads = [threading.Thread(target=write, args=(target, content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert target.read_bytes() in contents
    assert names(target.parent) == [target.name]


# A full disk


@contextmanager
def small_disk(folder: Path, size_bytes: int):
    """A file system of that size in `folder`; skips where this process may not mount one."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("this process may not mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def write_in_pieces(target: Path) -> None:
    with whole_file(target) as out:
        for _ in range(100):
            out.write(NEW)


def write_at_once(target: Path) -> None:
    write(target, NEW * 100)


def write_parquet(target: Path) -> None:
    with whole_file(target, check=pq.ParquetFile) as out:
        pq.write_table(pa.table({"x": os.urandom(400_000).hex().encode().split(b"0")}), out)


@pytest.mark.parametrize("way", [write_in_pieces, write_at_once, write_parquet])
def test_a_full_disk_changes_nothing_and_says_so_in_one_line(tmp_path, way):
    with small_disk(tmp_path / "disk", 128 << 10) as disk:
        target = disk / "file"
        write(target, OLD)
        with pytest.raises(WikiAssetsError, match="no space left") as full:
            way(target)
        assert str(full.value).isprintable()
        assert str(target) in str(full.value)
        assert names(disk) == ["file"]
        assert target.read_bytes() == OLD
        write(target, NEW)  # what was taken is free again


def test_a_file_over_the_limit_of_its_process_changes_nothing_and_says_so_in_one_line(target):
    target.parent.mkdir()
    refused = python(f"""
        import resource
        from pathlib import Path
        from wiki_assets.errors import WikiAssetsError
        from wiki_assets.files import whole_file
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
        try:
            with whole_file(Path({str(target)!r})) as out:
                out.write(b"x" * 200_000)
        except WikiAssetsError as error:
            print(error)
    """)
    assert len(refused.stdout.splitlines()) == 1, refused.stderr
    assert names(target.parent) == []


# Object stores


@pytest.fixture
def bucket():
    root = root_path(f"memory://{uuid.uuid4().hex}")
    yield root
    root.fs.rm(root.path, recursive=True) if root.exists() else None


def test_an_object_appears_whole_or_not_at_all(bucket):
    target = bucket / "enwiki" / "00003.parquet"
    assert not is_local(target)
    with pytest.raises(Refused):
        write(target, NEW, check=refuse)
    assert not target.exists()
    record = write(target, OLD, check=lambda file: file.read())
    assert target.read_bytes() == OLD
    assert record.sha256 == sha256_of(target)
    with pytest.raises(Refused):
        write_and_fail(target, Refused)
    assert target.read_bytes() == OLD
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_manifests_live_in_object_stores(bucket):
    manifest = manifest_of({"articles/20260823/00003.parquet": write(bucket / "articles/20260823/00003.parquet", OLD)})
    write_json(bucket / "m.json", manifest)
    assert read_manifest(bucket / "m.json") == manifest
    assert sizes_agree(bucket, manifest)
    verify_files(bucket, manifest)


@pytest.mark.parametrize("location", ["data", "./data", "file://{cwd}/data", "{cwd}/data"])
def test_a_folder_is_found_from_anywhere(location):
    path = root_path(location.format(cwd=Path.cwd()))
    assert is_local(path)
    assert Path(path) == Path.cwd() / "data"


# Manifests


def manifest_of(files: dict[str, FileRecord], **changes) -> Manifest:
    return Manifest(
        artifact="tokens", wiki="enwiki", snapshot="20260823", shard=3, fingerprint="f", code_version="tokens-1",
        params={"encoding": "cl100k_base"}, inputs={"articles": "a"}, files=files, counts={"pages": 1}, **changes,
    )  # fmt: skip


@pytest.fixture
def made(tmp_path):
    """A folder with two files and a manifest that describes them."""
    files = {name: write(tmp_path / name, data) for name, data in {"tokens/00003": OLD, "passages/00003": NEW}.items()}
    return tmp_path, manifest_of(files)


def test_a_manifest_is_read_back(tmp_path):
    manifest = manifest_of({"x": FileRecord(3, "abc")}, stats={"seconds": 1.5})
    write_json(tmp_path / "m.json", manifest)
    assert read_manifest(tmp_path / "m.json") == manifest


COMPLETE = msgspec.json.encode(manifest_of({"x": FileRecord(3, "abc")}))
NESTED = COMPLETE.replace(b'"cl100k_base"', b"[" * 100_000 + b"]" * 100_000)


@pytest.mark.parametrize(
    "garbage",
    [b"", b"{}", b"[]", b"null", b"\0" * 500, b"\xff\xfe", b"<html>", COMPLETE[:-1], COMPLETE[: len(COMPLETE) // 2],
     COMPLETE + b"}", COMPLETE.replace(b"enwiki", b"\xff"), COMPLETE.replace(b'"counts":{', b'"counts":['),
     COMPLETE.replace(b":3,", b':"3",'), NESTED],
    ids=lambda data: ascii(data)[2:30],
)  # fmt: skip
def test_garbage_is_no_manifest(tmp_path, garbage):
    (tmp_path / "m.json").write_bytes(garbage)
    assert read_manifest(tmp_path / "m.json") is None


@given(cut=st.integers(0, len(COMPLETE) - 1))
def test_part_of_a_manifest_is_no_manifest(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("cut") / "m.json"
    path.write_bytes(COMPLETE[:cut])
    assert read_manifest(path) is None


def test_where_there_is_no_manifest_there_is_none(tmp_path):
    assert read_manifest(tmp_path / "nothing.json") is None
    assert read_manifest(tmp_path / "no folder" / "nothing.json") is None


def test_files_that_are_as_described_verify(made):
    verify_files(*made)
    assert sizes_agree(*made)


@pytest.mark.parametrize("name", ["tokens/00003", "passages/00003"])
@pytest.mark.parametrize("place", [0, 1_999, -1])
def test_a_flipped_byte_is_found_and_named(made, name, place):
    folder, manifest = made
    data = bytearray((folder / name).read_bytes())
    data[place] ^= 1
    (folder / name).write_bytes(data)
    assert sizes_agree(folder, manifest)  # the cheap half cannot know
    with pytest.raises(DamagedArtifact, match=name):
        verify_files(folder, manifest)


def test_a_missing_file_is_named(made):
    folder, manifest = made
    (folder / "passages/00003").unlink()
    assert not sizes_agree(folder, manifest)
    with pytest.raises(DamagedArtifact, match="passages/00003: missing"):
        verify_files(folder, manifest)


def test_a_cut_file_is_found(made):
    folder, manifest = made
    os.truncate(folder / "tokens/00003", 100)
    assert not sizes_agree(folder, manifest)
    with pytest.raises(DamagedArtifact, match="tokens/00003"):
        verify_files(folder, manifest)


def test_the_data_version_is_that_of_the_bytes(made):
    _, manifest = made
    again = manifest_of(dict(reversed(manifest.files.items())), stats={"seconds": 9})
    assert again.data_version == manifest.data_version
    other = manifest_of(manifest.files | {"tokens/00003": FileRecord(len(OLD), "0" * 64)})
    assert other.data_version != manifest.data_version


# Fingerprints and JSON

VALUE = {"b": [1, 2.5, None, True], "a": {"z": "ñ", "y": "\ud800"}}


def test_a_fingerprint_is_the_same_in_every_process():
    code = f"from wiki_assets.files import fingerprint; print(fingerprint({VALUE!r}, 'tokens-1'))"
    found = {python(code, PYTHONHASHSEED=seed).stdout.strip() for seed in ("0", "1", "12345")}
    assert found == {fingerprint(VALUE, "tokens-1")}


def test_a_fingerprint_is_the_one_it_has_always_been():
    # if this fails, every artifact ever made counts as stale
    assert fingerprint("tokens-1", {"shards": 32}, ["ñ", 1.5, None]) == "f5c4f80a6f8c3bb30b87a0dce09a2af5"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), json_values, max_size=6), st.randoms())
def test_the_order_of_keys_does_not_change_a_fingerprint(value, random):
    keys = list(value)
    random.shuffle(keys)
    assert fingerprint({key: value[key] for key in keys}) == fingerprint(value)


@given(json_values, json_values)
def test_other_values_have_other_fingerprints(a, b):
    same = json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
    assert (fingerprint(a) == fingerprint(b)) == same


def test_json_is_read_back_and_damage_is_named(tmp_path):
    path = tmp_path / "x.json"
    assert read_json(path) is None
    write_json(path, {"b": 1, "a": ["ñ"]})
    assert read_json(path) == {"b": 1, "a": ["ñ"]}
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DamagedArtifact, match=r"x\.json"):
        read_json(path)
