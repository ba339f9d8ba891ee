"""A Ray of four nodes on this machine: a head, two CPU nodes, and a node with a logical GPU.

A process of its own, since a process has one Ray, and its driver another, since the nodes are no children of a driver:

    python -m wiki_assets_tests.k8s.ray_nodes keep FOLDER     the nodes; says where they are, kills one when told
    python -m wiki_assets_tests.k8s.ray_nodes drive FOLDER    the scenarios, each a line of JSON

FOLDER holds what they and the tasks leave to tell each other.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wiki_assets.files import whole_file
from wiki_assets.resources.compute import CPU_SLOTS, GPU_SLOTS, GROUP
from wiki_assets_tests.processes import free_port, wait_until

WITHIN_S = 90.0
STORE_BYTES = 80 << 20
CPU_NODE = {"num_cpus": 1, "labels": {GROUP: "cpu"}}
GPU_NODE = {"num_cpus": 2, "num_gpus": 1, "labels": {GROUP: "gpu"}}  # a CPU too many, for CPU tasks to be tempted by


def where_am_i(meeting: str, number: int, together: int) -> str:
    """The group of the node that this runs on; returns when so many have come to the meeting."""
    import ray

    folder = Path(meeting)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / str(number)).touch()
    wait_until(lambda: len(list(folder.iterdir())) >= together, within_s=WITHIN_S, what="the meeting")
    return str(ray.get_runtime_context().get_node_labels()[GROUP])


def wait_for(gate: str, number: int) -> str:
    """Note that this has begun, wait until it may end, and say where it ran."""
    import ray

    folder = Path(gate)
    group = str(ray.get_runtime_context().get_node_labels()[GROUP])
    (folder / f"began-{number}-{os.getpid()}").touch()
    wait_until(lambda: (folder / "go").exists(), within_s=WITHIN_S, what="the gate")
    return group


@contextmanager
def cluster() -> Iterator[tuple[Any, int]]:
    """The four nodes, and the port of Ray's client server."""
    from ray.cluster_utils import Cluster

    port = free_port()
    head = {
        "num_cpus": 0,
        "include_dashboard": False,
        "object_store_memory": STORE_BYTES,
        "ray_client_server_port": port,
        "labels": {GROUP: "head", CPU_SLOTS: "4", GPU_SLOTS: "1"},
    }
    nodes = Cluster(initialize_head=True, head_node_args=head)
    try:
        for node in (CPU_NODE, CPU_NODE, GPU_NODE):
            nodes.add_node(wait=False, object_store_memory=STORE_BYTES, **node)
        nodes.wait_for_nodes()
        yield nodes, port
    finally:
        nodes.shutdown()


def unmarked(folder: Path) -> list[str]:
    """Three CPU tasks at once without our labels: the CPU nodes have room for two."""
    import ray

    task = ray.remote(where_am_i).options(num_cpus=1)
    return sorted(ray.get([task.remote(str(folder), n, 3) for n in range(3)], timeout=WITHIN_S))


def marked(folder: Path) -> dict[str, list[str]]:
    """The same by our fan-out: CPU tasks, then tasks with a GPU."""
    from wiki_assets.defs.assets import gpus_per_task
    from wiki_assets.defs.fan_out import fan_out

    cpu = [(n, (str(folder / "cpu"), n, 2)) for n in range(4)]
    gpu = [(n, (str(folder / "gpu"), n, 1)) for n in range(2)]
    return {
        "cpu": [str(result) for _, result in fan_out(where_am_i, cpu)],
        "gpu": [str(result) for _, result in fan_out(where_am_i, gpu, num_gpus=gpus_per_task())],
    }


def node_killed(folder: Path) -> dict[str, Any]:
    """A CPU node dies with a task on it."""
    import ray

    from wiki_assets.defs.fan_out import fan_out

    folder.mkdir()

    def disturb() -> None:
        wait_until(lambda: len(list(folder.glob("began-*"))) >= 2, within_s=WITHIN_S, what="two tasks at work")
        (folder.parent / "kill").touch()
        wait_until(
            lambda: any(not node["Alive"] for node in ray.nodes()), within_s=WITHIN_S, every_s=0.2, what="a dead node"
        )
        (folder / "go").touch()

    thread = threading.Thread(target=disturb)
    thread.start()
    seen = [str(result) for _, result in fan_out(wait_for, [(n, (str(folder), n)) for n in range(3)])]
    thread.join()
    return {"groups": seen, "starts": len(list(folder.glob("began-*")))}


