"""One searcher over the published tiny wiki, for every test that only asks."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from wiki_assets.resources.store import Store
from wiki_assets.search import Searcher
from wiki_assets.search.build import OpenBuild
from wiki_assets.settings import Settings


@pytest.fixture(scope="session")
def searcher(tinywiki: Settings) -> Iterator[Searcher]:
    searcher = Searcher(tinywiki)
    yield searcher
    searcher.close()


@pytest.fixture(scope="session")
def build(tinywiki: Settings) -> Iterator[OpenBuild]:
    build = OpenBuild(Store(tinywiki.root).published("tinywiki"), tinywiki)
    yield build
    build.close()


@pytest.fixture
def copy(tinywiki: Settings, tmp_path: Path) -> Callable[[], Settings]:
    """Make a copy of the published root that a test may change."""

    def make() -> Settings:
        shutil.copytree(tinywiki.root, tmp_path / "copy")
        return replace(tinywiki, root=str(tmp_path / "copy"))

    return make
