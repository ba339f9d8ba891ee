"""L6: tasks run where they belong: on four real Ray nodes of this machine, and by the autoscaler that Ray ships."""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from math import ceil
from typing import Any

import pytest
import yaml

from wiki_assets.resources.compute import GROUP
from wiki_assets_tests.conftest import REPOSITORY
from wiki_assets_tests.k8s.manifests import Rendered, cluster_spec
from wiki_assets_tests.processes import running, wait_until

MODULE = "wiki_assets_tests.k8s.ray_nodes"


@pytest.fixture(scope="module")
def seen(rendered: dict[str, Rendered], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the driver saw in each scenario; with token authentication, as on a cluster."""
    folder = tmp_path_factory.mktemp("nodes")
    env = {
        "PYTHONPATH": str(REPOSITORY),
        "HOME": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RENDERED": yaml.safe_dump_all(rendered["prod"].objects),
    }
    log = folder / "nodes.log"
    with running([sys.executable, "-m", MODULE, "keep", str(folder)], env=env, log=log) as nodes:

        def up() -> bool:
            assert nodes.poll() is None, log.read_text()
            return (folder / "address.json").exists()

        wait_until(up, within_s=240, what="four Ray nodes")
        command = [sys.executable, "-W", "ignore", "-m", MODULE, "drive", str(folder)]
        done = subprocess.run(
            command, env={**os.environ, **env}, text=True, capture_output=True, timeout=240, check=False
        )
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]
        assert done.returncode == 0, (lines, done.stderr[-4000:])
        stranger = {**os.environ, **env, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        address = json.loads((folder / "address.json").read_text())["address"]
        refused = subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address],
            env=stranger, text=True, capture_output=True, timeout=120, check=False,
        )  # fmt: skip
        yield {name: value for line in lines for name, value in line.items()} | {"stranger": refused}


@pytest.mark.ray
@pytest.mark.timeout(600)  # four nodes and their agents; the machine may be busy
class TestOnFourNodes:
    def test_without_our_labels_a_cpu_task_takes_the_gpu_node(self, seen: dict[str, Any]) -> None:
        """Finding 1, as it was found; the control of the next test."""
        assert seen["unmarked"] == ["cpu", "cpu", "gpu"]

    def test_cpu_tasks_stay_off_the_gpu_node_and_gpu_tasks_go_there(self, seen: dict[str, Any]) -> None:
        assert seen["marked"] == {"cpu": ["cpu"] * 4, "gpu": ["gpu"] * 2}

    def test_tasks_of_a_lost_node_are_made_again_on_a_node_of_their_group(self, seen: dict[str, Any]) -> None:
        assert seen["node_killed"]["groups"] == ["cpu"] * 3
        assert seen["node_killed"]["starts"] >= 4, "two began, one was lost and began again; and the third"

    def test_a_run_with_a_rayjob_of_its_own_works_through_ray_client(self, seen: dict[str, Any]) -> None:
        """Findings 5 to 7: token, spec and the patch of the job id, by the real code of dagster-ray and Ray."""
        found = seen["by_rayjob"]
        assert found["success"], found["said"]
        assert found["groups"] == ["cpu"] * 3
        assert found["job_id"], "KubeRay follows the run by its Ray job"
        assert not found["connected_after"], "who stays connected keeps the job running, and the cluster up"

    def test_who_has_no_token_is_refused(self, seen: dict[str, Any]) -> None:
        assert seen["stranger"].returncode != 0
        assert "nauthenticated" in seen["stranger"].stderr + seen["stranger"].stdout


# --- what the autoscaler would ask KubeRay for


def launched(one: Rendered, kind: str, demands: list[tuple[dict[str, float], str | None]]) -> dict[str, int]:
    """Nodes by group that Ray's autoscaler, version 2, asks for: none are there, and these tasks wait.

    Args:
        one: a deployment.
        kind: RayJob or RayCluster, whose cluster it is.
        demands: what each task needs, and the group that it asks for by its label.
    """
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil
    from ray.core.generated.common_pb2 import LabelSelectorOperator

    spec = cluster_spec(one.one(kind, "ray"))
    resource = {"metadata": {"name": "ray", "namespace": "wiki-assets"}, "spec": spec}
    config = AutoscalingConfig(_derive_autoscaling_config_from_ray_cr(resource), skip_content_hash=True)
    made = [
        ResourceRequestUtil.make(
            needs,
            label_selectors=[[(GROUP, LabelSelectorOperator.Value("LABEL_OPERATOR_IN"), [group])]] if group else None,
        )
        for needs, group in demands
    ]
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=config.get_node_type_configs(),
        max_num_nodes=config.get_max_num_nodes(),
        resource_requests=ResourceRequestUtil.group_by_count(made),
    )
    reply = ResourceDemandScheduler().schedule(request)
    return {each.instance_type: each.count for each in reply.to_launch if each.instance_type != "headgroup"}


CPU_TASK: tuple[dict[str, float], str] = ({"CPU": 1}, "cpu")
GPU_TASK: tuple[dict[str, float], str] = ({"CPU": 1, "GPU": 1}, "gpu")


@pytest.mark.parametrize("tasks", [1, 4, 5, 32, 500])
def test_cpu_tasks_bring_cpu_nodes_up_to_the_most(prod: Rendered, tasks: int) -> None:
    assert launched(prod, "RayJob", [CPU_TASK] * tasks) == {"cpu": min(8, ceil(tasks / 4))}


@pytest.mark.parametrize("tasks", [1, 2, 40])
def test_gpu_tasks_bring_gpu_nodes_and_no_others(prod: Rendered, tasks: int) -> None:
    assert launched(prod, "RayJob", [GPU_TASK] * tasks) == {"gpu": min(2, tasks)}


def test_nothing_to_do_keeps_nothing(prod: Rendered) -> None:
    assert launched(prod, "RayJob", []) == {}


def test_the_task_by_which_a_driver_joins_wakes_no_gpu(prod: Rendered) -> None:
    """dagster-ray runs one CPU task without a label when it connects."""
    assert launched(prod, "RayJob", [({"CPU": 1}, None)]) == {"cpu": 1}


def test_the_shared_cluster_of_one_small_node_grows_to_its_two_workers(rendered: dict[str, Rendered]) -> None:
    assert launched(rendered["dev"], "RayCluster", [CPU_TASK] * 10) == {"cpu": 2}


def test_the_largest_size_is_what_its_slots_say(rendered: dict[str, Rendered]) -> None:
    assert launched(rendered["prod+large"], "RayJob", [CPU_TASK] * 500 + [GPU_TASK] * 50) == {"cpu": 32, "gpu": 8}


def test_the_window_fills_a_cluster_that_is_not_there_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no worker up, the head's labels say how many tasks to have under way."""
    import ray

    from wiki_assets.defs.fan_out import _window
    from wiki_assets.resources.compute import CPU_SLOTS, GPU_SLOTS, capacity

    head = {"Alive": True, "Labels": {GROUP: "head", CPU_SLOTS: "32", GPU_SLOTS: "2"}}
    monkeypatch.setattr(ray, "nodes", lambda: [head, {"Alive": False, "Labels": {CPU_SLOTS: "999"}}])
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"memory": 1.0})
    found = capacity()
    assert found == {"CPU": 32.0, "GPU": 2.0}
    assert _window(found, {"CPU": 1, "GPU": 0}) == 40
    assert _window(found, {"CPU": 1, "GPU": 1}) == 3


def test_a_ray_without_groups_is_asked_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from wiki_assets.resources.compute import placement

    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Labels": {"ray.io/node-id": "1"}}])
    assert placement(0) == placement(1) == {}
