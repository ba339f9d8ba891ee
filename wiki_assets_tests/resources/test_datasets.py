"""Folders of data sets: all of one, or nothing."""

import json

import pytest

from wiki_assets.errors import BadRequest, SourceUnavailable
from wiki_assets.resources.datasets import TableFile, find_tables

ENDINGS = (".parquet", ".arrow", ".jsonl", ".json")


@pytest.fixture
def folder(tmp_path):
    def make(*names: str):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(name)
        return tmp_path

    return make


def names(place) -> list[str]:
    return [path.name for path in find_tables([str(place)], ENDINGS)]


def test_a_folder_gives_its_tables_in_order(folder):
    place = folder("data/b.parquet", "data/a.parquet", "README.md", ".git/x.json", "data/.hidden.parquet")
    (place / ".git" / "x.json").unlink()
    assert names(place) == ["a.parquet", "b.parquet"]
    both = find_tables([str(place / "data"), str(place / "data" / "a.parquet")], ENDINGS)
    assert len(both) == 2


def test_a_saved_data_set_is_its_arrow_files(folder):
    place = folder("data-00000-of-00002.arrow", "data-00001-of-00002.arrow", "dataset_info.json")
    listed = [{"filename": f"data-{n:05d}-of-00002.arrow"} for n in range(2)]
    (place / "state.json").write_text(json.dumps({"_data_files": listed}))
    assert names(place) == ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    listed.append({"filename": "data-00002.arrow"})
    (place / "state.json").write_text(json.dumps({"_data_files": listed}))
    with pytest.raises(SourceUnavailable, match=r"1 of 3 files .* data-00002\.arrow"):
        names(place)


def test_a_data_set_that_was_fetched_in_part_is_refused(folder):
    place = folder("train-00000-of-00041.parquet", "train-00040-of-00041.parquet")
    with pytest.raises(SourceUnavailable, match=r"39 of 41 files .* train-00001-of-00041\.parquet"):
        names(place)
    assert len(find_tables([str(place / "train-00000-of-00041.parquet")], ENDINGS)) == 1


def test_a_folder_of_several_data_sets_is_refused(folder):
    place = folder("20231101.en/a.parquet", "20231101.fr/a.parquet")
    with pytest.raises(BadRequest, match=r"data in 2 folders, .*20231101\.en, .*20231101\.fr: name the one"):
        names(place)
    assert names(place / "20231101.fr") == ["a.parquet"]


@pytest.mark.parametrize("place", ["nowhere", ""])
def test_what_is_no_data_is_refused(folder, place):
    with pytest.raises(BadRequest):
        names(folder("README.md") / place)


def test_a_file_that_changes_is_noticed(folder):
    path = folder("a.jsonl") / "a.jsonl"
    file = TableFile.of(path)
    file.require_unchanged()
    path.write_text("longer than before")
    with pytest.raises(SourceUnavailable, match="changed while it was read"):
        file.require_unchanged()
