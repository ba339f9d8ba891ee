"""The same service on Ray Serve: replicas that come and go with the requests, and a model that they share.

    Search   the FastAPI application; a replica is a process that searches, on CPUs
    Model    the embedding model, on CPUs or GPUs; questions of all Search replicas are its batches

`wiki_assets.serving.ray_app:app` is an application builder, for `serve run` and for the `import_path` of a RayService:
its `args` are the fields of `Scale`. Settings are the `WIKI_ASSETS_*` variables where it is built.
"""

import asyncio
import logging
import signal
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, Field

from wiki_assets.errors import SchemaMismatch
from wiki_assets.resources.sharing import Ids, Vectors, encode_together
from wiki_assets.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application  # noqa: TID251  # for its name only

    from wiki_assets.resources.models import EmbeddingModel
    from wiki_assets.stages.embeddings import Encoder

logger = logging.getLogger(__name__)
_MODEL_S = 20.0  # for a question to come back as a vector
_LOAD_S = 300.0  # for a model to be loaded; on a new machine it is converted first


class Scale(BaseModel, extra="forbid"):
    """How far the service may grow, and what a replica takes."""

    min_replicas: int = Field(default=1, ge=1, description="Search replicas that are always there")
    max_replicas: int = Field(default=4, ge=1, description="Search replicas at most")
    target_ongoing_requests: float = Field(default=8, gt=0, description="requests that a replica should have")
    search_cpus: float = Field(default=1, gt=0, description="CPUs of a Search replica")
    model_cpus: float = Field(default=1, gt=0, description="CPUs of a Model replica")
    model_gpus: float = Field(default=0, ge=0, description="GPUs of a Model replica")
    max_models: int = Field(default=2, ge=1, description="Model replicas at most")
    batch_rows: int = Field(default=64, ge=1, description="questions that the model takes at once")
    batch_wait_s: float = Field(default=0.002, ge=0, description="how long the first of them waits for others")


class SearchReplica:
    """One process that searches. Serve asks it for its application when it has been made."""

    def __init__(self, settings: Settings, scale: Scale, model: Any) -> None:
        self._settings = settings
        self._threads = max(2, round(2 * scale.search_cpus))  # one waits for the model while another searches
        self._model = model

    def __serve_build_asgi_app__(self) -> "FastAPI":
        from dataclasses import replace

        from wiki_assets.search import Searcher
        from wiki_assets.serving.app import create_app
        from wiki_assets.serving.process import service_limits

        settings = self._settings
        return create_app(
            lambda: Searcher(settings, encoder_of=lambda model: RemoteEncoder(model, self._model)),
            replace(service_limits(settings), workers=self._threads),
            trusted_proxies=settings.trusted_proxies,
            local=False,
        )


class ModelReplica:
    """One process that has the embedding models in use."""

    def __init__(self, settings: Settings, threads: int) -> None:
        self._settings = settings
        self._threads = threads

    def load(self, model: "EmbeddingModel") -> "Encoder":
        """The engine of a model; kept, once it is loaded."""
        from wiki_assets.resources.engines import load_engine

        return load_engine(model, self._settings.engine, self._threads, self._settings.cache_folder)

    def about(self, model: "EmbeddingModel") -> tuple[int, str, int]:
        """The width of a model's vectors, its engine, and how many word pieces suit a batch.

        Raises:
            SchemaMismatch: if what lies here is another model.
        """
        from wiki_assets.resources.models import find_model

        found = find_model(model.folder).sha256
        if found != model.sha256:
            raise SchemaMismatch(
                f"model {model.name!r} is {found[:12]}… where it runs and {model.sha256[:12]}… where it is asked: "
                "give all pods the same image"
            )
        encoder = self.load(model)
        return encoder.dim, encoder.engine, encoder.batch_pieces

    def encode_all(self, asked: "Sequence[tuple[EmbeddingModel, Ids, Ids]]") -> list[Vectors]:
        """Vectors of several requests, in their order; those of one model by one pass."""
        found: dict[int, Vectors] = {}
        for model in {model for model, _, _ in asked}:
            mine = [i for i, (other, _, _) in enumerate(asked) if other == model]
            vectors = encode_together(self.load(model), [asked[i][1:] for i in mine])
            found |= dict(zip(mine, vectors, strict=True))
        return [found[i] for i in range(len(asked))]


class RemoteEncoder:
    """A model of this service's Model replicas, for the threads of a Search replica."""

    def __init__(self, model: "EmbeddingModel", handle: Any) -> None:
        self._model = model
        self._handle = handle
        self.dim, self.engine, self.batch_pieces = handle.about.remote(model).result(timeout_s=_LOAD_S)

    def encode(self, input_ids: Ids, attention_mask: Ids) -> Vectors:
        """Vectors of one padded batch: int64 [n, length] ids and mask to float32 [n, dim]."""
        asked = self._handle.encode.remote((self._model, input_ids, attention_mask))
        return np.asarray(asked.result(timeout_s=_MODEL_S), np.float32)


def app(args: Scale) -> "Application":
    """The application, with the settings of the environment it is built in."""
    return build(Settings.from_env(), args)


def build(settings: Settings, scale: Scale) -> "Application":
    """Both deployments, bound together."""
    from ray import serve  # noqa: TID251

    ongoing = max(1, round(2 * scale.target_ongoing_requests))
    wait_s, rows = scale.batch_wait_s, scale.batch_rows
    threads = max(1, round(scale.model_cpus))

    class Model(ModelReplica):
        @serve.batch(max_batch_size=rows, batch_wait_timeout_s=wait_s)
        async def encode(self, asked: "list[tuple[EmbeddingModel, Ids, Ids]]") -> list[Vectors]:
            return await asyncio.to_thread(self.encode_all, asked)

    model: Any = serve.deployment(
        Model,
        name="Model",
        max_ongoing_requests=4 * rows,
        autoscaling_config={"min_replicas": 1, "max_replicas": scale.max_models, "target_ongoing_requests": 2 * rows},
        ray_actor_options={"num_cpus": scale.model_cpus, "num_gpus": scale.model_gpus},
    )
    search: Any = serve.deployment(
        serve.ingress()(SearchReplica),
        name="Search",
        max_ongoing_requests=ongoing,
        max_queued_requests=512,  # beyond them Serve answers 503
        autoscaling_config={
            "min_replicas": scale.min_replicas,
            "max_replicas": max(scale.min_replicas, scale.max_replicas),
            "target_ongoing_requests": scale.target_ongoing_requests,
        },
        ray_actor_options={"num_cpus": scale.search_cpus},
        health_check_period_s=10,
        graceful_shutdown_timeout_s=30,
    )
    return search.bind(settings, scale, model.bind(settings, threads))


def run_on_ray(settings: Settings, *, host: str, port: int, scale: Scale) -> None:
    """Start or join Ray, serve there, and wait until told to end."""
    from wiki_assets.resources.compute import ray_session  # isort: skip  # before Ray is imported

    from ray import serve  # noqa: TID251

    with ray_session(settings):
        serve.start(http_options={"host": host, "port": port})
        try:
            serve.run(build(settings, scale), name="wiki_assets")
            logger.info("http://%s:%d on Ray Serve  (Ctrl-C ends it)", host, port)
            _until_told()
        finally:
            serve.delete("wiki_assets")


def _until_told() -> None:
    told = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: told.set())
    told.wait()
