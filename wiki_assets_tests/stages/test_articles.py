"""Documents become pages in shards: each once, the newest, and the same bytes whichever file came first."""

import itertools
import json
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wiki_assets.keys import Snapshot, shards_of
from wiki_assets.stages.addresses import page_url
from wiki_assets.stages.articles import ARTICLES_SCHEMA, LICENCE
from wiki_assets.stages.dump import Document, DumpReader, Redirect, RedirectTarget
from wiki_assets_tests.pipeline import Made, dump_files, make_articles, merge_documents

TINYWIKI = Path(__file__).parent.parent / "tinywiki"
EXPECTED = json.loads((TINYWIKI / "expected.json").read_text("utf-8"))
SNAPSHOT = Snapshot("tinywiki", "20250105")
dates = pytest.mark.parametrize("date", EXPECTED)


def tinywiki(date: str, folder: Path, *, shards: int = 2) -> Made:
    return make_articles(
        dump_files(TINYWIKI / "dumps", "tinywiki", date), Snapshot("tinywiki", date), folder, shards=shards
    )


def page(page_id: int, text: str = "Some text.", *, revision: int = 1, **fields) -> Document:
    return Document(
        **{"page_id": page_id, "title": f"Page {page_id}", "namespace": 0, "text": text, "version": revision} | fields
    )


def redirect(page_id: int, title: str, target: str, **fields) -> Document:
    pointer = RedirectTarget(title=target, **fields)
    return page(page_id, f"Redirect to: {target}", title=title, page_type="redirect", redirect_target=pointer)


def rows(made: Made) -> list[dict]:
    return made.table("articles").to_pylist()


# Tinywiki


@dates
def test_every_document_of_tinywiki_becomes_what_is_expected(tmp_path, date):
    made = tinywiki(date, tmp_path)
    expected = EXPECTED[date]
    for part in ("filtered", "quarantined"):
        assert made.ledger[part] == {reason: n for reason, n in expected[part].items() if n}
    assert (made.ledger["documents"], made.ledger["pages"]) == (expected["documents"], expected["pages"])
    assert len(made.table("articles")) == expected["pages"]


@dates
def test_documents_in_are_documents_out_left_out_or_bad(tmp_path, date):
    ledger = tinywiki(date, tmp_path).ledger
    assert ledger["documents"] == ledger["pages"] + sum(ledger["filtered"].values()) + sum(
        ledger["quarantined"].values()
    )


def test_every_layout_gives_the_same_articles(tmp_path):
    newest, *older = [tinywiki(date, tmp_path / date).table("articles") for date in EXPECTED]
    assert all(articles.equals(newest) for articles in older)


@pytest.mark.parametrize("shards", [1, 2, 7])
def test_a_page_is_in_the_shard_of_its_id_and_ids_rise(tmp_path, shards):
    made = tinywiki("20250105", tmp_path, shards=shards)
    for shard, data in enumerate(made.bytes("articles")):
        ids = pa.parquet.read_table(pa.BufferReader(data))["page_id"].to_numpy()
        assert (shards_of(ids, shards) == shard).all()
        assert sorted(set(ids)) == list(ids)


def test_redirects_that_only_exist_as_documents_are_attached(tmp_path):
    made = tinywiki("20250105", tmp_path)
    redirects = {row["title"]: row["redirects"] for row in rows(made)}
    assert redirects["Llama"] == ["Cria", "Lama glama", "Llamas"]
    assert redirects["Honey bee"] == ["Apis mellifera", "Honey bees", "Waggle dance"]
    assert made.total("redirects_attached") == 2


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
def test_the_order_of_the_dump_files_does_not_change_a_byte(tmp_path, order):
    files = dump_files(TINYWIKI / "dumps", "tinywiki", "20250105")
    straight = make_articles(files, SNAPSHOT, tmp_path / "straight", shards=2)
    mixed = make_articles([files[n] for n in order], SNAPSHOT, tmp_path / "mixed", shards=2)
    assert mixed.bytes("articles") == straight.bytes("articles")


