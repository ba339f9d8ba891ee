"""fan_out: run a task in Ray for each of many things, in order, a window at a time; no wait is without an end.

What may go wrong has a limit each: a task's time, from when a worker takes it up; the time until one does; how often
it is tried after its worker died (`MAX_RETRIES`, and `RAY_task_oom_retries` where memory was short); and the silence
of Ray's head, after which the driver would vanish without a word.
"""

import logging
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from wiki_assets.defs.worker import SIGNS, run_task
from wiki_assets.errors import ComputeLost, Overdue, WikiAssetsError
from wiki_assets.resources.compute import capacity, placement
from wiki_assets.resources.liveness import Watch, leave_ray, watch_ray

TASK_DEADLINE_S = 6 * 3600.0
START_DEADLINE_S = 6 * 3600.0  # until a cluster that others use too, or that must grow first, has a worker for it
MAX_RETRIES = 2  # of a task whose worker or node died; what a task raises is a result, and is not tried again
_POLL_S = 2.0
_SILENCE_S = 30.0  # without a result, before a sign of life
_END_S = 15.0  # for a worker to be gone
_GET_S = 60.0  # for a result that is ready: counts and keys, which the driver holds

logger = logging.getLogger(__name__)


@dataclass
class _Running:
    """A task under way, as its driver sees it."""

    name: Any
    sign: str
    deadline_s: float
    since: float  # of its submission; then of its newest attempt
    attempts: list[str] = field(default_factory=list)  # what its workers wrote when they took it up


def fan_out(
    task: Callable[..., Any],
    payloads: Sequence[tuple[Any, Sequence[Any]]],
    *,
    num_cpus: float = 1,
    num_gpus: float = 0,
    deadline_s: float | Callable[..., float] = TASK_DEADLINE_S,
    start_s: float = START_DEADLINE_S,
    max_retries: int = MAX_RETRIES,
) -> Iterator[tuple[Any, Any]]:
    """Run `task(*arguments)` in Ray for each `(name, arguments)`, in order, a window at a time.

    A lost worker or node costs a retry, by Ray; an error of ours is a result and costs only its shard. Whoever stops
    early leaves no task behind.

    Args:
        task: a module-level function of what a worker can import.
        payloads: what to run it on.
        num_cpus: of one task; its libraries get as many threads.
        num_gpus: of one task.
        deadline_s: a task that one worker has had for longer is cancelled, and its worker ended. A function of the
            task's arguments where they differ.
        start_s: a task that no worker took up for as long is cancelled.
        max_retries: of a task whose worker died.

    Yields:
        `(name, result)` or `(name, exception)`, as they finish.

    Raises:
        ComputeLost: if Ray itself is gone; this process has left it then.
    """
    import ray

    watch = watch_ray()
    prefix = f"{uuid.uuid4().hex}/"
    waiting = iter(enumerate(payloads))
    running: dict[Any, _Running] = {}
    threads = max(1, int(num_cpus))
    try:
        remote = ray.remote(run_task).options(
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            max_retries=max_retries,
            name=task.__name__,
            **watch.during(partial(placement, num_gpus)),
        )
        spoke = looked = counted = time.monotonic()
        window = 0
        while True:
            watch.check()
            if not window or time.monotonic() - counted > _POLL_S:
                counted = time.monotonic()
                window = _window(watch.during(capacity), {"CPU": num_cpus, "GPU": num_gpus})
            while len(running) < window and (item := next(waiting, None)) is not None:
                number, (name, arguments) = item
                sign = f"{prefix}{number}/"
                limit_s = deadline_s(*arguments) if callable(deadline_s) else deadline_s
                reference = watch.during(partial(remote.remote, task, threads, tuple(arguments), sign))
                running[reference] = _Running(name, sign, limit_s, time.monotonic())
            if not running:
                return
            done, _ = watch.during(partial(ray.wait, list(running), num_returns=1, timeout=_POLL_S))
            if done:
                spoke = time.monotonic()
            elif time.monotonic() - spoke > _SILENCE_S:
                spoke = time.monotonic()
                logger.info("%s: %d at work", task.__name__, len(running))
            for reference in done:
                finished = running.pop(reference)
                _forget(watch, finished)
                yield finished.name, _result(watch, reference)
            if time.monotonic() - looked > _POLL_S:
                looked = time.monotonic()
                _look_for_signs(watch, prefix, running.values(), task.__name__)
            for reference, late in list(running.items()):
                if (error := _overdue(late, task.__name__, start_s)) is not None:
                    del running[reference]
                    _end(watch, reference, late)
                    yield late.name, error
    except ComputeLost:
        running.clear()
        leave_ray(watch.here, lost=True)
        raise
    finally:
        for reference, left in running.items():
            _end(watch, reference, left, wait_s=0)


