"""The same pipeline against a Chroma server: the collection lives there, and a plain client finds it useful."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from wiki_assets.errors import SourceUnavailable
from wiki_assets.resources.chroma import open_store
from wiki_assets.search import ask
from wiki_assets_tests.defs.conftest import Deployment
from wiki_assets_tests.processes import free_port, running, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.chroma]


def test_a_server_holds_the_collection_and_answers(
    deploy: Callable[..., Deployment], ray_cluster: None, tmp_path: Path
) -> None:
    import chromadb

    port = free_port()
    chroma = Path(sys.executable).with_name("chroma")
    command = [str(chroma), "run", "--path", str(tmp_path / "server"), "--host", "127.0.0.1", "--port", str(port)]
    with running(command, env={}, log=tmp_path / "chroma.log") as process:
        url = f"http://127.0.0.1:{port}"

        def up() -> bool:
            assert process.poll() is None, (tmp_path / "chroma.log").read_text()
            try:
                with open_store(tmp_path, url):
                    return True
            except SourceUnavailable:
                return False

        wait_until(up, within_s=60, every_s=0.3, what="the Chroma server")
        wiki = deploy(shards=2)
        wiki = replace(wiki, settings=replace(wiki.settings, chroma=url))
        outcome = wiki.materialize()
        assert outcome.failures == []
        assert ask("Which animals spit?", wiki.settings, k=3)
        client = chromadb.HttpClient("127.0.0.1", port)
        collection = client.get_collection("tinywiki-20250105-1", embedding_function=None)
        row = collection.get(limit=1, include=["documents", "metadatas"])
        assert collection.count() == (wiki.store.pointer("tinywiki") or {})["passages"]
        assert {"page_id", "title", "url", "revision", "snapshot", "passage"} <= set((row["metadatas"] or [{}])[0])
        assert "CC BY-SA" in str((collection.metadata or {})["licence"])
        shutil.rmtree(tmp_path / "root" / "tinywiki" / "index" / "20250105-1" / "shards")
        assert wiki.materialize().made == {"chroma_collection": 2}, "rows that are there are found, compared and kept"