def test_articles_say_what_they_are(tmp_path):
    articles = tinywiki("20250105", tmp_path, shards=1).table("articles")
    assert articles.column_names == ARTICLES_SCHEMA.names
    assert [column.nullable for column in articles.schema] == [column.nullable for column in ARTICLES_SCHEMA]
    assert articles["timestamp"].type.tz == "UTC"
    assert articles.schema.metadata[b"licence"] == LICENCE.encode()
    assert set(articles["language"].to_pylist()) >= {"en", "ja", "de", "th", "ar"}
    assert articles["timestamp"].null_count == 0


# One page, several documents


@pytest.mark.parametrize("order", [*itertools.permutations([1, 2, 3])])
@pytest.mark.parametrize("n_files", [1, 3])
def test_the_newest_revision_wins_whatever_the_order(tmp_path, order, n_files):
    documents = [page(7, f"Revision {n}." + " Once it was longer." * (3 - n), revision=n) for n in order]
    files = [documents] if n_files == 1 else [[document] for document in documents]
    made = merge_documents(files, SNAPSHOT, tmp_path)
    assert [row["text"] for row in rows(made)] == ["Revision 3."]
    assert (made.total("pages_in"), made.total("superseded")) == (3, 2)


twins = st.lists(
    st.builds(
        page,
        st.integers(1, 3),
        st.sampled_from(["a", "b", "bb"]),
        revision=st.integers(1, 2),
        title=st.sampled_from(["A", "B"]),
        incoming_links=st.sampled_from([None, 1, 2]),
        timestamp=st.sampled_from([None, "2026-08-23T00:00:00Z", "2026-08-24T00:00:00Z"]),
        category=st.sampled_from([None, ["x"], ["y"]]),
    ),
    min_size=2,
    max_size=6,
)


@given(documents=twins, random=st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_documents_of_one_revision_give_the_same_bytes_in_any_order(tmp_path_factory, documents, random):
    # a page that was touched while the dump was written is in it twice, with one revision and other counts
    folder = tmp_path_factory.mktemp("twins")
    straight = merge_documents([[document] for document in documents], SNAPSHOT, folder / "straight")
    random.shuffle(documents)
    mixed = merge_documents([[document] for document in documents], SNAPSHOT, folder / "mixed")
    assert mixed.bytes("articles") == straight.bytes("articles")


def test_where_documents_are_cut_into_files_does_not_matter(tmp_path):
    documents = [page(n, f"Text {n}.", redirect=[Redirect(f"Other {n}")]) for n in range(1, 200)]
    whole = merge_documents([documents], SNAPSHOT, tmp_path / "whole", shards=3)
    parts = merge_documents([documents[n::5] for n in range(5)], SNAPSHOT, tmp_path / "parts", shards=3)
    assert parts.bytes("articles") == whole.bytes("articles")


def test_a_snapshot_without_pages_has_empty_shards(tmp_path):
    assert rows(merge_documents([[], []], SNAPSHOT, tmp_path, shards=2)) == []
    assert rows(merge_documents([], SNAPSHOT, tmp_path / "no files", shards=2)) == []


# What is a page


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (page(7, text=None), "no_text"),
        (page(7, text=""), "no_text"),
        (page(7, text=" \t\n\u3000"), "no_text"),
        (page(7, namespace=4), "other_namespace"),
        (page(7, namespace=-1), "other_namespace"),
        (redirect(7, "Lama", "Llama"), "redirect"),
        (page(7, page_type="redirect"), "redirect"),
    ],
)
def test_what_is_no_page_is_left_out_and_counted(tmp_path, document, reason):
    made = merge_documents([[page(1), document, page(2)]], SNAPSHOT, tmp_path)
    assert [row["page_id"] for row in rows(made)] == [1, 2]
    assert made.ledger["filtered"] == {reason: 1}


@pytest.mark.parametrize(
    "fields", [{"namespace": None}, {"page_type": "article"}, {"page_type": None}, {"version": None}]
)
def test_a_page_need_not_say_everything(tmp_path, fields):
    assert len(rows(merge_documents([[page(7, **fields)]], SNAPSHOT, tmp_path))) == 1


