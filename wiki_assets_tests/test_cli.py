"""The command line: what it prints, and what a mistake gets: one line with the next move, and an exit code."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from wiki_assets_tests.processes import WIKI_ASSETS
from wiki_assets_tests.tinywiki.build import HERE
from wiki_assets_tests.tinywiki.serve import serving

pytestmark = pytest.mark.ray


class Terminal:
    """Runs wiki-assets on one data root and one mirror."""

    def __init__(self, root: Path, mirror: str) -> None:
        self.root = root
        self.env = {**os.environ, "WIKI_ASSETS_ROOT": str(root), "WIKI_ASSETS_MIRROR": mirror, "COLUMNS": "100"}
        self.env.pop("DAGSTER_HOME", None)

    def __call__(self, *words: str, **env: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*WIKI_ASSETS, *words], env={**self.env, **env}, text=True, capture_output=True, timeout=240, check=False
        )


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory):
    """A terminal on a root where the tiny wiki is published; made by the command that README shows."""
    with serving() as mirror:
        terminal = Terminal(tmp_path_factory.mktemp("cli") / "data", mirror)
        made = terminal("materialize", "tinywiki")
        assert made.returncode == 0, made.stderr
        assert "published_index 1" in made.stdout
        assert "chroma_collection:" in made.stderr, "progress, a line a shard"
        yield terminal


@pytest.fixture
def fresh(tmp_path: Path):
    """A terminal on an empty root."""
    with serving() as mirror:
        yield Terminal(tmp_path / "data", mirror)


def test_a_second_run_has_nothing_to_do(published: Terminal) -> None:
    again = published("materialize", "tinywiki")
    assert (again.returncode, again.stdout) == (0, "tinywiki-20250105: nothing to do, published_index is up to date\n")


def test_watching_once_says_why_nothing_is_due(published: Terminal) -> None:
    once = published("watch", "tinywiki", "--once")
    assert once.returncode == 0, once.stderr
    assert once.stdout.startswith("tinywiki: nothing to do: 20250105 is known here and is the newest on http://")


def test_the_wikis_that_are_kept_are_listed(published: Terminal) -> None:
    listed = published("wikis")
    assert listed.returncode == 0
    (line,) = [line for line in listed.stdout.splitlines() if line.startswith("tinywiki")]
    assert line.endswith("every 60 min  20250105        tinywiki-20250105-1, 53 pages")
    rows = {row["wiki"]: row for row in map(json.loads, published("wikis", "--json").stdout.splitlines())}
    assert rows["enwiki"]["shards"] == 512
    assert rows["tinywiki"]["published"] == "tinywiki-20250105-1"


def test_a_question_is_answered_by_the_right_page(published: Terminal) -> None:
    answer = published("query", "Which lake holds a fifth of the unfrozen fresh water?", "-k", "3")
    assert answer.returncode == 0
    assert "Lake Baikal" in answer.stdout.splitlines()[0]
    assert "index.php?title=Lake_Baikal&oldid=2112 characters 0-467" in answer.stdout
    assert "CC BY-SA 4.0" in answer.stderr


def test_a_question_may_be_limited_to_one_way_of_searching_and_some_pages(published: Terminal) -> None:
    words = ("--mode", "lexical", "--group", "--after", "2000-01-01", "-k", "3", "--json")
    rows = [json.loads(line) for line in published("query", "deepest lake", *words).stdout.splitlines()]
    assert rows[0]["title"] == "Lake Baikal"
    assert len({row["page_id"] for row in rows}) == len(rows)
    assert all(row["dense_rank"] is None and row["lexical_rank"] for row in rows)
    assert published("query", "deepest lake", "--category", "No such category").stdout == ""


def test_the_index_is_measured_on_ones_own_questions(published: Terminal, tmp_path: Path) -> None:
    words = ("--questions", str(HERE / "questions.jsonl"), "--out", str(tmp_path), "--neighbours", "5")
    run = published("eval", *words)
    assert run.returncode == 0, run.stderr
    assert "| hybrid | page | 36 |" in run.stdout
    report = json.loads((tmp_path / "tinywiki-20250105-1.json").read_text("utf-8"))
    assert report["ann"]["recall@10"] == 1.0
    assert (tmp_path / "tinywiki-20250105-1.md").read_text("utf-8") == run.stdout
    assert (tmp_path / "tinywiki-20250105-1.svg").read_text("utf-8").startswith("<svg")


def test_json_is_one_object_a_line_with_the_promised_fields(published: Terminal) -> None:
    rows = [json.loads(line) for line in published("query", "violin maker", "-k", "4", "--json").stdout.splitlines()]
    assert [row["rank"] for row in rows] == [1, 2, 3, 4]
    fields = {"rank", "score", "page_id", "title", "url", "revision", "passage", "start", "end", "snapshot", "wiki"}
    assert set(rows[0]) == fields | {"permalink", "similarity", "dense_rank", "lexical_rank"}
    assert rows[0]["score"] >= rows[3]["score"]


def test_status_counts_every_asset(published: Terminal) -> None:
    rows = [json.loads(line) for line in published("status", "tinywiki", "--json").stdout.splitlines()]
    assert {row["asset"]: (row["done"], row["of"]) for row in rows} == {
        "raw_dump": (1, 1),
        "articles": (2, 2),
        "tokens": (2, 2),
        "embeddings": (2, 2),
        "lexical_index": (1, 1),
        "chroma_collection": (2, 2),
        "evaluation": (1, 1),
        "published_index": (1, 1),
    }
    assert "tinywiki: published is tinywiki-20250105-1" in published("status").stdout


def mistake(run: "subprocess.CompletedProcess[str]", code: int, *says: str) -> None:
    """One line on standard error that says what was found and what to do; nothing on standard output."""
    lines = run.stderr.strip().splitlines()
    assert run.returncode == code, run.stderr
    assert run.stdout == ""
    assert len(lines) == 1, run.stderr
    assert lines[0].startswith("wiki-assets: ")
    for text in says:
        assert text in lines[0]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["query", ""], 2, "the question is empty"),
        (["query", "x" * 9000], 2, "9,000 bytes"),
        (["query", "x", "-k", "0"], 2, "expected 1 to 1000"),
        (["query", "x", "-k", "1000000000"], 2, "expected 1 to 1000"),
        (["query", "x", "--wiki", "../../etc"], 2, "is no wiki"),
        (["query", "x", "--category", " "], 2, "expected a category's name"),
        (["query", "x", "--after", "2025-02-02", "--before", "2025-02-01"], 2, "swap the two"),
        (["eval", "--questions", "/no/such/file"], 2, "expected a file"),
        (["eval", "--gate", "0.9"], 2, "give them with --questions"),
        (["query", "x", "--wiki", "enwiki"], 1, "published there: tinywiki"),
        (["materialize", "../x"], 2, "is no wiki"),
        (["materialize", "tinywiki", "--snapshot", "20250230"], 2, "is no snapshot date"),
        (["materialize", "tinywiki", "--shards", "16"], 2, "has 2"),
        (["materialize", "tinywiki", "--until", "the end"], 2, "expected one of raw_dump"),
        (["status", "enwiki"], 2, "run wiki-assets materialize enwiki"),
    ],
)
def test_a_mistake_gets_one_line_and_an_exit_code(published: Terminal, words: list[str], code: int, says: str) -> None:
    mistake(published(*words), code, says)


def test_another_model_than_the_collections_is_refused(published: Terminal, model, tmp_path: Path) -> None:
    import shutil

    other = tmp_path / "other-model"
    shutil.copytree(model.folder, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "note": "another model"}))
    mistake(
        published("query", "x", WIKI_ASSETS_MODEL=str(other)),
        1,
        "was made with 'all-MiniLM-L6-v2'",
        "WIKI_ASSETS_MODEL",
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["materialize", "nowiki"], "no complete snapshot of nowiki"),
        (["materialize", "tinywiki", "--snapshot", "20250112"], "still being written"),
        (["materialize", "tinywiki", "--snapshot", "20230101"], "20250105"),
        (["query", "x"], "nothing is published"),
    ],
)
def test_what_is_not_there_is_said_and_nothing_is_written(fresh: Terminal, words: list[str], says: str) -> None:
    mistake(fresh(*words), 1, says)
    assert not fresh.root.exists() or not any(fresh.root.rglob("*.json"))


def test_a_server_that_does_not_answer_is_named(fresh: Terminal) -> None:
    mistake(fresh("materialize", "tinywiki", WIKI_ASSETS_MIRROR="http://10.1.2.3/"), 2, "https")


def test_a_chroma_server_that_does_not_answer_is_named(published: Terminal) -> None:
    mistake(published("query", "x", WIKI_ASSETS_CHROMA="http://127.0.0.1:9"), 1, "no Chroma server answers")


def test_help_shows_an_example_of_each_command(fresh: Terminal) -> None:
    for command in ("materialize", "query", "eval", "status"):
        assert f"wiki-assets {command} " in fresh(command, "--help").stdout
