"""The dump server as it is, as it fails, and as it lies."""

import bz2
import gzip
import hashlib
import os
import resource
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import dagster as dg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from upath import UPath

from wiki_assets.errors import BadRequest, CorruptDump, SourceUnavailable, TransientSource, WikiAssetsError
from wiki_assets.keys import Snapshot
from wiki_assets.resources.listing import read_listing
from wiki_assets.resources.mirror import DumpMirror, RemoteFile
from wiki_assets.resources.session import Patience, Session, retry_after
from wiki_assets_tests.resources.faulty_server import LAST_MODIFIED, Fault, FaultyServer, listing_line, listing_page

NAME = "xwiki_content-20260823-00000.json.bz2"
PATH = f"/other/cirrus_search_index/20260823/index_name=xwiki_content/{NAME}"
TEXT = b"".join(hashlib.sha256(b"%d" % n).hexdigest().encode() + b"\n" for n in range(600))
BLOB = b"".join(bz2.compress(TEXT[n : n + 15_000]) for n in range(0, len(TEXT), 15_000))
OTHER = b"".join(bz2.compress(TEXT[::-1][n : n + 15_000]) for n in range(0, len(TEXT), 15_000))
SNAPSHOT = Snapshot("xwiki", "20260823")


def new(date: str, wiki: str = "xwiki", n_files: int = 1, done: bool = True) -> dict[str, bytes]:
    folder = f"/other/cirrus_search_index/{date}/index_name={wiki}_content/"
    files = {f"{folder}{wiki}_content-{date}-{n:05d}.json.bz2": bz2.compress(b"%d\n" % n * 9) for n in range(n_files)}
    return files | ({folder + "_SUCCESS": b""} if done else {})


def old(date: str, wiki: str = "xwiki") -> dict[str, bytes]:
    return {f"/other/cirrussearch/{date}/{wiki}-{date}-cirrussearch-content.json.gz": gzip.compress(b"{}\n{}\n")}


@pytest.fixture
def server():
    with FaultyServer({PATH: BLOB}) as server:
        yield server


def mirror_of(server: FaultyServer, **changes) -> DumpMirror:
    return DumpMirror(base_url=server.url, backoff_s=0, **changes)


def remote(server: FaultyServer, size_bytes: int | None = None, path: str = PATH) -> RemoteFile:
    return RemoteFile(path.rpartition("/")[2], server.url + path.replace("=", "%3D"), size_bytes)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def is_in_place(folder: Path, data: bytes) -> bool:
    """Only the finished file is there, and it is `data`."""
    return [path.name for path in folder.iterdir()] == [NAME] and (folder / NAME).read_bytes() == data


def leave_partial(server: FaultyServer, folder: Path, n_bytes: int) -> None:
    """What a process leaves that is killed after `n_bytes`."""
    server.faults[PATH].append(Fault(drop_after=n_bytes))
    with pytest.raises(SourceUnavailable):
        mirror_of(server, max_attempts=1).fetch(remote(server), folder)
    assert (folder / f"{NAME}.partial").stat().st_size == n_bytes
    server.requests.clear()


# What is on offer


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.=&' é-]{0,30}", fullmatch=True),
        st.none() | st.integers(0, 10**12),
        max_size=20,
    )
)
def test_a_listing_reads_back_as_the_names_and_sizes_it_was_made_from(names):
    names = {name if size is not None else f"{name}/": size for name, size in names.items()}
    page = listing_page([listing_line(name, size) for name, size in names.items()])
    assert read_listing(page, "http://x/") == names


def test_links_that_lead_elsewhere_are_no_names():
    links = ["../", "/other/", "?C=M;O=D", "#top", "https://x/y", "//x/y", "a/b", "..%2fetc", "mailto:me@x", "", "."]
    lines = [f'<a href="{link}">{link}</a>  23-Aug-2026 12:00  7\n' for link in [*links, "./kept", "also"]]
    assert read_listing(listing_page(lines), "http://x/") == {"kept": 7, "also": 7}


