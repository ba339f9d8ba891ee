"""What docs/serving.md says is so, and its LangChain example runs."""

import re
import warnings

import pytest
import yaml

from wiki_assets.serving.app import create_app
from wiki_assets.serving.limits import Limits
from wiki_assets.serving.ray_app import Scale
from wiki_assets.settings import Settings
from wiki_assets_tests.conftest import REPOSITORY
from wiki_assets_tests.serving.conftest import Shelf
from wiki_assets_tests.serving.service import Service

TEXT = (REPOSITORY / "docs" / "serving.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def test_every_operation_is_in_the_table() -> None:
    schema = create_app(lambda: Shelf(), Limits()).openapi()  # type: ignore[arg-type,return-value]
    named = set(re.findall(r"`(GET|POST) (/[a-z]*(?:/\{[a-z_]+\})?)", TEXT))
    offered = {(method.upper(), path) for path, methods in schema["paths"].items() for method in methods}
    assert named == offered | {("POST", "/mcp")}


def test_the_bounds_are_those_in_force() -> None:
    limits = Limits()
    for text in (
        f"{limits.rate:g} a second, {limits.burst} at once",
        f"question, each text | {limits.question_bytes >> 10} KiB",
        f"passages `k` | {limits.passages:,}",
        f"body | {limits.body_bytes >> 10} KiB, within {limits.body_s:g} s",
        f"{limits.url_bytes >> 10} KiB; {limits.head_bytes >> 10} KiB, within {limits.head_s:g} s",
        f"searches that wait | {limits.waiting}",
        f"an answer | {limits.request_s:g} s",
        f"connections | {limits.connections:,}",
        f"up to {limits.texts} texts",
    ):
        assert text in TEXT


def test_the_arguments_of_a_rayservice_are_those_that_are_taken() -> None:
    (application,) = yaml.safe_load(blocks("yaml")[0])["applications"]
    module, _, name = application["import_path"].partition(":")
    assert module == Scale.__module__
    assert name == "app"
    assert Scale(**application["args"]).max_replicas == 8
    assert set(application["args"]) == set(Scale.model_fields)


@pytest.mark.chroma
def test_langchain_reads_the_collection_as_it_is(
    served: Service, published: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("langchain_chroma")
    code = blocks("python")[0].replace("http://127.0.0.1:8080", served.url)
    monkeypatch.chdir(published.root + "/..")  # the example's root is data/
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        exec(compile(code, "docs/serving.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("Lake Baikal https://tiny.wikipedia.org/wiki/Lake_Baikal Lake Baikal lies in")