def by_rayjob(folder: Path, port: int) -> dict[str, Any]:
    """A run as Dagster makes it on Kubernetes: a RayJob of its own, joined through Ray Client."""
    import dagster as dg
    import ray
    from dagster_ray import RayResource
    from dagster_ray.kuberay.resources.rayjob import KubeRayInteractiveJob, KubeRayJobClientResource

    from wiki_assets.defs.fan_out import fan_out
    from wiki_assets.resources.compute import RayJobPerRun
    from wiki_assets_tests.k8s.fake_api import fake_kubernetes
    from wiki_assets_tests.k8s.manifests import parse
    from wiki_assets_tests.k8s.test_rayjob import CLUSTER, READY, WAITING

    folder.mkdir()
    KubeRayInteractiveJob.resolve_hostname = lambda *_: "127.0.0.1"  # type: ignore[method-assign]  # no DNS of a cluster
    groups: list[str] = []

    @dg.asset
    def cells(ray: RayResource) -> None:
        payloads = [(n, (str(folder / "cells"), n, 1)) for n in range(3)]
        groups.extend(str(result) for _, result in fan_out(where_am_i, payloads))

    with fake_kubernetes() as api:
        api.add(*parse(os.environ["RENDERED"]), CLUSTER)
        api.grant(parse(os.environ["RENDERED"]))
        api.script["rayclusters.ray.io", "wiki-assets", "ray-abc"] = [READY]
        api.on_create["rayjobs.ray.io"] = [WAITING]
        resource = RayJobPerRun(
            template_namespace="wiki-assets",
            template_name="ray",
            client=KubeRayJobClientResource(kube_config=str(api.kubeconfig("wiki-run", folder))),
            redis_port=port,
            poll_interval=0.05,
            ray_init_options={"log_to_driver": False, "logging_level": "warning"},
        )
        done = dg.materialize([cells], resources={"ray": resource}, raise_on_error=False)
        (patch,) = [body for method, _, body in api.bodies if method == "PATCH"]
    said = [str(event.event_specific_data)[:2000] for event in done.all_events if event.is_failure]
    return {
        "success": done.success,
        "said": said,
        "groups": sorted(groups),
        "job_id": patch[0]["value"],
        "connected_after": ray.is_initialized(),
    }


def keep(folder: Path) -> None:
    """Have the nodes until this is told to end."""
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    with cluster() as (nodes, port):
        with whole_file(folder / "address.json") as out:
            out.write(json.dumps({"address": nodes.address, "port": port}).encode())
        while not told.wait(0.1):
            if (folder / "kill").exists():
                victim = next(n for n in nodes.worker_nodes if n._ray_params.labels == CPU_NODE["labels"])
                nodes.remove_node(victim, allow_graceful=False)
                (folder / "kill").unlink()


def drive(folder: Path) -> None:
    """Be a run's driver: of a shared cluster by its address, then of a RayJob of its own."""
    from wiki_assets.resources.compute import ray_session
    from wiki_assets.settings import Settings

    def tell(name: str, value: Any) -> None:
        print(json.dumps({name: value}), flush=True)

    found = json.loads((folder / "address.json").read_text())
    with ray_session(Settings.from_env({"WIKI_ASSETS_RAY": f"ray://127.0.0.1:{found['port']}"})):
        tell("unmarked", unmarked(folder / "unmarked"))
        tell("marked", marked(folder / "marked"))
        tell("node_killed", node_killed(folder / "killed"))
    tell("by_rayjob", by_rayjob(folder / "rayjob", found["port"]))


if __name__ == "__main__":
    {"keep": keep, "drive": drive}[sys.argv[1]](Path(sys.argv[2]))