def _window(cluster: Mapping[str, float], task: Mapping[str, float]) -> int:
    """How many tasks to have under way: what the cluster runs at once, and a few more, so that no slot waits for us."""
    slots = min((int(cluster.get(name, 0) // need) for name, need in task.items() if need), default=1)
    return max(1, slots) + max(1, slots // 4)


# --- when a task began


def _look_for_signs(watch: Watch, prefix: str, running: Collection[_Running], what: str) -> None:
    """Start the clock of every task that a worker has taken up since the last look."""
    from ray.experimental.internal_kv import _internal_kv_list

    keys = [key.decode() for key in watch.during(partial(_internal_kv_list, prefix, namespace=SIGNS))]
    for one in running:
        fresh = [key.removeprefix(one.sign) for key in keys if key.startswith(one.sign)]
        fresh = [attempt for attempt in fresh if attempt not in one.attempts]
        if fresh:
            one.since = time.monotonic()
            one.attempts += fresh
            if len(one.attempts) > 1:
                logger.warning("%s %s: its worker was lost; attempt %d", what, one.name, len(one.attempts))


def _forget(watch: Watch, task: _Running) -> None:
    """Take a task's signs out of the head's key store."""
    from ray.experimental.internal_kv import _internal_kv_del

    watch.during(partial(_internal_kv_del, task.sign, del_by_prefix=True, namespace=SIGNS))


# --- how a task ends


def _result(watch: Watch, reference: Any) -> Any:
    """What a finished task returned, or the error that it ended with.

    Raises:
        ComputeLost: if it ended because this machine's part of Ray is gone.
    """
    import ray
    import ray.exceptions

    try:
        return watch.during(partial(ray.get, reference, timeout=_GET_S))
    except ComputeLost:
        raise
    except ray.exceptions.LocalRayletDiedError as error:
        raise ComputeLost(
            "this machine's part of Ray (its raylet) has died: what was finished is kept; run again"
        ) from error
    except (ray.exceptions.RayError, WikiAssetsError) as error:
        return error


def _overdue(task: _Running, what: str, start_s: float) -> Overdue | None:
    """The error of a task that took too long; None if it has not."""
    took_s = time.monotonic() - task.since
    if task.attempts and took_s > task.deadline_s:
        process, node, _ = task.attempts[-1].split(".")
        return Overdue(
            f"{what} {task.name}: no result in {took_s:,.0f} s, {task.deadline_s:,.0f} s allowed: cancelled, and its "
            f"worker ended (process {process} on node {node[:8]}). Look at the worker's log; on a slow machine set "
            "WIKI_ASSETS_TASK_SECONDS higher; then run again"
        )
    if not task.attempts and took_s > start_s:
        return Overdue(
            f"{what} {task.name}: no worker took it up in {took_s:,.0f} s, {start_s:,.0f} s allowed: cancelled. Is the "
            "cluster large enough for one task, and able to grow? Then run again"
        )
    return None


def _end(watch: Watch, reference: Any, task: _Running, wait_s: float = _END_S) -> None:
    """Cancel a task, and see to it that its worker is gone; on this machine by force, if it must be."""
    import ray
    import ray.exceptions

    try:
        watch.during(partial(ray.cancel, reference, force=True), within_s=_END_S)
        done, _ = watch.during(partial(ray.wait, [reference], timeout=wait_s)) if wait_s else ([reference], [])
        if not done and task.attempts and watch.here is not None:
            watch.here.end(int(task.attempts[-1].split(".")[0]))
        _forget(watch, task)
    except (WikiAssetsError, ray.exceptions.RayError) as error:
        logger.warning("%s could not be cancelled: %s", task.name, error)
