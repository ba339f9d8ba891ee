"""How a task begins in a Ray worker: it says that it has begun, keeps to its threads, and does what it was given.

A worker imports this module first, so it imports neither Dagster nor what drives Ray.
"""

import gc
import logging
import os
import time
from collections.abc import Callable
from typing import Any

SIGNS = "wiki_assets"  # namespace in the head's key store

logger = logging.getLogger(__name__)


def run_task(task: Callable[..., Any], threads: int, arguments: tuple[Any, ...], sign: str) -> Any:
    """Run `task(*arguments)`, after leaving a sign below `sign` in the head's key store."""
    take_up(sign)
    pin_threads(threads)
    gc.freeze()  # the collector need not walk the tables that earlier tasks left; a tenth of the tokens stage
    return task(*arguments)


def take_up(sign: str) -> None:
    """Say who works on this now, as `PROCESS.NODE.TIME`: nobody else tells a driver without Ray's dashboard."""
    import ray
    from ray.experimental.internal_kv import _internal_kv_put

    try:
        node = ray.get_runtime_context().get_node_id()
        _internal_kv_put(f"{sign}{os.getpid()}.{node}.{time.time_ns()}", b"1", namespace=SIGNS)
    except Exception as error:  # the task can be done all the same; it only seems to wait for longer
        logger.warning("no sign left: %s", error)


def pin_threads(count: int) -> None:
    """Keep this process's libraries to so many threads; call before they are imported."""
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[variable] = str(count)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
