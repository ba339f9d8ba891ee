"""What every test may ask for: the shipped model, its tokenizer, and the sample of real dumps."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is imported, so before any test

REPOSITORY = Path(__file__).parent.parent
SAMPLE = Path(os.environ.get("WIKI_ASSETS_TEST_DATA") or REPOSITORY / "../shared/data").resolve()

settings.register_profile("same", deadline=None, derandomize=True)  # a change is judged by the same examples everywhere
settings.register_profile("random", deadline=None)  # --hypothesis-profile=random looks for others
settings.load_profile("same")


def pytest_addoption(parser: pytest.Parser) -> None:
    """How hard and with which dice the fault suite tries."""
    parser.addoption("--chaos-seed", type=int, default=1, help="where the random faults come from")
    parser.addoption("--chaos-tier", choices=["pr", "nightly"], default="pr", help="few faults, or all of them")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Those that start Ray come last; with several workers first, for they are one worker's longest job."""
    several = hasattr(config, "workerinput")
    items.sort(key=lambda item: (item.get_closest_marker("ray") is None) == several)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With several workers a file goes to one of them, and all files that start Ray to the same one."""
    from xdist.scheduler import LoadFileScheduling

    class RayTogether(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "ray" if "mark.ray" in (REPOSITORY / file).read_text("utf-8") else file

    return RayTogether(config, log)


@pytest.fixture(scope="session", autouse=True)
def own_environment():
    """Settings of the person who runs the tests are not the tests' settings."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WIKI_ASSETS_")]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def model():
    """The embedding model that is shipped."""
    from wiki_assets.resources.models import DEFAULT_MODEL, find_model

    return find_model(DEFAULT_MODEL)


@pytest.fixture(scope="session")
def tokenizer(model):
    """The shipped model's own tokenizer."""
    from wiki_assets.stages.word_pieces import WordPieceTokenizer

    return WordPieceTokenizer(model.tokenizer_file, max_pieces=model.max_pieces)


@pytest.fixture(scope="session")
def encoding(tmp_path_factory):
    """The token encoding that is shipped."""
    from wiki_assets.resources.models import load_encoding

    return load_encoding("cl100k_base", tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="session")
def tinywiki(tmp_path_factory):
    """Settings of a root where the tiny wiki is published; who wants to change it takes a copy."""
    from wiki_assets_tests.tinywiki.published import publish_tinywiki

    return publish_tinywiki(tmp_path_factory.mktemp("tinywiki") / "data")


@pytest.fixture(scope="session")
def sample_data():
    """The folder of the sample of real dumps; a test that asks for it is skipped where there is none."""
    if not (SAMPLE / "dumps").is_dir():
        pytest.skip(f"no sample of real dumps in {SAMPLE}: set WIKI_ASSETS_TEST_DATA")
    return SAMPLE


@pytest.fixture(scope="session")
def ray_cluster():
    """One Ray for all tests of this session; joining it costs seconds."""
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    yield
    ray.shutdown()