def test_redirects_are_gathered_from_every_file(tmp_path):
    made = merge_documents(
        [
            [redirect(50, "Lama", "Llama"), redirect(51, "Spitter", "Llama"), redirect(52, "Nowhere", "Nothing")],
            [page(1, title="Llama", redirect=[Redirect("Cria"), Redirect("Lama"), Redirect("Talk:Cria", namespace=1)])],
            [redirect(53, "Lama of Perú", "Llama_glama"), page(2, title="Llama glama")],
        ],
        SNAPSHOT,
        tmp_path,
        shards=3,
    )
    assert {row["title"]: row["redirects"] for row in rows(made)} == {
        "Llama": ["Cria", "Lama", "Spitter"],
        "Llama glama": ["Lama of Perú"],
    }
    assert made.total("redirects_attached") == 2  # one of Llama's own was told twice


@pytest.mark.parametrize("fields", [{"namespace": 4}, {"interwiki": "de"}])
def test_a_redirect_that_leads_elsewhere_is_no_title_of_a_page_here(tmp_path, fields):
    made = merge_documents([[redirect(50, "Lama", "Llama", **fields), page(1, title="Llama")]], SNAPSHOT, tmp_path)
    assert rows(made)[0]["redirects"] == []


@pytest.mark.parametrize(
    "stamp", [None, "", "yesterday", "2026-02-30T00:00:00Z", "2026-08-23", "9" * 100, "2026-08-23T00:00:00Z\0"]
)
def test_a_time_that_is_none_is_null_and_counted(tmp_path, stamp):
    made = merge_documents([[page(1, timestamp=stamp), page(2, timestamp="2026-08-23T01:02:03Z")]], SNAPSHOT, tmp_path)
    bad, good = rows(made)
    assert bad["timestamp"] is None
    assert good["timestamp"].isoformat() == "2026-08-23T01:02:03+00:00"
    assert made.total("no_timestamp") == 1


numbers = st.integers(-(2**63), 2**63) | st.sampled_from([2**63, 2**64, 2**70, -(2**70), 10**400])
texts = st.text(st.characters(codec="utf-8"))
fields = st.fixed_dictionaries(
    {},
    optional={
        "text": texts,
        "title": texts,
        "version": numbers,
        "incoming_links": numbers,
        "popularity_score": st.floats() | numbers,
        "namespace": numbers,
        "timestamp": texts,
        "language": texts,
        "redirect": st.lists(st.fixed_dictionaries({"title": texts, "namespace": numbers})),
        "category": st.lists(texts),
        "redirect_target": st.fixed_dictionaries({"title": texts, "namespace": numbers}),
        "page_type": st.sampled_from(["article", "redirect"]),
        "wikibase_item": texts,
    },
)


@given(fields=fields)
@settings(max_examples=150)
def test_whatever_the_reader_lets_through_can_be_split_and_merged(tmp_path_factory, fields):
    line = json.dumps({"page_id": 7, "title": "Page 7", "namespace": 0, "text": "Text."} | fields)
    reader = DumpReader()
    documents = [*reader.documents([line.encode()]), page(8)]
    made = merge_documents([documents], SNAPSHOT, tmp_path_factory.mktemp("fields"))
    assert made.total("pages") + sum(made.splits[0].filtered.values()) == len(documents)
    assert 8 in made.table("articles")["page_id"].to_pylist()


@given(text=texts.filter(lambda text: text and not text.isspace()))
@settings(max_examples=60)
def test_text_comes_out_as_it_went_in(tmp_path_factory, text):
    made = merge_documents([[page(7, text)]], SNAPSHOT, tmp_path_factory.mktemp("text"))
    assert rows(made)[0]["text"] == text
    assert made.total("text_chars") == len(text)


# Addresses