@pytest.mark.parametrize("unit", ["<a ", '<a href="x"', '<a href="x">y</a>' + " " * 300, '<a href="x">y</a> b c '])
def test_a_page_that_is_no_listing_is_read_in_time_in_proportion(unit):
    read_listing(unit * (2_000_000 // len(unit)) + "</html>", "http://x/")  # in the square of it, hours


def test_a_size_that_is_rounded_is_no_size():
    page = '<html><a href="a">a</a> 2026-08-23 12:00 1.2M \n<a href="b">b</a>\n<a href=\'c\'>c</a> x y 12K</html>'
    assert read_listing(page, "http://x/") == {"a": None, "b": None, "c": None}


def test_a_listing_that_is_cut_is_asked_for_again(server):
    server.files = new("20260823", n_files=3)
    folder = "/other/cirrus_search_index/20260823/index_name=xwiki_content/"
    cut = server.listing(folder)[:-160]
    server.faults[folder].append(Fault(body=cut, headers={"Content-Length": None}))
    assert len(mirror_of(server).dump_files(SNAPSHOT)) == 3
    assert len(server.asked(folder)) == 2


def test_complete_snapshots_are_listed_oldest_first(server):
    server.files = new("20260823") | new("20260816") | new("20260830", done=False) | new("20260809", "ywiki")
    server.files |= old("20251229")
    assert [s.date for s in mirror_of(server).snapshots("xwiki")] == ["20260816", "20260823"]


def test_the_old_layout_counts_only_where_the_new_one_has_nothing(server):
    server.files = new("20260830", done=False) | old("20251229") | old("20251222") | old("20251215", "ywiki")
    assert mirror_of(server).snapshots("xwiki") == [Snapshot("xwiki", "20251222"), Snapshot("xwiki", "20251229")]
    assert mirror_of(server).latest("xwiki").date == "20251229"
    assert mirror_of(server).snapshots("zwiki") == []


def test_latest_looks_no_further_than_the_newest_complete_snapshot(server):
    server.files = new("20260830", done=False) | new("20260823") | new("20260816") | new("20260809") | old("20251229")
    assert mirror_of(server).latest("xwiki").date == "20260823"
    assert len(server.requests) == 3


def test_latest_says_what_it_found_when_nothing_is_complete(server):
    server.files = new("20260830", done=False) | new("20260823", "ywiki") | new("20260816", "ywiki")
    with pytest.raises(SourceUnavailable, match="20260830 still being written; 20260823, 20260816 without this wiki"):
        mirror_of(server).latest("xwiki")
    server.files = {}
    with pytest.raises(SourceUnavailable, match="no dates are listed"):
        mirror_of(server).latest("xwiki")


def test_dump_files_come_in_order_with_sizes_and_escaped_urls(server):
    server.files = new("20260823", n_files=12) | {PATH + ".md5": b"x", PATH.replace("-00000", "-1"): b"x"}
    files = mirror_of(server).dump_files(SNAPSHOT)
    assert [file.name for file in files] == [f"xwiki_content-20260823-{n:05d}.json.bz2" for n in range(12)]
    assert files[3].size_bytes == len(server.files[PATH.replace("-00000", "-00003")])
    assert files[0].url == server.url + PATH.replace("=", "%3D")
    assert "index_name%3Dxwiki_content" in server.requests[-1][0]


@pytest.mark.parametrize("gone", [0, 1])
def test_a_gap_between_the_dump_files_is_refused(server, gone):
    server.files = new("20260823", n_files=3)
    del server.files[PATH.replace("-00000", f"-{gone:05d}")]
    with pytest.raises(SourceUnavailable, match=f"2 dump files, none numbered {gone:05d}"):
        mirror_of(server).dump_files(SNAPSHOT)


def test_a_snapshot_being_written_is_refused_with_the_newest_complete_one(server):
    server.files = new("20260830", done=False) | new("20260823") | new("20260816")
    with pytest.raises(SourceUnavailable, match="still being written.*newest complete one is xwiki-20260823"):
        mirror_of(server).dump_files(Snapshot("xwiki", "20260830"))


def test_an_unknown_date_is_refused_with_those_on_offer(server):
    server.files = new("20260823") | new("20260816")
    with pytest.raises(SourceUnavailable, match="it has 20260816, 20260823"):
        mirror_of(server).dump_files(Snapshot("xwiki", "20200101"))


def test_the_old_layout_has_one_file_a_snapshot(server):
    server.files = old("20251229") | old("20251229", "ywiki") | new("20260823")
    (file,) = mirror_of(server).dump_files(Snapshot("xwiki", "20251229"))
    assert file.name == "xwiki-20251229-cirrussearch-content.json.gz"
    assert file.size_bytes == len(server.files["/other/cirrussearch/20251229/" + file.name])


# One file


def test_a_fetched_file_is_described_by_what_was_found_in_it(server, tmp_path):
    told: list[int] = []
    fetched = mirror_of(server).fetch(remote(server, len(BLOB)), tmp_path / "raw", told.append)
    assert is_in_place(tmp_path / "raw", BLOB)
    assert (fetched.name, fetched.url, fetched.size_bytes) == (NAME, remote(server).url, len(BLOB))
    assert (fetched.sha256, fetched.decoded_bytes, fetched.lines) == (sha256(BLOB), len(TEXT), 600)
    assert (fetched.etag, fetched.last_modified) == (server.etag(PATH), LAST_MODIFIED)
    assert abs((datetime.now(UTC) - datetime.fromisoformat(fetched.fetched_at)).total_seconds()) < 60
    assert sum(told) == len(BLOB)


def test_each_request_says_who_asks_and_wants_the_bytes_as_they_are(server, tmp_path):
    mirror_of(server, contact="me@example.org").fetch(remote(server), tmp_path)
    (headers,) = server.asked(PATH)
    assert headers["user-agent"].startswith("wiki_assets/")
    assert "(+https://github.com/wiki-assets/wiki_assets; me@example.org) httpx/" in headers["user-agent"]
    assert headers["accept-encoding"] == "identity"


def test_a_later_process_goes_on_where_this_one_was_cut(server, tmp_path):
    leave_partial(server, tmp_path, 5000)
    told: list[int] = []
    assert mirror_of(server).fetch(remote(server), tmp_path, told.append).sha256 == sha256(BLOB)
    (headers,) = server.asked(PATH)
    assert (headers["range"], headers["if-range"]) == ("bytes=5000-", server.etag(PATH))
    assert told[0] == 5000 and sum(told) == len(BLOB)


def test_a_process_killed_between_download_and_check_fetches_nothing_again(server, tmp_path):
    leave_partial(server, tmp_path, 5000)
    (tmp_path / f"{NAME}.partial").write_bytes(BLOB)
    assert mirror_of(server).fetch(remote(server), tmp_path).sha256 == sha256(BLOB)
    assert [headers["range"] for headers in server.asked(PATH)] == [f"bytes={len(BLOB)}-"]


def test_a_partial_file_longer_than_the_file_is_forgotten(server, tmp_path):
    leave_partial(server, tmp_path, 5000)
    (tmp_path / f"{NAME}.partial").write_bytes(BLOB + b"x")
    mirror_of(server).fetch(remote(server), tmp_path)
    assert is_in_place(tmp_path, BLOB)


LIES = {
    "ignores Range": Fault(ignore_range=True),
    "goes on too early": Fault(shift_range=-1),
    "goes on too late": Fault(shift_range=1),
    "names another total": Fault(headers={"Content-Range": f"bytes 5000-{len(BLOB) - 1}/{len(BLOB) + 1}"}),
    "names no total": Fault(headers={"Content-Range": f"bytes 5000-{len(BLOB) - 1}/*"}),
    "names no range": Fault(headers={"Content-Range": None}),
    "names another ETag": Fault(headers={"ETag": '"other"'}),
    "names no ETag": Fault(headers={"ETag": None}),
    "names another date": Fault(headers={"Last-Modified": "Mon, 24 Aug 2026 12:00:00 GMT"}),
    "says 416": Fault(status=416, headers={"Content-Range": f"bytes */{len(BLOB)}"}),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_resume_that_the_server_gets_wrong_starts_over(server, tmp_path, lie):
    leave_partial(server, tmp_path, 5000)
    server.faults[PATH] = [LIES[lie]]
    mirror_of(server).fetch(remote(server), tmp_path)
    assert is_in_place(tmp_path, BLOB)
    assert "range" not in server.asked(PATH)[-1] or lie == "ignores Range"


@pytest.mark.parametrize("fault", [Fault(), Fault(ignore_if_range=True)], ids=["honours If-Range", "ignores If-Range"])
def test_two_editions_of_a_file_are_never_joined(server, tmp_path, fault):
    leave_partial(server, tmp_path, 5000)
    server.files[PATH] = OTHER
    server.faults[PATH] = [fault]
    mirror_of(server).fetch(remote(server), tmp_path)
    assert is_in_place(tmp_path, OTHER)


def test_two_editions_under_one_etag_are_told_apart_by_unpacking(server, tmp_path):
    path = "/x.json.gz"
    one, two = gzip.compress(TEXT, 0), gzip.compress(TEXT[::-1], 0)  # packed to the same length
    server.etags[path] = '"same"'
    server.files[path] = one
    server.faults[path] = [Fault(drop_after=5000)]
    with pytest.raises(SourceUnavailable):
        mirror_of(server, max_attempts=1).fetch(remote(server, path=path), tmp_path)
    server.files[path] = two
    assert mirror_of(server).fetch(remote(server, len(one), path), tmp_path).sha256 == sha256(two)
    assert [headers.get("range") for headers in server.asked(path)] == [None, "bytes=5000-", None]


@pytest.mark.parametrize(
    "headers",
    [
        {"ETag": 'W/"weak"'},
        {"ETag": None, "Last-Modified": None},
        {"ETag": None, "Date": LAST_MODIFIED},  # modified this very second: it may be again
    ],
    ids=["weak ETag", "no validators", "fresh date"],
)
def test_without_a_strong_validator_a_download_starts_over(server, tmp_path, headers):
    server.faults[PATH] = [Fault(drop_after=5000, headers=headers)]
    mirror_of(server).fetch(remote(server), tmp_path)
    assert is_in_place(tmp_path, BLOB)
    assert all("range" not in asked for asked in server.asked(PATH))


def test_an_old_date_is_validator_enough(server, tmp_path):
    server.faults[PATH] = [Fault(drop_after=5000, headers={"ETag": None}), Fault(headers={"ETag": None})]
    mirror_of(server).fetch(remote(server), tmp_path)
    assert is_in_place(tmp_path, BLOB)
    assert server.asked(PATH)[1]["if-range"] == LAST_MODIFIED


WRONG = {
    "a web page": (Fault(body=b"<!DOCTYPE html><html>Busy</html>"), "looks like an HTML page"),
    "an empty file": (Fault(body=b""), "empty"),
    "a damaged stream": (Fault(body=BLOB[:9000] + b"\xff" * 9 + BLOB[9009:]), "stream 2.*damaged"),
    "a cut between streams": (Fault(body=BLOB[: BLOB.index(b"BZh", 9)]), "the listing"),
    "a file that goes on": (Fault(body=BLOB + BLOB, headers={"Content-Length": None}), "more than the"),
    "a whole file of another length": (Fault(body=bz2.compress(TEXT)), "offers .* bytes, the listing"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_bytes_that_are_not_the_file_are_refused_after_two_more_tries(server, tmp_path, wrong):
    fault, says = WRONG[wrong]
    server.faults[PATH] = [fault] * 9
    with pytest.raises(CorruptDump, match=f"{NAME}.*{says}"):
        mirror_of(server).fetch(remote(server, len(BLOB)), tmp_path)
    assert len(server.requests) == 3
    assert list(tmp_path.iterdir()) == []


def test_a_web_page_in_answer_to_a_resume_costs_nothing_that_arrived(server, tmp_path):
    leave_partial(server, tmp_path, 5000)
    server.faults[PATH] = [Fault(status=200, body=b"<html>", ignore_range=True)]
    mirror_of(server).fetch(remote(server), tmp_path)
    assert is_in_place(tmp_path, BLOB)
    assert [headers["range"] for headers in server.asked(PATH)] == ["bytes=5000-"] * 2


def test_what_arrived_from_one_url_is_not_joined_to_another(server, tmp_path):
    elsewhere = f"/elsewhere/{NAME}"
    server.etags = {PATH: '"same"', elsewhere: '"same"'}
    server.files[elsewhere] = OTHER
    leave_partial(server, tmp_path, 5000)
    mirror_of(server).fetch(remote(server, path=elsewhere), tmp_path)
    assert is_in_place(tmp_path, OTHER)
    assert "range" not in server.asked(elsewhere)[0]


def test_a_body_cut_where_nothing_gives_its_length_is_refused(server, tmp_path):
    server.faults[PATH] = [Fault(headers={"Content-Length": None, "ETag": None, "Date": None}, drop_after=5000)] * 9
    with pytest.raises(SourceUnavailable, match="neither the reply nor the listing gives a length"):
        mirror_of(server).fetch(remote(server), tmp_path)
    with pytest.raises(SourceUnavailable, match="after 8 attempts.*ended after 5,000 of"):
        mirror_of(server).fetch(remote(server, len(BLOB)), tmp_path)


def test_a_body_encoded_on_the_way_is_refused(server, tmp_path):
    server.faults[PATH] = [Fault(headers={"Content-Encoding": "gzip"}, body=gzip.compress(BLOB))]
    with pytest.raises(SourceUnavailable, match="Content-Encoding 'gzip'"):
        mirror_of(server).fetch(remote(server), tmp_path)


@pytest.mark.parametrize("name", ["../x.json.bz2", "a/b.gz", ".hidden.gz", "", "a b.gz", "x" * 200 + ".gz", "é.gz"])
def test_a_name_that_is_not_plain_is_a_bad_request(server, tmp_path, name):
    with pytest.raises(BadRequest, match="plain file name"):
        mirror_of(server).fetch(RemoteFile(name, server.url + PATH), tmp_path)


# Failures that pass, and failures that do not


@pytest.mark.parametrize(
    ("status", "says"), [(404, "not there"), (403, "refused.*WIKI_ASSETS_CONTACT"), (418, "answered 418"), (204, "204")]
)
def test_some_answers_are_final(server, tmp_path, status, says):
    server.faults[PATH] = [Fault(status=status)]
    with pytest.raises(SourceUnavailable, match=says) as caught:
        mirror_of(server).fetch(remote(server), tmp_path)
    assert not isinstance(caught.value, TransientSource)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_some_answers_pass(server, tmp_path, status):
    server.faults[PATH] = [Fault(status=status, body=b"<html>")] * 7
    mirror_of(server).fetch(remote(server), tmp_path)
    assert is_in_place(tmp_path, BLOB)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120),
        ("Wed, 21 Oct 2026 07:29:30 GMT", 90),
        ("Wed, 21 Oct 2026 07:00:00 GMT", 0),
        ("-5", 0),
        ("soon", 0),
        ("", 0),
        ("1e9", 0),
        ("²", 0),
        ("99999999999", 1e9),
    ],
)
def test_retry_after_is_read_in_every_form(value, seconds):
    assert retry_after({"retry-after": value, "date": "Wed, 21 Oct 2026 07:28:00 GMT"}) == seconds


def test_a_proxy_setting_is_not_meant_for_this_machine(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    mirror_of(server, max_attempts=1).fetch(remote(server), tmp_path)
    assert is_in_place(tmp_path, BLOB)


def test_waits_add_up_against_our_patience(server, tmp_path):
    server.faults[PATH] = [Fault(status=503, headers={"Retry-After": "1"})] * 9
    with pytest.raises(SourceUnavailable, match="busy until"):
        mirror_of(server, max_wait_s=1.5).fetch(remote(server), tmp_path)
    assert len(server.requests) == 2


def test_a_silent_server_is_asked_again(server, tmp_path):
    server.faults[PATH] = [Fault(delay_s=30)]
    mirror_of(server, read_timeout_s=0.2).fetch(remote(server), tmp_path)
    assert is_in_place(tmp_path, BLOB)


def test_a_server_that_is_not_there_is_unavailable():
    with FaultyServer() as gone:
        pass
    with pytest.raises(SourceUnavailable, match="still failing after 3 attempts: last was: .*ConnectError"):
        mirror_of(gone, max_attempts=3).latest("xwiki")


def test_redirects_on_the_same_server_are_followed(server, tmp_path):
    server.faults[PATH] = [Fault(status=status, headers={"Location": PATH}) for status in (301, 302, 303, 307, 308)]
    mirror_of(server).fetch(remote(server), tmp_path)
    assert is_in_place(tmp_path, BLOB)


def test_a_redirect_to_nonsense_is_an_error_of_the_server(server, tmp_path):
    server.faults[PATH] = [Fault(status=302, headers={"Location": "http://[::1/x"})] * 8
    with pytest.raises(SourceUnavailable, match="Invalid URL in location"):
        mirror_of(server).fetch(remote(server), tmp_path)


def test_a_redirect_to_what_no_url_can_be_is_final(server, tmp_path):
    server.faults[PATH] = [Fault(status=302, headers={"Location": "mailto:me@example.org"})]
    with pytest.raises(SourceUnavailable, match="leads to no URL"):
        mirror_of(server).fetch(remote(server), tmp_path)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("root", "target", "ours"),
    [
        ("https://dumps.wikimedia.org", "https://dumps1.wikimedia.org/x", True),
        ("https://dumps.wikimedia.org", "http://dumps.wikimedia.org/x", False),
        ("https://dumps.wikimedia.org", "https://dumps.wikimedia.org:8443/x", False),
        ("https://dumps.wikimedia.org", "https://evilwikimedia.org/x", False),
        ("https://dumps.wikimedia.org", "https://wikimedia.org.evil.org/x", False),
        ("https://mirror.example.org", "https://dumps.wikimedia.org/x", False),
        ("http://127.0.0.1:8000", "https://127.0.0.1/x", True),
    ],
)
def test_only_the_root_and_https_hosts_of_wikimedia_are_asked(root, target, ours):
    with Session(root, "t", max_connections=1, patience=Patience(connect_s=0.001, read_s=0.001)) as session:
        session.stop()  # what is allowed gets no further than this
        with pytest.raises(WikiAssetsError, match="stopped" if ours else "leads to"), session.open(target):
            pass


@contextmanager
def largest_file(n_bytes: int):
    """The nearest thing to a full disk that needs no disk: a write past `n_bytes` fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_line_and_what_arrived_stays(server, tmp_path):
    with largest_file(8000), pytest.raises(WikiAssetsError, match="no space left after 8,000 of") as caught:
        mirror_of(server).fetch(remote(server, len(BLOB)), tmp_path)
    assert "\n" not in str(caught.value)
    mirror_of(server).fetch(remote(server, len(BLOB)), tmp_path)
    assert server.asked(PATH)[-1]["range"] == "bytes=8000-"
    assert is_in_place(tmp_path, BLOB)


def test_what_lies_there_and_is_no_file_is_named(server, tmp_path):
    (tmp_path / f"{NAME}.partial").mkdir()
    with pytest.raises(WikiAssetsError, match=r"\.partial: a link, or no file"):
        mirror_of(server).fetch(remote(server), tmp_path)


@pytest.mark.parametrize("place", ["file://{tmp_path}/raw", "memory://bucket-{tmp_path}/raw"])
def test_a_file_can_be_fetched_into_any_root(server, tmp_path, place):
    folder = UPath(place.format(tmp_path=tmp_path))
    server.faults[PATH] = [Fault(drop_after=5000)]
    record = mirror_of(server).fetch(remote(server), folder)
    assert (folder / NAME).read_bytes() == BLOB
    assert [path.name for path in folder.iterdir()] == [NAME]
    server.files |= {PATH.replace(NAME, "_SUCCESS"): b""}
    server.requests.clear()
    assert mirror_of(server).fetch_all(SNAPSHOT, folder, known={NAME: record}) == [record]
    assert not server.asked(PATH)


# A whole snapshot


def test_all_files_are_fetched_over_no_more_connections_than_allowed(server, tmp_path):
    server.files = new("20260823", n_files=9)
    for path in server.files:
        server.faults[path] = [Fault(delay_s=0.02)]
    told: list[int] = []
    fetched = mirror_of(server).fetch_all(SNAPSHOT, tmp_path, told.append)
    assert [record.name for record in fetched] == sorted(path.name for path in tmp_path.iterdir())
    assert len(fetched) == 9
    assert sum(told) == sum(map(len, server.files.values()))
    assert server.most_open == 2


def test_known_files_in_place_are_kept_and_damaged_ones_fetched_again(server, tmp_path):
    server.files = new("20260823", n_files=3)
    known = {record.name: record for record in mirror_of(server).fetch_all(SNAPSHOT, tmp_path)}
    damaged = sorted(known)[1]
    (tmp_path / damaged).write_bytes(b"x" * known[damaged].size_bytes)
    server.requests.clear()
    told, anew = [], []
    again = mirror_of(server).fetch_all(SNAPSHOT, tmp_path, told.append, known=known, on_fetched=anew.append)
    assert [record.sha256 for record in again] == [record.sha256 for record in known.values()]
    assert [record.name for record in anew] == [damaged]
    assert len([where for where, _, _ in server.requests if where.endswith(".bz2")]) == 1
    assert sum(told) == sum(map(len, server.files.values()))


def test_other_bytes_of_the_recorded_length_are_refused(server, tmp_path):
    server.files = new("20260823")
    (record,) = mirror_of(server).fetch_all(SNAPSHOT, tmp_path)
    (tmp_path / NAME).unlink()
    server.files[PATH] = bz2.compress(b"1\n" * 9)
    assert len(server.files[PATH]) == record.size_bytes
    with pytest.raises(CorruptDump, match="other bytes"):
        mirror_of(server).fetch_all(SNAPSHOT, tmp_path, known={NAME: record})


def test_a_file_is_reported_before_it_is_in_place(server, tmp_path):
    server.files = new("20260823")
    seen = []
    mirror_of(server).fetch_all(SNAPSHOT, tmp_path, on_fetched=lambda file: seen.append((tmp_path / NAME).exists()))
    assert seen == [False] and (tmp_path / NAME).exists()


def test_the_first_final_error_ends_the_rest_and_finished_files_stay(server, tmp_path):
    server.files = new("20260823", n_files=8)
    paths = sorted(path for path in server.files if path.endswith(".bz2"))
    # what 503 asks holds for all files, so the 403 must be under way when it comes, and come when one waits
    server.faults[paths[1]] = [Fault(status=403, after=paths[2], delay_s=0.2)]
    server.faults[paths[2]] = [Fault(status=503, headers={"Retry-After": "3000"}, after=paths[1])]
    anew, begin = [], time.monotonic()
    with pytest.raises(SourceUnavailable, match="00001.json.bz2: refused"):
        mirror_of(server).fetch_all(SNAPSHOT, tmp_path, on_fetched=anew.append)
    assert time.monotonic() - begin < 3000  # and the suite's own limit is far below
    assert "xwiki_content-20260823-00000.json.bz2" in [record.name for record in anew]
    assert {record.name for record in anew} == {path.name for path in tmp_path.glob("*.bz2")}
    assert not server.asked(paths[7])


# Settings


@pytest.mark.parametrize(
    "url",
    [
        "http://dumps.wikimedia.org",
        "ftp://x/y",
        "dumps.wikimedia.org",
        "https://me:secret@x",
        "https://x/?a=1",
        "",
        "http://[",
        "http://127.0.0.1:99999",
        "https://x.org:0",
    ],
)
def test_a_root_that_is_not_https_is_a_bad_request(url):
    with pytest.raises(BadRequest, match="mirror "):
        DumpMirror(base_url=url)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000/", "http://localhost", "http://[::1]:80/x", "https://x.org/sub/"]
)
def test_https_roots_and_this_machine_are_fine(url):
    assert DumpMirror(base_url=url).base_url == url.rstrip("/")


def test_a_root_from_the_environment_is_checked_when_it_is_read(monkeypatch):
    mirror = DumpMirror(base_url=dg.EnvVar("TEST_MIRROR"), contact=dg.EnvVar("TEST_CONTACT"))
    monkeypatch.setenv("TEST_MIRROR", "http://example.org")
    monkeypatch.setenv("TEST_CONTACT", "me@example.org")
    with pytest.raises(BadRequest):
        mirror.process_config_and_initialize()
    monkeypatch.setenv("TEST_MIRROR", "https://example.org")
    assert "me@example.org" in mirror.process_config_and_initialize().user_agent


def test_a_contact_cannot_smuggle_in_a_header():
    with pytest.raises(BadRequest, match="contact"):
        DumpMirror(contact="me@example.org\r\nX-Evil: 1")


@pytest.mark.parametrize("n", [0, 4])
def test_wikimedia_allows_three_connections(n):
    with pytest.raises(ValueError, match="max_connections"):
        DumpMirror(max_connections=n)


# The sample tree


@pytest.mark.realdata
def test_the_sample_tree_is_read_as_wikimedia_would_serve_it(tmp_path):
    root = Path(os.environ.get("WIKI_ASSETS_TEST_DATA", Path(__file__).parents[2].parent / "shared" / "data")) / "dumps"
    if not root.is_dir():
        pytest.skip(f"no sample data in {root}; set WIKI_ASSETS_TEST_DATA")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(root))) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        mirror = DumpMirror(base_url=f"http://127.0.0.1:{http.server_port}", backoff_s=0)
        assert [s.date for s in mirror.snapshots("enwiki")] == ["20260816", "20260823"]
        assert mirror.latest("enwiki").date == "20260823"
        assert mirror.latest("ltgwiki").date == "20260823"
        with pytest.raises(SourceUnavailable, match="newest complete one is enwiki-20260823"):
            mirror.dump_files(Snapshot("enwiki", "20260830"))
        (old_file,) = mirror.dump_files(Snapshot("testwiki", "20240101"))
        assert old_file.size_bytes == 2286181
        assert mirror.fetch(old_file, tmp_path).lines == 2 * 148
        fetched = mirror.fetch_all(Snapshot("testwiki", "20260823"), tmp_path)
        http.shutdown()
    assert sum(record.lines for record in fetched) == 2 * (148 + 45)
    for record in fetched:
        published = root / "other/cirrus_search_index/20260823/index_name=testwiki_content" / record.name
        assert record.sha256 == sha256(published.read_bytes()) == sha256((tmp_path / record.name).read_bytes())
