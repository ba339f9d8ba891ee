"""Find the tables in somebody's folder, and refuse a part of a data set for the whole.

Source: how the Hugging Face Hub names the files of a data set (`train-00000-of-00041.parquet`), and what
`Dataset.save_to_disk` leaves (`state.json`, which lists its Arrow files).
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from upath import UPath

from wiki_assets.errors import BadRequest, SourceUnavailable
from wiki_assets.files import local_path, read_json, sha256_of

_OF = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})(\..*)")
_NO_DATA = ("dataset_info.json", "state.json", "dataset_dict.json", "dataset_infos.json")


@dataclass(frozen=True)
class TableFile:
    """A file of rows, and which bytes it has."""

    path: UPath | Path
    sha256: str
    stamp: tuple[int, int]  # size, time of the last change

    @classmethod
    def of(cls, path: UPath | Path) -> "TableFile":
        """Read a file through, once.

        Raises:
            SourceUnavailable: if it changes meanwhile.
        """
        before = _stamp(path)
        found = cls(path, sha256_of(path), before)
        found.require_unchanged()
        return found

    def require_unchanged(self) -> None:
        """Raise `SourceUnavailable` if the file has changed since it was read through."""
        if _stamp(self.path) != self.stamp:
            raise SourceUnavailable(f"{self.path}: changed while it was read: run again when it is finished")


def find_tables(places: Sequence[str], endings: Sequence[str]) -> list[UPath | Path]:
    """The files that some paths name: each a file, or a folder with the files of one data set.

    Args:
        places: paths.
        endings: of names that are tables; a folder's other files are left alone.

    Returns:
        Files in the order of their names, folder after folder, none twice.

    Raises:
        BadRequest: if there is none, or a folder holds several data sets.
        SourceUnavailable: if files of a data set are missing.
    """
    found: dict[str, UPath | Path] = {}
    for place in places:
        path = UPath(place).expanduser() if "://" in place else Path(place).expanduser()
        if path.is_dir():
            files = _of_folder(path, endings)
        elif path.is_file():
            files = [path]
        else:
            raise BadRequest(f"{place}: no such file or folder; expected Parquet, Arrow or JSON-lines files")
        found |= {str(file): file for file in files}
    return list(found.values())


def _of_folder(folder: UPath | Path, endings: Sequence[str]) -> list[UPath | Path]:
    names = [path for path in folder.rglob("*") if path.name.endswith(tuple(endings)) and path.name not in _NO_DATA]
    files = sorted((path for path in names if path.is_file() and not path.name.startswith(".")), key=str)
    if not files:
        raise BadRequest(f"{folder}: no file in it ends {', '.join(endings)}; expected a data set's folder")
    homes = list(dict.fromkeys(str(file.parent) for file in files))
    if len(homes) > 1:
        shown = ", ".join(homes[:6]) + (" …" if len(homes) > 6 else "")
        raise BadRequest(f"{folder}: data in {len(homes)} folders, {shown}: name the one you mean, or each")
    _require_whole(files, files[0].parent)
    return files


def _require_whole(files: Sequence[UPath | Path], home: UPath | Path) -> None:
    """Refuse a data set of which files are missing, as far as their names or its own list tell."""
    here = {file.name for file in files}
    expected: set[str] = set()
    sets: dict[tuple[str, str, str], set[int]] = defaultdict(set)
    for name in here:
        if match := _OF.fullmatch(name):
            sets[match[1], match[3], match[4]].add(int(match[2]))
    for (stem, total, ending), _ in sets.items():
        expected |= {f"{stem}-{number:05d}-of-{total}{ending}" for number in range(int(total))}
    state = read_json(home / "state.json")
    if isinstance(state, dict):
        expected |= {str(each.get("filename")) for each in state.get("_data_files") or []}
    if missing := sorted(expected - here):
        raise SourceUnavailable(
            f"{home}: {len(missing)} of {len(expected)} files of the data set are missing, the first {missing[0]}: "
            "fetch the rest, or name the files that you want"
        )


def _stamp(path: UPath | Path) -> tuple[int, int]:
    found = path.stat() if isinstance(path, UPath) else local_path(path).stat()
    return int(found.st_size), int(getattr(found, "st_mtime_ns", 0) or 0)
