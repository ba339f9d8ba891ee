"""L4 and L5: the RayJob that a run sends, and its life against an API server that plays scripts."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster_ray import Lifecycle, LocalRay, RayResource
from dagster_ray.kuberay.client import RayJobClient
from dagster_ray.kuberay.resources.rayjob import KubeRayJobClientResource
from tenacity import wait_none

from wiki_assets.errors import BadRequest, WikiAssetsError
from wiki_assets.resources import compute
from wiki_assets.resources.compute import RayJobPerRun, SharedRay, check_answers, ray_resource, ray_session
from wiki_assets.settings import Settings
from wiki_assets_tests.k8s.fake_api import FakeKubernetes, fake_kubernetes
from wiki_assets_tests.k8s.manifests import Rendered
from wiki_assets_tests.k8s.schemas import Schemas
from wiki_assets_tests.processes import free_port

INITIALIZING = {"jobDeploymentStatus": "Initializing", "startTime": "2026-11-01T00:00:00Z"}
WAITING = {"jobDeploymentStatus": "Waiting", "rayClusterName": "ray-abc"}
READY = {
    "state": "ready",
    "head": {"serviceIP": "10.0.0.9", "serviceName": "ray-abc-head-svc", "podName": "ray-abc-head"},
    "endpoints": {"dashboard": "8265", "client": "10001"},
}
Make = Callable[..., RayJobPerRun]
CLUSTER = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": "ray-abc", "namespace": "wiki-assets"}}


@pytest.fixture
def api(prod: Rendered) -> Iterator[FakeKubernetes]:
    """The namespace as `kubectl apply -k k8s/overlays/prod` leaves it, for the account of run pods."""
    with fake_kubernetes() as server:
        server.add(*prod.objects, CLUSTER)
        server.grant(prod.objects)
        server.script["rayclusters.ray.io", "wiki-assets", "ray-abc"] = [{"state": ""}, READY]
        yield server


@pytest.fixture
def per_run(api: FakeKubernetes, tmp_path: Path) -> Callable[..., RayJobPerRun]:
    """As production makes it, but that it does not join the cluster, which is not there, and asks more often."""
    client = KubeRayJobClientResource(kube_config=str(api.kubeconfig("wiki-run", tmp_path)))

    def make(**changes: Any) -> RayJobPerRun:
        given = {
            "template_namespace": "wiki-assets",
            "template_name": "ray",
            "client": client,
            "lifecycle": Lifecycle(connect=False, cleanup="on_exception"),
            "poll_interval": 0.01,
            "timeout": 20.0,
        }
        return RayJobPerRun(**{**given, **changes})

    return make


def a_run(resource: RayResource, *, ends: type[BaseException] | None = None) -> dg.ExecuteInProcessResult:
    """A run of one asset that asks for Ray."""

    @dg.asset
    def cell(ray: RayResource) -> None:
        if ends:
            raise ends

    return dg.materialize([cell], resources={"ray": resource}, raise_on_error=False)


def what_failed(result: dg.ExecuteInProcessResult) -> str:
    events = [event for event in result.all_events if event.is_failure]
    return " ".join(str(event.event_specific_data) for event in events)


def test_a_runs_job_is_the_template_let_go(
    api: FakeKubernetes, prod: Rendered, schemas: Schemas, per_run: Make
) -> None:
    api.on_create["rayjobs.ray.io"] = [INITIALIZING, INITIALIZING, WAITING]
    assert a_run(per_run()).success
    (sent,) = api.created("rayjobs")
    template = prod.one("RayJob", "ray")
    spec = deepcopy(template["spec"])
    assert spec.pop("suspend") is True
    assert sent["spec"] == spec, "nothing is added, nothing lost"
    assert schemas.faults(sent) == []
    assert sent["metadata"]["name"] != "ray"
    assert len(sent["metadata"]["name"]) <= 47, "KubeRay adds to it, and refuses clusters over 53 characters"
    assert template["metadata"]["labels"].items() <= sent["metadata"]["labels"].items()
    assert sent["metadata"]["labels"]["dagster/run-id"]


def test_kueue_gets_the_job_and_not_the_template(
    api: FakeKubernetes, rendered: dict[str, Rendered], schemas: Schemas, per_run: Make
) -> None:
    template = rendered["prod+kueue"].one("RayJob", "ray")
    api.objects["rayjobs.ray.io", "wiki-assets", "ray"] = template
    api.on_create["rayjobs.ray.io"] = [WAITING]
    assert a_run(per_run()).success
    (sent,) = api.created("rayjobs")
    queue = rendered["prod+kueue"].one("LocalQueue", "wiki-assets")["metadata"]["name"]
    assert sent["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == queue
    assert "kueue.x-k8s.io/queue-name" not in template["metadata"]["labels"]
    assert schemas.faults(sent) == []


@pytest.mark.parametrize("ends", [RuntimeError, DagsterExecutionInterruptedError])
def test_a_run_that_fails_or_is_cancelled_leaves_its_cluster_to_kuberay(
    api: FakeKubernetes, per_run: Make, ends: type[BaseException]
) -> None:
    """The client has left, so its Ray job has ended, and the RayJob with it: these fields are what cleans up then."""
    api.on_create["rayjobs.ray.io"] = [WAITING]
    assert not a_run(per_run(), ends=ends).success
    (sent,) = api.created("rayjobs")
    assert sent["spec"]["shutdownAfterJobFinishes"] is True
    assert 0 < sent["spec"]["ttlSecondsAfterFinished"] <= 600
    assert sent["spec"]["preRunningDeadlineSeconds"] < sent["spec"]["activeDeadlineSeconds"] < 24 * 3600


STOPS = {
    "a refused spec": (
        [INITIALIZING, {"jobDeploymentStatus": "ValidationFailed", "message": "authOptions need rayVersion"}],
        "authOptions need rayVersion",
    ),
    "no node in time": (
        [INITIALIZING, {"jobDeploymentStatus": "Failed", "reason": "PreRunningDeadlineExceeded", "message": "late"}],
        "preRunningDeadlineSeconds",
    ),
    "a deadline": (
        [{"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded"}],
        "activeDeadlineSeconds",
    ),
}


@pytest.mark.parametrize("stop", STOPS)
def test_what_kuberay_gives_up_the_run_gives_up(api: FakeKubernetes, stop: str, per_run: Make) -> None:
    statuses, says = STOPS[stop]
    api.on_create["rayjobs.ray.io"] = statuses
    result = a_run(per_run())
    assert not result.success
    assert says in what_failed(result)


def test_a_cluster_that_never_comes_is_given_up_in_time(api: FakeKubernetes, per_run: Make) -> None:
    api.on_create["rayjobs.ray.io"] = [INITIALIZING]
    result = a_run(per_run(timeout=0.3))
    assert "Timed out" in what_failed(result)
    assert not [key for key in api.objects if key[0] == "rayjobs.ray.io" and key[2] != "ray"], "and is taken down"


def test_an_api_server_that_stumbles_costs_nothing(api: FakeKubernetes, per_run: Make) -> None:
    api.on_create["rayjobs.ray.io"] = [INITIALIZING, WAITING]
    api.faults += [("GET", "rayclusters/ray-abc/status", 404)]
    assert a_run(per_run()).success
    assert api.faults == []


def test_a_missing_template_is_named(api: FakeKubernetes, per_run: Make) -> None:
    assert "there is no RayJob wiki-assets/other" in what_failed(a_run(per_run(template_name="other")))


def test_a_template_that_kuberay_refused_is_named_before_a_job_is_made(api: FakeKubernetes, per_run: Make) -> None:
    status = {"jobDeploymentStatus": "ValidationFailed", "message": "min replicas above max"}
    api.script["rayjobs.ray.io", "wiki-assets", "ray"] = [status]
    assert "min replicas above max" in what_failed(a_run(per_run()))
    assert api.created("rayjobs") == []


def test_the_job_id_is_patched_with_the_pinned_client(api: FakeKubernetes, tmp_path: Path) -> None:
    """Finding 7: kubernetes 36 fails this very call; hence `kubernetes<36`."""
    client = RayJobClient(kube_config=str(api.kubeconfig("wiki-run", tmp_path)))
    client.update_json_patch("ray", "wiki-assets", body=[{"op": "replace", "path": "/spec/jobId", "value": "01000000"}])
    assert api.objects["rayjobs.ray.io", "wiki-assets", "ray"]["spec"]["jobId"] == "01000000"


# --- the one setting


def settings(ray: str) -> Settings:
    return Settings.from_env({"WIKI_ASSETS_RAY": ray})


@pytest.mark.parametrize(
    ("ray", "kind"),
    [("local", LocalRay), ("ray://head:10001", SharedRay), ("head:6379", SharedRay), ("rayjob/a/b", RayJobPerRun)],
)
def test_one_setting_chooses(ray: str, kind: type) -> None:
    made = ray_resource(settings(ray))
    assert isinstance(made, kind)
    assert isinstance(made, SharedRay) == (kind is SharedRay)


def test_an_address_is_where_ray_connects() -> None:
    assert ray_resource(settings("ray://head:10001")).ray_address == "ray://head:10001"


@pytest.mark.parametrize("ray", ["rayjob/", "rayjob/only", "rayjob/a/b/c", "rayjob//b"])
def test_a_template_needs_its_namespace(ray: str) -> None:
    with pytest.raises(BadRequest, match="expected rayjob/NAMESPACE/NAME"):
        ray_resource(settings(ray))


@pytest.mark.parametrize("address", ["nonsense", "http://head:8265", "head:port", "ray://:10001"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(BadRequest, match="expected local"):
        check_answers(address)


def test_nobody_at_the_address_is_said_at_once() -> None:
    with pytest.raises(WikiAssetsError, match="no Ray answers"), ray_session(settings(f"127.0.0.1:{free_port()}")):
        raise AssertionError("not reached")


def test_a_ray_client_server_that_does_not_start_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray forks it from a process with threads, and now and then it hangs before its first line."""
    import ray

    asked: list[Any] = []

    def init(**options: Any) -> None:
        asked.append(options["address"])
        if len(asked) < 3:
            raise ConnectionAbortedError("Starting Ray client server failed")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(compute, "check_answers", lambda address: None)
    monkeypatch.setattr(compute, "leave_ray", lambda: None)
    monkeypatch.setattr(compute, "wait_fixed", lambda seconds: wait_none())
    with ray_session(settings("ray://head:10001")):
        assert asked == ["ray://head:10001"] * 3


def test_a_session_is_no_place_for_a_job_per_run() -> None:
    with pytest.raises(BadRequest, match="for runs that Dagster launches"), ray_session(settings("rayjob/a/b")):
        raise AssertionError("not reached")
