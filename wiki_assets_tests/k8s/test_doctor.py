"""wiki-assets doctor --kube: what is missing is named, with its remedy, by the command itself."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import fsspec
import pytest
from click.testing import CliRunner

from wiki_assets.cli import main
from wiki_assets.errors import SourceUnavailable
from wiki_assets.resources.kube import Finding, Kube, examine, look_into
from wiki_assets_tests.k8s.fake_api import ANYONE, FakeKubernetes, fake_kubernetes
from wiki_assets_tests.k8s.manifests import Manifest, Rendered
from wiki_assets_tests.processes import WIKI_ASSETS

SPACE = "wiki-assets"


def thing(api: str, kind: str, name: str, *, space: str | None = SPACE, **more: Any) -> Manifest:
    metadata = {"name": name} | ({"namespace": space} if space else {})
    return {"apiVersion": api, "kind": kind, "metadata": {**metadata, **more.pop("metadata", {})}, **more}


def healthy(prod: Rendered) -> list[Manifest]:
    """What `kubectl apply -k k8s/overlays/prod` and docs/kubernetes.md leave, a minute later."""
    objects = deepcopy(prod.objects)
    for each in objects:
        if each["kind"] == "RayJob":
            each["status"] = {"jobDeploymentStatus": "Suspended"}
        if each["kind"] == "StatefulSet":
            each["status"] = {"readyReplicas": 1}
        if each["kind"] == "PersistentVolumeClaim":
            each["status"] = {"phase": "Bound"}
    objects += [
        thing("v1", "Secret", "ray-token", data={"auth_token": "eA=="}),
        thing(
            "v1",
            "Secret",
            "wiki-postgres",
            data={"username": "eA==", "password": "eA==", "postgresql-password": "eA=="},
        ),
        thing("v1", "Secret", "object-store", data=None),
        thing(
            "v1",
            "Node",
            "gpu-1",
            space=None,
            metadata={"labels": {"nvidia.com/gpu.present": "true"}},
            status={"allocatable": {"nvidia.com/gpu": "2"}},
        ),
    ]
    for kind in ("rayjobs", "rayclusters", "rayservices"):
        versions = [{"name": "v1", "served": True}, {"name": "v1alpha1", "served": False}]
        objects.append(
            thing(
                "apiextensions.k8s.io/v1",
                "CustomResourceDefinition",
                f"{kind}.ray.io",
                space=None,
                spec={"versions": versions},
            )
        )
    return objects


@pytest.fixture
def api(prod: Rendered) -> Iterator[FakeKubernetes]:
    with fake_kubernetes() as server:
        server.add(*healthy(prod))
        server.grant(prod.objects)
        yield server


def look(api: FakeKubernetes, folder: Path, **options: Any) -> list[Finding]:
    return examine(Kube(str(api.kubeconfig(ANYONE, folder))), **options)


def test_a_healthy_cluster_has_nothing_to_put_right(api: FakeKubernetes, tmp_path: Path) -> None:
    findings = look(api, tmp_path)
    assert [finding for finding in findings if not finding.good] == []
    assert len(findings) > 10
    assert api.bodies == [] or all("accessreviews" in path for _, path, _ in api.bodies), "it only reads"


def drop(resource: str, name: str, space: str = SPACE) -> Callable[[FakeKubernetes], Any]:
    return lambda api: api.objects.pop((resource, space, name))


def change(resource: str, name: str, path: str, value: Any, space: str = SPACE) -> Callable[[FakeKubernetes], Any]:
    def act(api: FakeKubernetes) -> None:
        place = api.objects[resource, space, name]
        *way, last = path.split("/")
        for step in way:
            place = place[step]
        place[last] = value

    return act


def no_storage_class(api: FakeKubernetes) -> None:
    drop("storageclasses.storage.k8s.io", "wiki-nfs", "")(api)
    change("persistentvolumeclaims", "wiki-data", "status/phase", "Pending")(api)


def no_rights(api: FakeKubernetes) -> None:
    api.rules["wiki-run"] = []


MISSING: dict[str, tuple[Callable[[FakeKubernetes], Any], str, str]] = {
    "namespace": (drop("namespaces", SPACE, ""), "namespace wiki-assets", "kubectl apply"),
    "profile": (change("namespaces", SPACE, "metadata/labels", {}, ""), "enforces Pod Security none", "restricted"),
    "crd": (drop("customresourcedefinitions.apiextensions.k8s.io", "rayjobs.ray.io", ""), "CRD rayjobs.ray.io",
            "--server-side"),
    "template": (drop("rayjobs.ray.io", "ray"), "RayJob wiki-assets/ray: missing", "kubectl apply"),
    "refused template": (
        change("rayjobs.ray.io", "ray", "status", {"jobDeploymentStatus": "ValidationFailed", "message": "bad name"}),
        "KubeRay refuses it: bad name", "k8s/base/ray.yaml"),
    "awake template": (change("rayjobs.ray.io", "ray", "spec/suspend", False), "is not suspended", "suspend: true"),
    "operator": (change("rayjobs.ray.io", "ray", "status", {}), "no operator has looked at it", "is KubeRay running?"),
    "secret": (drop("secrets", "ray-token"), "Secret ray-token: missing", "openssl rand"),
    "key of a secret": (change("secrets", "wiki-postgres", "data", {"username": "eA=="}),
                        "Secret wiki-postgres: has no password, postgresql-password", "basic-auth"),
    "storage class": (no_storage_class, "storage class wiki-nfs does not exist", "k8s/components/nfs"),
    "volume": (change("persistentvolumeclaims", "wiki-data", "status/phase", "Pending"), "gives no ReadWriteMany",
               "kubectl -n wiki-assets describe pvc wiki-data"),
    "account": (drop("serviceaccounts", "wiki-run"), "ServiceAccount wiki-run: missing", "kubectl apply"),
    "rights": (no_rights, "wiki-run: may not create rayjobs", "kubectl apply"),
    "chroma": (change("statefulsets.apps", "chroma", "status", {}), "Chroma: not ready", "kubectl -n wiki-assets logs"),
    "settings": (drop("configmaps", "wiki-assets-settings"), "ConfigMap wiki-assets-settings: missing", "kubectl"),
    "gpu": (change("nodes", "gpu-1", "status/allocatable", {}, ""), "no node of 1 offers nvidia.com/gpu",
            "device plugin"),
    "label of gpu nodes": (change("nodes", "gpu-1", "metadata/labels", {}, ""),
                           "none on a node labelled nvidia.com/gpu.present=true", "label those nodes"),
}  # fmt: skip


@pytest.mark.parametrize("what", MISSING)
def test_what_is_missing_is_named_with_its_remedy(api: FakeKubernetes, tmp_path: Path, what: str) -> None:
    act, says, remedy = MISSING[what]
    act(api)
    bad = {f"{finding.about}: {finding.found}": finding.remedy for finding in look(api, tmp_path) if not finding.good}
    (line,) = [line for line in bad if says in line]
    assert remedy in bad[line]
    others = set(bad) - {line}
    assert all("wiki-run" in other or "RayJob" in other for other in others), others


def test_gpus_that_come_on_demand_need_not_be_there(api: FakeKubernetes, tmp_path: Path) -> None:
    drop("nodes", "gpu-1", "")(api)
    assert all(finding.good for finding in look(api, tmp_path, gpus_on_demand=True))


def test_no_default_class_is_said(api: FakeKubernetes, tmp_path: Path) -> None:
    claim = api.objects["persistentvolumeclaims", SPACE, "wiki-data"]
    del claim["spec"]["storageClassName"]
    claim["status"] = {"phase": "Pending"}
    bad = [finding for finding in look(api, tmp_path) if not finding.good]
    assert ["no default one" in finding.found for finding in bad] == [True]


def test_a_server_that_refuses_us_is_said(api: FakeKubernetes, tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailable, match="answers 403"):
        examine(Kube(str(api.kubeconfig("wiki-ray", tmp_path))))


def test_a_server_that_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_kubernetes() as gone:
        config = gone.kubeconfig(ANYONE, tmp_path)
    with pytest.raises(SourceUnavailable, match="no API server answers"):
        examine(Kube(str(config)))


# --- buckets


class Bucket(fsspec.AbstractFileSystem):
    """A store as fsspec sees one, with the answers that stores give."""

    protocol = "answering"

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        answers: dict[str, Any] = {
            "gone": FileNotFoundError("The specified bucket does not exist"),
            "closed": PermissionError("Forbidden"),
            "dead": OSError("Connect timeout on endpoint"),
        }
        if path.strip("/") in answers:
            raise answers[path.strip("/")]
        return []


@pytest.mark.parametrize(
    ("bucket", "found", "remedy"),
    [
        ("answering://there", "answers", ""),
        ("answering://gone", "does not exist", "make it"),
        ("answering://closed", "refuses us", "policy"),
        ("answering://dead", "cannot be asked", "credentials"),
    ],
)
def test_a_bucket_is_asked(bucket: str, found: str, remedy: str) -> None:
    fsspec.register_implementation("answering", Bucket, clobber=True)
    said, how = look_into(bucket)
    assert said.startswith(found)
    assert remedy in how
    assert bool(how) == (found != "answers")


def test_the_bucket_of_the_settings_is_the_one_asked(api: FakeKubernetes, tmp_path: Path) -> None:
    fsspec.register_implementation("answering", Bucket, clobber=True)
    change("configmaps", "wiki-assets-settings", "data/WIKI_ASSETS_ROOT", "answering://gone/prefix")(api)
    bad = [finding for finding in look(api, tmp_path) if not finding.good]
    assert [finding.about for finding in bad] == ["bucket answering://gone"]


# --- the command


def run(config: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    env = {**os.environ, "KUBECONFIG": str(config)}
    return subprocess.run([*WIKI_ASSETS, "doctor", *words], env=env, text=True, capture_output=True, check=False)


def test_the_command_lists_and_counts(api: FakeKubernetes, tmp_path: Path) -> None:
    drop("secrets", "ray-token")(api)
    config = api.kubeconfig(ANYONE, tmp_path)
    done = run(config, "--kube")
    assert done.returncode == 1
    assert "BAD  Secret ray-token: missing" in done.stdout
    assert "openssl rand -hex 32" in done.stdout
    assert done.stderr.startswith("wiki-assets: 1 of ")


def test_the_command_writes_json_for_pipes(
    api: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop("secrets", "ray-token")(api)
    config = str(api.kubeconfig(ANYONE, tmp_path))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", config)  # read at its import
    done = CliRunner().invoke(main, ["doctor", "--kube", "--json"])
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["about"] for row in rows if not row["good"]] == ["Secret ray-token"]
    assert done.exit_code == 1


def test_the_command_without_a_cluster_says_so_in_a_line(tmp_path: Path) -> None:
    done = run(tmp_path / "none", "--kube")
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert "set KUBECONFIG" in done.stderr


def test_the_command_without_its_flag_is_a_mistake() -> None:
    assert CliRunner().invoke(main, ["doctor"]).exit_code == 2
