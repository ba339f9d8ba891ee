"""L0 to L2: every object that an overlay sends would be taken by an API server that reads every field."""

import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest

from wiki_assets_tests.conftest import REPOSITORY
from wiki_assets_tests.k8s.conftest import DEPLOYMENTS
from wiki_assets_tests.k8s.manifests import K8S, Manifest, Rendered, canonical, parse
from wiki_assets_tests.k8s.schemas import Schemas

KUBERNETES = "1.36"


@pytest.fixture(scope="module")
def objects(rendered: dict[str, Rendered]) -> list[Manifest]:
    """Each object once, whichever deployments have it."""
    return list({canonical(each): each for one in rendered.values() for each in one.objects}.values())


def test_custom_objects_fit_the_closed_schemas_and_their_rules(objects: list[Manifest], schemas: Schemas) -> None:
    pytest.importorskip("celpy", reason="pip install cel-python==0.5.0")
    custom = [each for each in objects if schemas.knows(each)]
    kinds = {each["kind"] for each in custom}
    assert kinds == {"RayJob", "RayCluster", "RayService", "Cluster", "ClusterQueue", "LocalQueue", "ResourceFlavor",
                     "PodMonitor"}  # fmt: skip
    faults = {f"{e['kind']}/{e['metadata']['name']}": found for e in custom if (found := schemas.faults(e))}
    assert faults == {}


def test_all_others_fit_the_strict_schemas_of_kubernetes(objects: list[Manifest], schemas: Schemas) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate==1.37.0")
    others = [each for each in objects if not schemas.knows(each)]
    assert len(others) > 60
    for each in others:
        validate.validate(each, KUBERNETES, strict=True)


FAULTS = {
    "a mistyped field": ("spec.rayClusterSpec.workerGroupSpecs.0.maxReplica", 3),
    "a bad enum": ("spec.rayClusterSpec.autoscalerOptions.upscalingMode", "Fast"),
    "a wrong type": ("spec.activeDeadlineSeconds", "6h"),
    "a rule of the CRD": ("spec.deletionStrategy", {"onSuccess": {"policy": "DeleteSelf"}, "deletionRules": [
        {"policy": "DeleteSelf", "condition": {"jobStatus": "SUCCEEDED"}}]}),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(prod: Rendered, schemas: Schemas, fault: str) -> None:
    job = deepcopy(prod.one("RayJob", "ray"))
    path, value = FAULTS[fault]
    *way, last = path.split(".")
    place = job
    for step in way:
        place = place[int(step) if step.isdigit() else step]
    place[last] = value
    assert schemas.faults(job), fault


def test_a_mistyped_field_of_a_builtin_object_is_found(prod: Rendered) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    broken = deepcopy(prod.one("StatefulSet", "chroma"))
    broken["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(validate.ValidationError):
        validate.validate(broken, KUBERNETES, strict=True)


def test_every_deployment_has_names_of_its_own(rendered: dict[str, Rendered]) -> None:
    assert set(rendered) == set(DEPLOYMENTS)
    for one in rendered.values():
        names = [
            (e["apiVersion"], e["kind"], e["metadata"].get("namespace"), e["metadata"]["name"]) for e in one.objects
        ]
        assert len(names) == len(set(names)), one.name


def test_everything_namespaced_is_in_the_one_namespace(deployment: Rendered) -> None:
    cluster_wide = {"Namespace", "PriorityClass", "StorageClass", "ResourceFlavor", "ClusterQueue"}
    for each in deployment.objects:
        namespace = each["metadata"].get("namespace")
        assert namespace == (None if each["kind"] in cluster_wide else "wiki-assets"), each["kind"]


def test_yaml_is_tidy() -> None:
    pytest.importorskip("yamllint", reason="pip install yamllint==1.38.0")
    rules = (
        "{extends: default, rules: {document-start: disable, line-length: {max: 140}, braces: {max-spaces-inside: 0},"
        " comments: {min-spaces-from-content: 1}, indentation: {indent-sequences: consistent}}}"
    )
    done = subprocess.run(
        [sys.executable, "-m", "yamllint", "-s", "-d", rules, str(K8S), str(REPOSITORY / "helm-values")],
        text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.stdout + done.stderr == ""


def test_each_file_parses(prod: Rendered) -> None:
    for path in [*K8S.rglob("*.yaml"), *(REPOSITORY / "helm-values").glob("*.yaml")]:
        assert parse(Path(path).read_text("utf-8")), path
