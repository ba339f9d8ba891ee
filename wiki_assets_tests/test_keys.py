"""Names are checked once, and a page keeps its shard for ever."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wiki_assets.errors import BadRequest
from wiki_assets.keys import (
    MAX_SHARDS,
    Shard,
    Snapshot,
    check_date,
    check_shard_count,
    check_wiki,
    shard_name,
    shards_of,
)

HOSTILE = [
    "", " ", ".", "..", "../..", "../../etc/passwd", "/etc/passwd", "a/b", "a\\b", "enwiki\0", "\0", "enwiki\n", "\n",
    "enwiki ", "a'; DROP TABLE runs; --", "${HOME}", "-rf", "~", "*", "file:///etc/passwd", "simple\u202ewiki",
    "ｅnwiki", "wiki١", "e" * 5_000, "é" * 5_000,
]  # fmt: skip
hostile = pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[:30])
dates = st.dates().map(lambda day: f"{day:%Y%m%d}").filter(lambda text: len(text) == 8)


def is_for_a_person(error: BaseException) -> bool:
    """One line, not longer than the screen, whatever was typed."""
    return str(error).isprintable() and len(str(error)) < 300


@hostile
def test_a_hostile_name_is_no_wiki(name):
    with pytest.raises(BadRequest) as refused:
        check_wiki(name)
    assert is_for_a_person(refused.value)


@hostile
def test_a_hostile_name_is_no_date(name):
    with pytest.raises(BadRequest) as refused:
        Snapshot("enwiki", name)
    assert is_for_a_person(refused.value)


@hostile
def test_a_hostile_name_is_no_partition(name):
    for key in (
        name,
        f"{name}|00003",
        f"20260823|{name}",
        f"20260823|00003{name or '|'}",
        f"{name or '0'}20260823|00003",
    ):
        with pytest.raises(BadRequest) as refused:
            Shard.from_partition_key("enwiki", key)
        assert is_for_a_person(refused.value)


@pytest.mark.parametrize(
    "name", ["Enwiki", "EN", "e", "1wiki", "_wiki", "en-wiki", "en.wikipedia.org", "enwikí", "a" * 41, None, 7]
)
def test_what_is_no_database_name_is_no_wiki(name):
    with pytest.raises(BadRequest, match="simplewiki"):
        check_wiki(name)


@pytest.mark.parametrize(
    "name", ["enwiki", "simplewiki", "zh_yuewiki", "be_x_oldwiki", "tinywiki", "enwiktionary", "a" * 40]
)
def test_a_database_name_is_a_wiki(name):
    assert check_wiki(name) == name


@pytest.mark.parametrize(
    "date",
    ["20260230", "20261301", "20260800", "20250229", "00000101", "2026082", "202608231", "2026-08-23", " 20260823",
     "+2026082", "2026 823", None, 20260823],
)  # fmt: skip
def test_what_is_no_day_of_the_calendar_is_no_date(date):
    with pytest.raises(BadRequest, match="YYYYMMDD"):
        check_date(date)


@pytest.mark.parametrize("date", ["2026082٣", "२0260823", "２０２６０８２３", "2026082³"])
def test_digits_of_other_scripts_make_no_date(date):
    with pytest.raises(BadRequest):
        check_date(date)


@pytest.mark.parametrize("key", ["20260823|0000٣", "2026082٣|00003", "20260823|００００３"])
def test_digits_of_other_scripts_make_no_partition(key):
    with pytest.raises(BadRequest):
        Shard.from_partition_key("enwiki", key)


@pytest.mark.parametrize(
    "key",
    ["20260823", "20260823|", "20260823|3", "20260823|000003", "20260823|-0003", "20260823|04096", "20260823|99999",
     "00003|20260823", "20260823|00003|", "20260823||00003", "20260230|00003"],
)  # fmt: skip
def test_a_key_of_another_form_is_no_partition(key):
    with pytest.raises(BadRequest):
        Shard.from_partition_key("enwiki", key)


@given(date=dates, number=st.integers(0, MAX_SHARDS - 1))
def test_a_shard_is_read_back_from_its_partition_key(date, number):
    shard = Shard(Snapshot("enwiki", date), number)
    assert Shard.from_partition_key("enwiki", shard.partition_key) == shard


@given(key=st.text() | st.from_regex(r"\d{8}\|\d{5}"))
def test_a_key_that_is_read_is_the_key_that_is_written(key):
    try:
        shard = Shard.from_partition_key("enwiki", key)
    except BadRequest:
        return
    assert shard.partition_key == key


@given(a=st.integers(0, MAX_SHARDS - 1), b=st.integers(0, MAX_SHARDS - 1))
def test_names_of_shards_sort_as_their_numbers_do(a, b):
    assert (shard_name(a) < shard_name(b)) == (a < b)


@pytest.mark.parametrize("count", [0, -1, MAX_SHARDS + 1, 10**9])
def test_a_wiki_has_one_to_4096_shards(count):
    with pytest.raises(BadRequest, match="expected 1 to 4096"):
        check_shard_count(count)


@pytest.mark.parametrize("number", [-1, MAX_SHARDS, 10**9])
def test_a_shard_has_a_number_that_a_wiki_can_have(number):
    with pytest.raises(BadRequest):
        Shard(Snapshot("enwiki", "20260823"), number)


def test_snapshots_sort_by_date():
    assert Snapshot("enwiki", "20251229") < Snapshot("enwiki", "20260105")
    assert str(Snapshot("simplewiki", "20251103")) == "simplewiki-20251103"


# The shard of a page


def splitmix(page_id: int, count: int) -> int:
    """The same hash in Python's own integers."""
    mask = (1 << 64) - 1
    z = (page_id + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return (z ^ (z >> 31)) % count


IDS = [1, 2, 3, 12, 39, 4242, 900_000_000, 1 << 31, (1 << 63) - 1]


@pytest.mark.parametrize(
    ("count", "shards"),
    [
        (2, [1, 0, 1, 1, 0, 1, 0, 0, 1]),
        (32, [1, 14, 13, 3, 12, 3, 24, 12, 7]),
        (512, [193, 206, 493, 259, 236, 227, 376, 364, 167]),
        (4096, [3265, 1742, 4077, 3843, 3820, 227, 3960, 876, 3751]),
    ],
)
def test_pages_are_in_the_shards_where_they_have_always_been(count, shards):
    # if this fails, every shard ever made holds the wrong pages: change the code back, not the numbers
    assert shards_of(np.array(IDS), count).tolist() == shards
    assert [splitmix(page_id, count) for page_id in IDS] == shards


@given(ids=st.lists(st.integers(1, (1 << 63) - 1)), count=st.integers(1, MAX_SHARDS))
def test_the_shard_is_the_hash_modulo_the_count(ids, count):
    found = shards_of(np.array(ids, np.int64), count)
    assert found.tolist() == [splitmix(page_id, count) for page_id in ids]
    assert found.dtype == np.int64
    assert all(0 <= shard < count for shard in found)


@pytest.mark.parametrize("step", [1, 2, 64, 1000], ids="every {}".format)
@pytest.mark.parametrize("count", [2, 32, 64])
def test_pages_spread_evenly(step, count):
    n_pages = 100_000
    sizes = np.bincount(shards_of(np.arange(1, n_pages * step, step), count), minlength=count)
    expected = n_pages / count
    assert np.abs(sizes - expected).max() < 5 * expected**0.5  # as a fair die would
