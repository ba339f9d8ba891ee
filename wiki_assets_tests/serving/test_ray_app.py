"""The service on Ray Serve: the same answers from replicas, questions in batches, bounds and a clean end."""

import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from pydantic import ValidationError

from wiki_assets.errors import SchemaMismatch
from wiki_assets.resources.models import EmbeddingModel
from wiki_assets.serving.ray_app import ModelReplica, RemoteEncoder, Scale
from wiki_assets.settings import Settings
from wiki_assets_tests.serving.service import serving


class Counting:
    """A model that counts; remembers the shapes it was given."""

    dim, engine, batch_pieces = 1, "counting", 100

    def __init__(self) -> None:
        self.shapes: list[tuple[int, int]] = []

    def encode(self, input_ids: Any, attention_mask: Any) -> Any:
        self.shapes.append(input_ids.shape)
        return attention_mask.sum(1, keepdims=True).astype(np.float32)


def some_model(name: str) -> EmbeddingModel:
    return EmbeddingModel(name=name, folder=name, sha256=name, dim=1, max_pieces=8)


def test_requests_for_one_model_are_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = {name: Counting() for name in "ab"}
    replica = ModelReplica(Settings(), 1)
    monkeypatch.setattr(replica, "load", lambda model: engines[model.name])
    asked = [
        (some_model(name), np.ones((1, n), np.int64), np.ones((1, n), np.int64)) for n, name in enumerate("abaa", 1)
    ]
    assert [vectors.tolist() for vectors in replica.encode_all(asked)] == [[[1]], [[2]], [[3]], [[4]]]
    assert (engines["a"].shapes, engines["b"].shapes) == ([(3, 4)], [(1, 2)])


def test_a_model_replica_with_another_model_is_refused(model: EmbeddingModel) -> None:
    import msgspec

    with pytest.raises(SchemaMismatch, match="the same image"):
        ModelReplica(Settings(), 1).about(msgspec.structs.replace(model, sha256="0" * 64))


@pytest.mark.parametrize("args", [{"min_replicas": 0}, {"replicas": 3}, {"max_models": "many"}, {"batch_rows": 0}])
def test_arguments_that_make_no_sense_are_refused(args: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Scale(**args)


def test_a_question_waits_for_the_model_no_longer_than_it_must(model: EmbeddingModel) -> None:
    class Reply:
        def __init__(self, value: Any) -> None:
            self.value = value

        def result(self, timeout_s: float) -> Any:
            assert 0 < timeout_s <= 300
            return self.value

    class Method:
        def __init__(self, value: Any) -> None:
            self.value = value

        def remote(self, *_: Any) -> Reply:
            return Reply(self.value)

    class Handle:
        about = Method((384, "openvino-f32", 1024))
        encode = Method(np.zeros((1, 384)))

    encoder = RemoteEncoder(model, Handle())
    assert (encoder.dim, encoder.engine, encoder.batch_pieces) == (384, "openvino-f32", 1024)
    assert encoder.encode(np.ones((1, 3), np.int64), np.ones((1, 3), np.int64)).dtype == np.float32


@pytest.mark.ray
@pytest.mark.chroma
def test_the_service_runs_on_ray_serve(published: Settings, tmp_path: Path) -> None:
    env = {"WIKI_ASSETS_ROOT": published.root, "WIKI_ASSETS_RATE": "1", "WIKI_ASSETS_CPUS": "3"}
    options = ("--ray", "--max-replicas", "1")
    with serving(env, tmp_path / "log", *options, within_s=240) as service, httpx.Client(timeout=60) as http:
        url, process, log = service.url, service.process, service.log

        def ask(i: int) -> tuple[int, str]:
            answer = http.get(
                f"{url}/search", params={"q": f"Which lake holds a fifth of the fresh water? {i}", "k": 1}
            )
            return answer.status_code, answer.json()["hits"][0]["title"]

        with ThreadPoolExecutor(8) as clients:
            assert Counter(clients.map(ask, range(40))) == {(200, "Lake Baikal"): 40}
        assert http.post(f"{url}/search", content=b"x" * (1 << 20)).status_code == 413
        assert http.get(f"{url}/search", params={"q": "x", "k": 0}).status_code == 422
        statuses = Counter(http.get(f"{url}/search").status_code for _ in range(80))
        assert statuses[429] > 0, "the client is known behind Serve's proxy"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()
