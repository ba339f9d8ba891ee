"""L7: a real cluster. Only where one is given: WIKI_K8S_TEST=1, and a kubeconfig whose namespace may be used up.

Needs KubeRay, the Secrets of docs/kubernetes.md and our image (k8s/set-image.sh) there; WIKI_K8S_OVERLAY is the
overlay to apply, dev if it is not set. Nothing else in the namespace `wiki-assets` should be at work meanwhile.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from wiki_assets_tests.k8s.conftest import DEPLOYMENTS
from wiki_assets_tests.k8s.manifests import K8S, Rendered
from wiki_assets_tests.processes import wait_until

pytestmark = [
    pytest.mark.skipif(os.environ.get("WIKI_K8S_TEST") != "1", reason="no cluster is given: WIKI_K8S_TEST=1"),
    pytest.mark.timeout(3600),
]
NAMESPACE = "wiki-assets"
OVERLAY = os.environ.get("WIKI_K8S_OVERLAY", "dev")
JOB = """
import dagster as dg, ray, time
from dagster_ray import RayResource
from wiki_assets.defs.fan_out import fan_out
from wiki_assets.resources.compute import GROUP, ray_resource
from wiki_assets.settings import Settings

@dg.asset
def cells(ray: RayResource) -> None:
    def where(n):
        import ray as r, time as t
        t.sleep(20)
        return r.get_runtime_context().get_node_labels()[GROUP]
    print("groups", sorted(str(result) for _, result in fan_out(where, [(n, (n,)) for n in range(6)])))

done = dg.materialize([cells], resources={"ray": ray_resource(Settings.from_env())}, raise_on_error=False)
print("success", done.success)
"""


class Kubectl:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, *words: str, given: str | None = None, may_fail: bool = False) -> str:
        done = subprocess.run([str(self._path), *words], input=given, text=True, capture_output=True, check=False)
        assert may_fail or done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr}"
        return done.stdout

    def items(self, kind: str, selector: str = "") -> list[dict[str, Any]]:
        more = ["-l", selector] if selector else []
        return json.loads(self("-n", NAMESPACE, "get", kind, *more, "-o", "json"))["items"]


@pytest.fixture(scope="module")
def kube(kubectl: Path) -> Kubectl:
    found = Kubectl(kubectl)
    found("apply", "--server-side", "-f", str(K8S / "base/namespace.yaml"))
    return found


@pytest.fixture(scope="module")
def applied(kube: Kubectl) -> Iterator[None]:
    kube("apply", "--server-side", "--force-conflicts", "-k", str(K8S / "overlays" / OVERLAY))
    yield
    kube("-n", NAMESPACE, "delete", "job", "l7", "--ignore-not-found")


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_the_server_takes_every_object(kube: Kubectl, rendered: dict[str, Rendered], name: str) -> None:
    """Admission included: Pod Security of the namespace, webhooks of operators."""
    known = set(kube("api-resources", "-o", "name").split())
    objects = [
        each
        for each in rendered[name].objects
        if "." not in each["apiVersion"].split("/")[0]
        or f"{each['kind'].lower()}s.{each['apiVersion'].split('/')[0]}" in known
        or each["apiVersion"].endswith("k8s.io/v1")
    ]
    text = yaml.safe_dump_all(objects)
    said = kube(
        "apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "-f", "-", given=text
    )
    assert "Warning" not in said


def test_doctor_finds_nothing(kube: Kubectl, applied: None) -> None:
    from wiki_assets.resources.kube import Kube, examine

    def healthy() -> bool:
        return all(finding.good for finding in examine(Kube(), gpus_on_demand=True))

    wait_until(healthy, within_s=600, every_s=10, what="a healthy deployment")


def start_job(kube: Kubectl) -> None:
    (image,) = {
        line.split("image: ")[1]
        for line in kube("kustomize", str(K8S / "overlays" / OVERLAY)).splitlines()
        if "wiki-assets:" in line and "cuda" not in line
    }
    secure = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    labels = {"wiki-assets/work": "yes", "wiki-assets/api-server": "yes", "wiki-assets/data": "yes"}
    token = {"secretKeyRef": {"name": "ray-token", "key": "auth_token"}}
    pod = {
        "serviceAccountName": "wiki-run",
        "restartPolicy": "Never",
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "runAsGroup": 1000,
            "fsGroup": 1000,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": "driver",
                "image": image,
                "command": ["python", "-c", JOB],
                "env": [{"name": "RAY_AUTH_TOKEN", "valueFrom": token}],
                "envFrom": [{"configMapRef": {"name": "wiki-assets-settings"}}],
                "securityContext": secure,
                "resources": {"requests": {"cpu": "250m", "memory": "1Gi"}, "limits": {"memory": "1Gi"}},
                "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
            }
        ],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "l7", "namespace": NAMESPACE},
        "spec": {"backoffLimit": 0, "template": {"metadata": {"labels": labels}, "spec": pod}},
    }
    kube("-n", NAMESPACE, "delete", "job", "l7", "--ignore-not-found")
    kube("create", "-f", "-", given=json.dumps(job))


def ended(kube: Kubectl) -> bool:
    status = json.loads(kube("-n", NAMESPACE, "get", "job", "l7", "-o", "json"))["status"]
    return bool(status.get("succeeded") or status.get("failed"))


def test_workers_come_from_none_and_go_again(kube: Kubectl, applied: None) -> None:
    assert kube.items("pods", "ray.io/group=cpu") == []
    start_job(kube)
    wait_until(lambda: kube.items("pods", "ray.io/group=cpu"), within_s=1800, every_s=5, what="a worker")
    wait_until(lambda: ended(kube), within_s=1800, every_s=5, what="the end of the run")
    log = kube("-n", NAMESPACE, "logs", "job/l7")
    assert "success True" in log
    assert f"groups {['cpu'] * 6}" in log
    wait_until(lambda: not kube.items("pods", "ray.io/group=cpu"), within_s=900, every_s=10, what="no workers")


def test_a_lost_head_fails_the_run_in_time_and_leaves_nothing(kube: Kubectl, applied: None) -> None:
    start_job(kube)
    wait_until(lambda: kube.items("pods", "ray.io/group=cpu"), within_s=1800, every_s=5, what="a worker")
    kube("-n", NAMESPACE, "delete", "pod", "-l", "ray.io/node-type=head", "--grace-period=0", "--force")
    wait_until(lambda: ended(kube), within_s=600, every_s=5, what="the end of the run")
    assert "success True" not in kube("-n", NAMESPACE, "logs", "job/l7")

    def only_the_template() -> bool:
        return [job["metadata"]["name"] for job in kube.items("rayjobs.ray.io")] == ["ray"]

    wait_until(only_the_template, within_s=1200, every_s=10, what="the end of the run's RayJob")
