"""S3, S4: week after week the index holds the snapshot and nothing else, and what did not change is not made again."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import pytest

from wiki_assets.defs import headless, publish, retention
from wiki_assets.stages import articles, embeddings, tokens
from wiki_assets_tests.chaos import checks_weeks as checks
from wiki_assets_tests.chaos.children import planted
from wiki_assets_tests.chaos.plain import Plain


@pytest.mark.chaos("S3")
@pytest.mark.chroma
def test_weeks_of_edits_deletions_moves_and_kills_leave_nothing_stale(
    tokenizer, tmp_path: Path, chaos_seed: int, chaos_tier: str, record_property
) -> None:
    n_weeks, kills, pages = (10, 4, 60) if chaos_tier == "nightly" else (4, 1, 20)
    keeper = checks.Keeper(tmp_path, tokenizer, chaos_seed, pages)
    for week in range(n_weeks):
        plain = keeper.a_week(kills)
        if week % 3 == 2:
            keeper.rolled_back(plain)
    for name, value in keeper.summary().items():
        record_property(name, value)


@pytest.fixture
def made(tokenizer, tmp_path: Path, chaos_seed: int) -> tuple[Plain, checks.Expected]:
    """Two weeks of files."""
    return checks.two_weeks_of_files(tmp_path, tokenizer, chaos_seed)


NEW_CODE = {  # what is made again, and whether what is embedded already is embedded again
    "articles": (articles, {"articles": 2, "tokens": 2, "embeddings": 2}, False),
    "tokens": (tokens, {"articles": 0, "tokens": 2, "embeddings": 2}, False),
    "embeddings": (embeddings, {"articles": 0, "tokens": 0, "embeddings": 2}, True),
}


@pytest.mark.chaos("S4")
@pytest.mark.parametrize("stage", NEW_CODE)
def test_new_code_makes_again_what_it_touches(stage: str, made, record_property) -> None:
    plain, expected = made
    module, stages, embedded = NEW_CODE[stage]
    with mock.patch.object(module, "CODE_VERSION", f"{stage}-other"):
        again = checks.made_again(plain)
        checks.files_hold(plain, expected)
        assert not any(checks.made_again(plain).values()), "done twice"
    n = len(expected.passages)
    assert again == stages | ({"embedded": n, "reused": 0} if embedded else {"embedded": 0, "reused": n})
    record_property("stale outputs reused", 0)
    record_property("unaffected stages redone", 0)


@pytest.mark.chaos("S4")
def test_another_passage_length_embeds_only_what_it_cuts_otherwise(made, tokenizer) -> None:
    plain, old = made
    config = msgspec.structs.replace(plain.book.config, passage_word_pieces=96)
    other = replace(plain, book=replace(plain.book, config=config))
    expected = checks.expected_of(old.pages, tokenizer, pieces=96)
    again = checks.made_again(other)
    checks.files_hold(other, expected)
    assert again["reused"] == sum(
        n for shard, inputs in expected.inputs.items() for key, n in inputs.items() if key in old.inputs[shard]
    )
    assert (again["articles"], again["embedded"]) == (0, len(expected.passages) - again["reused"])


@pytest.mark.chaos("S4")
def test_another_models_vectors_are_not_taken_over(made, model) -> None:
    plain, expected = made
    other = msgspec.convert(msgspec.to_builtins(model) | {"sha256": "0" * 64}, type(model))
    with mock.patch.object(type(plain.book.config), "find_model", return_value=other):
        again = checks.made_again(plain)
    n = len(expected.passages)
    assert again == {"articles": 0, "tokens": 2, "embeddings": 2, "embedded": n, "reused": 0}


@pytest.mark.chaos("S4")
def test_other_word_pieces_of_the_same_text_are_embedded(made, tokenizer) -> None:
    plain, expected = made
    checks.other_word_pieces(plain, tokenizer, expected.pages)


def test_a_damaged_file_of_the_week_before_is_not_taken_from(tokenizer, tmp_path: Path) -> None:
    keeper = checks.Keeper(tmp_path, tokenizer, 1, 12)
    first = keeper.fetch()
    for name in checks.PARQUET_STEPS:
        first.step(name)
    path = Path(str(first.book.store.file("embeddings", first.shard(0))))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    keeper.wiki.live()
    second = keeper.fetch()
    for name in checks.PARQUET_STEPS:
        second.step(name)
    checks.files_hold(second, keeper.expected[second.snapshot.date])
    reused = [second.book.store.manifest("embeddings", shard) for shard in second.book.shards(second.snapshot)]
    assert [bool(m and m.counts["passages_reused"]) for m in reused] == [False, True]


# Negative controls


def by_place(row: dict[str, Any]) -> str:
    return f"{row['page_id']}-{row['ordinal']}"


def by_passage_id(row: dict[str, Any]) -> str:
    return row["passage_id"]


@pytest.mark.chaos("mutants")
def test_reuse_by_a_passages_place_is_caught(tokenizer, tmp_path: Path) -> None:
    with checks.vectors_known_by(by_place), pytest.raises(AssertionError, match="not their passages'"):
        checks.two_weeks_of_files(tmp_path, tokenizer, 1)


@pytest.mark.chaos("mutants")
def test_reuse_by_passage_id_is_caught(tokenizer, tmp_path: Path) -> None:
    with checks.vectors_known_by(by_passage_id):
        plain, expected = checks.two_weeks_of_files(tmp_path, tokenizer, 1)
        with pytest.raises(AssertionError, match="not their passages'"):
            checks.other_word_pieces(plain, tokenizer, expected.pages)


@contextmanager
def rollbacks_forgotten() -> Iterator[None]:
    with (
        mock.patch.object(headless, "was_rolled_back", return_value=False),
        mock.patch.object(publish, "was_rolled_back", return_value=False),
    ):
        yield


def rollback_target_forgotten() -> AbstractContextManager[object]:
    return mock.patch.multiple(retention, history=lambda pointer: [pointer], _is_whole=lambda book, build: False)


def nothing_removed() -> AbstractContextManager[object]:
    return mock.patch.object(retention, "_out_of_sight")


@pytest.mark.chaos("mutants")
@pytest.mark.chroma
@pytest.mark.parametrize(
    ("broken", "found"),
    [
        (rollback_target_forgotten, "the build before is gone"),
        (nothing_removed, "builds"),
        (rollbacks_forgotten, "a rollback was undone"),
    ],
)
def test_a_broken_build_is_caught(
    broken: Callable[[], AbstractContextManager[object]], found: str, tokenizer, tmp_path: Path
) -> None:
    with planted(broken), pytest.raises(AssertionError, match=found):
        checks.publish_and_roll_back(tmp_path, tokenizer, 1)