@pytest.mark.parametrize(
    ("wiki", "title", "url"),
    [
        ("enwiki", "Llama", "https://en.wikipedia.org/wiki/Llama"),
        ("enwiki", "Lake Baikal", "https://en.wikipedia.org/wiki/Lake_Baikal"),
        ("enwiki", "AC/DC", "https://en.wikipedia.org/wiki/AC/DC"),
        ("enwiki", "Who? (album)", "https://en.wikipedia.org/wiki/Who%3F_(album)"),
        ("enwiki", 'C# & 100% "x"', "https://en.wikipedia.org/wiki/C%23_%26_100%25_%22x%22"),
        ("enwiki", "1+1=2", "https://en.wikipedia.org/wiki/1%2B1%3D2"),
        ("enwiki", "Newton's cradle", "https://en.wikipedia.org/wiki/Newton%27s_cradle"),
        ("dewiki", "Brücke", "https://de.wikipedia.org/wiki/Br%C3%BCcke"),
        ("jawiki", "温泉", "https://ja.wikipedia.org/wiki/%E6%B8%A9%E6%B3%89"),
        ("simplewiki", "Llama", "https://simple.wikipedia.org/wiki/Llama"),
        ("zh_yuewiki", "茶", "https://zh-yue.wikipedia.org/wiki/%E8%8C%B6"),
        ("be_x_oldwiki", "A", "https://be-tarask.wikipedia.org/wiki/A"),
        ("enwiktionary", "llama", "https://en.wiktionary.org/wiki/llama"),
        ("frwikisource", "A", "https://fr.wikisource.org/wiki/A"),
        ("dewikivoyage", "A", "https://de.wikivoyage.org/wiki/A"),
        ("commonswiki", "A", "https://commons.wikimedia.org/wiki/A"),
        ("wikidatawiki", "Q1", "https://www.wikidata.org/wiki/Q1"),
        ("testwiki", "A", "https://test.wikipedia.org/wiki/A"),
    ],
)
def test_a_page_has_the_address_that_wikipedia_gives_it(wiki, title, url):
    assert page_url(wiki, title) == url


@given(title=texts)
def test_an_address_is_plain_ascii_without_blanks(title):
    url = page_url("enwiki", title)
    assert url.isascii()
    assert url.isprintable()
    assert not set(url) & set(' "<>?#')


# Memory


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss would be the parent's; only /proc knows")
def test_the_memory_of_a_split_does_not_grow_with_the_number_of_small_documents():
    script = textwrap.dedent("""
        import re
        from pathlib import Path
        from wiki_assets.stages.articles import split_documents
        from wiki_assets.stages.dump import Document, Redirect
        from wiki_assets_tests.stages.test_articles import Sink

        def documents(n):
            for i in range(1, n + 1):
                yield Document(page_id=i, title=f"Word {i}", namespace=0, text=f"Word {i} is a word.", version=i,
                               category=[f"Words {(i + j) % 100}" for j in range(8)],
                               redirect=[Redirect(f"Word {i}{letter}") for letter in "abcd"])

        for n in (1_000, 50_000, 200_000):
            split_documents(documents(n), Sink(), Sink(), shards=4)
            print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) >> 10)
    """)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=TINYWIKI.parent.parent, timeout=60
    )
    assert done.returncode == 0, done.stderr
    few_mib, some_mib, many_mib = map(int, done.stdout.split())
    assert many_mib - few_mib < 400
    assert many_mib - some_mib < 100


class Sink:
    """A file to write to that keeps nothing but its length."""

    closed = False

    def __init__(self) -> None:
        self.size = 0

    def write(self, data) -> int:
        self.size += memoryview(data).nbytes
        return memoryview(data).nbytes

    def tell(self) -> int:
        return self.size

    def flush(self) -> None: ...

    def close(self) -> None: ...


def test_flushes_in_between_change_nothing(tmp_path, monkeypatch):
    documents = [page(n, f"Text {n} " * random.Random(n).randrange(1, 50)) for n in range(1, 300)]
    whole = merge_documents([documents], SNAPSHOT, tmp_path / "whole", shards=3)
    monkeypatch.setattr("wiki_assets.stages.articles._BUFFER_BYTES", 2_000)
    often = merge_documents([documents], SNAPSHOT, tmp_path / "often", shards=3)
    assert often.bytes("articles") == whole.bytes("articles")
    assert sum(map(len, often.splits[0].batches_by_shard.values())) > 30
    assert pc.sum(pc.utf8_length(often.table("articles")["text"])).as_py() == often.splits[0].text_chars
