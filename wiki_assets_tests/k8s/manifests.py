"""What Kustomize makes of k8s/, and every pod in it as it will be: with what KubeRay adds to its own."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from wiki_assets_tests.conftest import REPOSITORY

K8S = REPOSITORY / "k8s"
Manifest = dict[str, Any]


@dataclass(frozen=True)
class Rendered:
    """One deployment: what `kubectl apply -k` sends, in order."""

    name: str
    objects: list[Manifest]

    def of(self, kind: str) -> list[Manifest]:
        return [each for each in self.objects if each["kind"] == kind]

    def one(self, kind: str, name: str) -> Manifest:
        found = [each for each in self.of(kind) if each["metadata"]["name"] == name]
        assert len(found) == 1, f"{self.name}: {len(found)} {kind} {name}"
        return found[0]

    def pods(self) -> list["Pod"]:
        return [pod for each in self.objects for pod in pods_of(each)]

    def settings(self) -> dict[str, str]:
        return self.one("ConfigMap", "wiki-assets-settings")["data"]


@dataclass(frozen=True)
class Pod:
    """A pod template, with the labels and containers that its pods have."""

    owner: str
    labels: Mapping[str, str]
    spec: Mapping[str, Any]
    containers: Sequence[Mapping[str, Any]]
    kind: str = "plain"  # or ray-head, ray-worker
    group: Mapping[str, Any] = field(default_factory=dict)  # of a Ray pod
    makes_account: bool = False  # KubeRay makes a service account for it

    def __str__(self) -> str:
        return self.owner


def parse(text: str) -> list[Manifest]:
    return [each for each in yaml.load_all(text, yaml.CSafeLoader) if each]


def render(kubectl: Path, folder: Path) -> list[Manifest]:
    """The objects of a kustomization."""
    done = subprocess.run([str(kubectl), "kustomize", str(folder)], text=True, capture_output=True, check=False)
    assert done.returncode == 0, f"{folder}: {done.stderr}"
    return parse(done.stdout)


def compose(folder: Path, components: Sequence[str], *, overlay: str = "prod") -> Path:
    """A kustomization of an overlay and more components, as a person would write it."""
    folder.mkdir()
    named = [f"components/{name}" for name in components] + ["images"]
    text = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(K8S / "overlays" / overlay, folder.resolve())],
        "components": [os.path.relpath(K8S / name, folder.resolve()) for name in named],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(text))
    return folder


def pods_of(manifest: Manifest) -> Iterator[Pod]:
    """Every pod template of an object."""
    kind, spec = manifest["kind"], manifest.get("spec") or {}
    owner = f"{kind}/{manifest['metadata']['name']}"
    if kind in ("Deployment", "StatefulSet", "Job"):
        yield plain_pod(owner, spec["template"])
    elif kind == "CronJob":
        yield plain_pod(owner, spec["jobTemplate"]["spec"]["template"])
    elif (cluster := cluster_spec(manifest)) is not None:
        yield from ray_pods(owner, cluster)


def plain_pod(owner: str, template: Mapping[str, Any]) -> Pod:
    spec = template["spec"]
    containers = [*spec.get("initContainers", []), *spec["containers"]]
    return Pod(owner, template["metadata"].get("labels", {}), spec, containers)


def cluster_spec(manifest: Manifest) -> dict[str, Any] | None:
    """The Ray cluster that an object describes, if it does."""
    fields: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "RayJob": lambda spec: spec["rayClusterSpec"],
        "RayService": lambda spec: spec["rayClusterConfig"],
        "RayCluster": lambda spec: spec,
    }
    return fields[manifest["kind"]](manifest["spec"]) if manifest["kind"] in fields else None


def ray_pods(owner: str, cluster: Mapping[str, Any]) -> Iterator[Pod]:
    """Head and workers as KubeRay 1.7 makes them: its labels, the autoscaler, the wait before workers."""
    groups = [("head", cluster["headGroupSpec"])] + [(g["groupName"], g) for g in cluster["workerGroupSpecs"]]
    for name, group in groups:
        head = name == "head"
        template = group["template"]
        main = template["spec"]["containers"][0]
        added: list[dict[str, Any]] = []
        if head and cluster.get("enableInTreeAutoscaling"):
            options = cluster["autoscalerOptions"]
            added.append(
                {
                    "name": "autoscaler",
                    "image": options.get("image", main["image"]),
                    "resources": options.get("resources", {}),
                    "securityContext": options.get("securityContext", {}),
                    "volumeMounts": options.get("volumeMounts", []),
                    "env": options.get("env", []),
                }
            )
        if not head:
            wait = {"cpu": "200m", "memory": "256Mi"}
            added.append({**main, "name": "wait-gcs-ready", "resources": {"requests": wait, "limits": wait}})
        labels = {
            **template.get("metadata", {}).get("labels", {}),
            **group.get("labels", {}),
            "app.kubernetes.io/name": "kuberay",
            "ray.io/is-ray-node": "yes",
            "ray.io/node-type": "head" if head else "worker",
            "ray.io/group": "headgroup" if head else name,
        }
        yield Pod(
            f"{owner} {name}",
            labels,
            template["spec"],
            [*template["spec"].get("initContainers", []), *added, *template["spec"]["containers"]],
            kind="ray-head" if head else "ray-worker",
            group=group,
            makes_account=head and bool(cluster.get("enableInTreeAutoscaling")),
        )


def canonical(manifest: Manifest) -> str:
    return json.dumps(manifest, sort_keys=True)
