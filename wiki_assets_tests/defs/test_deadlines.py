"""A task's deadline grows with what it reads, and is never below the setting."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wiki_assets.defs.deadlines import SLOWEST, deadlines
from wiki_assets.defs.recipes import Recipe
from wiki_assets.defs.wikis import WikiConfig
from wiki_assets.defs.work import Split, Work
from wiki_assets.keys import Shard, Snapshot
from wiki_assets.resources.store import Store
from wiki_assets.settings import Settings

SNAPSHOT = Snapshot("tinywiki", "20250105")
CONFIG = WikiConfig("tinywiki", 4, "all-MiniLM-L6-v2")


def split(decoded_bytes: int) -> Split:
    return Split(SNAPSHOT, CONFIG, Store("/nowhere"), "a.json.bz2", "0" * 64, decoded_bytes)


def work(artifact: str, root: Path) -> Work:
    return Work(Recipe(artifact, Shard(SNAPSHOT, 1), "v", {}, {}), CONFIG, Store(str(root)), Settings())


@given(small=st.integers(0, 10**12), more=st.integers(0, 10**12), floor=st.integers(1, 10**5))
def test_more_to_read_takes_longer(small: int, more: int, floor: int) -> None:
    deadline_s = deadlines(replace(Settings(), task_seconds=floor))
    assert floor <= deadline_s(split(small)) <= deadline_s(split(small + more))


def test_the_shards_of_a_dump_share_its_size(tmp_path: Path) -> None:
    splits = [split(4 * 10**9), split(4 * 10**9)]
    seconds = deadlines(Settings())(work("articles", tmp_path), splits)
    assert seconds == Settings().task_seconds + 2 * 10**9 / SLOWEST["articles"]


@pytest.mark.parametrize(("artifact", "source"), [("tokens", "articles"), ("embeddings", "passages")])
def test_a_shard_counts_by_its_input(artifact: str, source: str, tmp_path: Path) -> None:
    task = work(artifact, tmp_path)
    assert deadlines(Settings())(task) == Settings().task_seconds, "the task itself says that its input is gone"
    path = task.store.file(source, task.recipe.shard)
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(1_000_000))
    cpu, gpu = deadlines(Settings())(task), deadlines(Settings(), gpu=True)(task)
    assert cpu == Settings().task_seconds + 1_000_000 / SLOWEST[artifact]
    assert gpu < cpu if artifact == "embeddings" else gpu == cpu
