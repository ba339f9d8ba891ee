"""L4 and L5: the Jobs that Dagster sends for runs and steps; and every verb that is used is granted, and no other."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster_ray import Lifecycle
from dagster_ray.kuberay.client import RayJobClient
from dagster_ray.kuberay.resources.rayjob import KubeRayJobClientResource
from kubernetes.config import ConfigException

from wiki_assets.defs.pods import DUMPS
from wiki_assets.resources.compute import RayJobPerRun
from wiki_assets_tests.k8s import chart
from wiki_assets_tests.k8s.fake_api import FakeKubernetes, fake_kubernetes
from wiki_assets_tests.k8s.manifests import Manifest, Pod, Rendered, plain_pod
from wiki_assets_tests.k8s.policies import POD_RULES, references_resolve, violations
from wiki_assets_tests.k8s.runs import Cluster, cluster
from wiki_assets_tests.k8s.test_rayjob import CLUSTER, READY, WAITING, a_run
from wiki_assets_tests.k8s.test_schemas import KUBERNETES

POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "run-pod", "namespace": "wiki-assets", "uid": "u-1", "labels": {}},
    "spec": {"containers": [{"name": "dagster"}]},
    "status": {
        "phase": "Running",
        "containerStatuses": [
            {
                "name": "dagster",
                "ready": True,
                "restartCount": 0,
                "image": "wiki-assets",
                "imageID": "",
                "state": {"running": {"startedAt": "2026-11-01T00:00:00Z"}},
            }
        ],
    },
}


@pytest.fixture(scope="module")
def api(rendered: dict[str, Rendered]) -> Iterator[FakeKubernetes]:
    with fake_kubernetes() as server:
        server.grant(rendered["prod"].objects)
        server.add(POD, CLUSTER, *rendered["prod"].of("RayJob"))
        yield server


@pytest.fixture(scope="module")
def daemon(
    api: FakeKubernetes, values: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    with cluster(api, values["on-volume"], tmp_path_factory.mktemp("daemon"), "wiki-dagster") as found:
        yield found


@pytest.fixture(scope="module")
def run_pod(
    api: FakeKubernetes, values: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "HOSTNAME", "run-pod")
        with cluster(api, values["on-volume"], tmp_path_factory.mktemp("run"), "wiki-run") as found:
            yield found


@pytest.fixture(scope="module")
def run_job(daemon: Cluster) -> Manifest:
    return daemon.launch("tokens")


@pytest.fixture(scope="module")
def step_jobs(run_pod: Cluster) -> dict[str, Manifest]:
    """The Job of a step of each asset."""
    made = {}
    for asset in ("raw_dump", "tokens", "chroma_collection"):
        handler, context = run_pod.step(asset)
        list(handler.launch_step(context))
        made[asset] = run_pod.api.created("jobs")[-1]
    return made


def a_pod(name: str, job: str) -> Manifest:
    return {**POD, "metadata": {**POD["metadata"], "name": name, "labels": {"job-name": job}}}


def pod_of(job: Manifest) -> Pod:
    return plain_pod(f"Job/{job['metadata']['name']}", job["spec"]["template"])


def test_the_jobs_fit_the_strict_schema(run_job: Manifest, step_jobs: dict[str, Manifest]) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate==1.37.0")
    for job in (run_job, *step_jobs.values()):
        validate.validate(job, KUBERNETES, strict=True)


@pytest.mark.parametrize("rule", POD_RULES, ids=lambda rule: rule.__name__)
def test_the_jobs_pods_break_no_rule(run_job: Manifest, step_jobs: dict[str, Manifest], rule: Any) -> None:
    for job in (run_job, *step_jobs.values()):
        assert violations(rule, pod_of(job)) == []


def test_dagster_retries_and_kubernetes_does_not(run_job: Manifest, step_jobs: dict[str, Manifest]) -> None:
    for job in (run_job, *step_jobs.values()):
        assert job["spec"]["backoffLimit"] == 0
        assert job["spec"]["ttlSecondsAfterFinished"] <= 3600
        assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"


def test_runs_drive_with_little_and_only_as_themselves(run_job: Manifest, step_jobs: dict[str, Manifest]) -> None:
    for job in (run_job, *step_jobs.values()):
        assert job["spec"]["template"]["spec"]["serviceAccountName"] == "wiki-run"
        (container,) = job["spec"]["template"]["spec"]["containers"]
        assert "nvidia.com/gpu" not in container["resources"]["limits"]
    assert pod_of(run_job).containers[0]["resources"]["requests"] == {"cpu": "500m", "memory": "2Gi"}


def test_only_the_step_that_downloads_is_let_out(run_job: Manifest, step_jobs: dict[str, Manifest]) -> None:
    for asset, job in {"run": run_job, **step_jobs}.items():
        assert (DUMPS.items() <= pod_of(job).labels.items()) == (asset == "raw_dump")


def test_a_steps_own_needs_are_met(step_jobs: dict[str, Manifest]) -> None:
    asks = {asset: pod_of(job).containers[0]["resources"]["limits"]["memory"] for asset, job in step_jobs.items()}
    assert asks == {"raw_dump": "2Gi", "tokens": "2Gi", "chroma_collection": "4Gi"}


def test_a_step_goes_with_its_runs_pod(step_jobs: dict[str, Manifest]) -> None:
    for job in step_jobs.values():
        (owner,) = job["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["uid"]) == ("Pod", "run-pod", "u-1")


def test_every_name_in_the_jobs_is_one_that_exists(
    prod: Rendered, run_job: Manifest, step_jobs: dict[str, Manifest], values: dict[str, dict[str, Any]]
) -> None:
    """Finding 4: a Job of an account that does not exist is accepted, and never starts."""
    more = [pod_of(job) for job in (run_job, *step_jobs.values())] + list(chart.pods(values["on-volume"]))
    assert list(references_resolve(prod, more)) == []


def test_each_verb_is_granted_and_none_besides(
    daemon: Cluster, run_pod: Cluster, run_job: Manifest, step_jobs: dict[str, Manifest], prod: Rendered, tmp_path: Path
) -> None:
    """Finding 2: what launching, watching and ending runs, steps and RayJobs asks of the API server, by account."""
    api = daemon.api
    launcher = daemon.instance.run_launcher
    (run,) = daemon.instance.get_runs()
    assert "Debug information for job" in launcher.get_run_worker_debug_info(run)
    api.add(a_pod("a", f"dagster-run-{run.run_id}"))
    assert launcher.check_run_worker_health(run)
    assert "a line of the log" in launcher.get_run_worker_debug_info(run)
    assert launcher.terminate(run.run_id)
    handler, context = run_pod.step("tokens")
    list(handler.launch_step(context))
    handler.check_step_health(context)
    api.add(a_pod("b", api.created("jobs")[-1]["metadata"]["name"]))
    list(handler.terminate_step(context))
    config = str(api.kubeconfig("wiki-run", tmp_path))
    api.script["rayclusters.ray.io", "wiki-assets", "ray-abc"] = [READY]
    api.on_create["rayjobs.ray.io"] = [WAITING]
    job = RayJobPerRun(
        template_namespace="wiki-assets",
        template_name="ray",
        client=KubeRayJobClientResource(kube_config=config),
        lifecycle=Lifecycle(connect=False, cleanup="always"),
        poll_interval=0.01,
    )
    assert a_run(job).success
    client = RayJobClient(kube_config=config)
    client.update_json_patch("ray", "wiki-assets", [{"op": "replace", "path": "/spec/jobId", "value": "1"}])
    api.add(a_pod("ray-abc-head", ""))
    assert client.ray_cluster_client._read_head_pod_logs(READY, "wiki-assets") is not None  # type: ignore[arg-type]

    granted = {
        (binding["subjects"][0]["name"], f"{resource}.{group}" if group else resource, verb)
        for binding in prod.of("RoleBinding")
        for rule in prod.one("Role", binding["roleRef"]["name"])["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert api.used - granted == set(), "used, and refused"
    assert granted - api.used == set(), "granted, and never used"


def test_the_download_pod_needs_no_token_of_the_api_server(
    values: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs in itself, on the chart's instance; the launcher there would want one, and is not woken."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    launcher = chart.dagster_yaml(values["on-volume"])["run_launcher"]
    assert launcher["config"]["load_incluster_config"] is True
    home = chart.write_instance(tmp_path, {"run_launcher": launcher, "telemetry": {"enabled": False}})

    @dg.asset
    def raw_dump() -> None:
        pass

    with dg.DagsterInstance.from_config(str(home)) as instance:
        instance.event_log_storage.set_concurrency_slots("mirror", 1)
        job = dg.Definitions([raw_dump]).resolve_implicit_global_asset_job_def()
        assert job.execute_in_process(instance=instance).success
        with pytest.raises(ConfigException):
            instance.run_launcher  # noqa: B018  the control: this is what must not happen
