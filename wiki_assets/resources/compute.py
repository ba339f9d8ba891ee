"""Which Ray this deployment runs on: its own on this machine, or a cluster by address.

The work of starting, joining and leaving Ray is dagster-ray's; this only chooses.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dagster_ray import Lifecycle, LocalRay, RayResource

from wiki_assets.settings import Settings

_OBJECT_STORE_BYTES = 200 << 20  # workers pass keys and counts, not data


def ray_resource(settings: Settings) -> RayResource:
    """The Ray of this deployment, for a run that starts and leaves it by itself."""
    return LocalRay(ray_init_options=_init_options(settings))


def joined_ray() -> RayResource:
    """The Ray that this process has joined already, for several runs one after the other."""
    return LocalRay(lifecycle=Lifecycle(create=False, wait=False, connect=False, cleanup="never"))


@contextmanager
def ray_session(settings: Settings) -> Iterator[None]:
    """Start or join Ray once for everything inside."""
    import ray

    address = None if settings.ray == "local" else settings.ray
    ray.init(address=address, **_init_options(settings))
    try:
        yield
    finally:
        ray.shutdown()


def _init_options(settings: Settings) -> dict[str, Any]:
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray's default by now; said aloud, it does not warn
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a task without GPUs still sees their driver
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning"}
    if settings.ray != "local" or os.environ.get("RAY_ADDRESS"):
        return common
    return {
        **common,
        "num_cpus": settings.cpus or os.cpu_count() or 1,
        "include_dashboard": False,
        "object_store_memory": _OBJECT_STORE_BYTES,
    }
