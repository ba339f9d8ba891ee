"""What a real cluster showed that no schema says (ten findings), each with the test that would have found it.

 1  CPU tasks land on GPU workers            test_placement.TestOnFourNodes, and what the autoscaler launches
 2  the chart's account may not touch Ray    test_runs.test_each_verb_is_granted_and_none_besides
 3  chart pods refused by `restricted`       here; test_policies.test_no_pod_breaks_a_rule
 4  a Job of a missing account never starts  test_runs.test_every_name_in_the_jobs_is_one_that_exists
 5  a random token that no run can know      here; test_placement: who has no token is refused
 6  what dagster-ray wants and does not say  here; test_rayjob.test_a_runs_job_is_the_template_let_go
 7  kubernetes 36 breaks dagster-ray         here; test_rayjob.test_the_job_id_is_patched_with_the_pinned_client
 8  the operator must reach the head         test_policies.test_who_must_talk_may
 9  images that are gone or unpinned         here; policies.images_are_pinned
10  the Chroma chart's faults                here
"""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from wiki_assets_tests.k8s import chart
from wiki_assets_tests.k8s.manifests import Manifest, Rendered, cluster_spec, pods_of
from wiki_assets_tests.k8s.policies import fits_the_restricted_profile
from wiki_assets_tests.k8s.schemas import Schemas
from wiki_assets_tests.k8s.test_image import LOCK, PROJECT

Values = dict[str, dict[str, Any]]


def defaults(schemas: Schemas, name: str) -> dict[str, Any]:
    return yaml.safe_load((schemas.folder / "default-values" / name).read_text("utf-8"))


def test_3_the_charts_own_defaults_would_be_refused_and_ours_are_not(values: Values, schemas: Schemas) -> None:
    """Deployments are accepted all the same, and stay without pods."""
    theirs = defaults(schemas, "dagster-2026-06.yaml")
    theirs["dagsterWebserver"].setdefault("extraPrependedInitContainers", [])
    theirs["dagster-user-deployments"]["serviceAccount"] = {"name": ""}
    for pod in chart.pods(theirs):
        assert list(fits_the_restricted_profile(pod)), f"{pod}: the control finds nothing"
    for each in values.values():
        for pod in chart.pods(each):
            assert list(fits_the_restricted_profile(pod)) == [], pod


def test_5_one_secret_is_the_token_of_every_cluster_and_of_every_run(
    rendered: dict[str, Rendered], values: Values
) -> None:
    clusters = [spec for one in rendered.values() for each in one.objects if (spec := cluster_spec(each))]
    assert clusters
    for spec in clusters:
        assert spec["authOptions"] == {"mode": "token", "secretName": "ray-token"}
    for each in values.values():
        (own,) = each["dagster-user-deployments"]["deployments"]
        variables = {variable["name"]: variable for variable in own["env"]}
        assert variables["RAY_AUTH_MODE"]["value"] == "token"
        key = variables["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
        assert key == {"name": "ray-token", "key": "auth_token"}, "the key that KubeRay reads"


def test_6_camel_case_would_collide_and_is_turned(prod: Rendered) -> None:
    from dagster_ray.kuberay.resources.rayjob import InteractiveRayJobSpec

    from wiki_assets.resources.compute import rayjob_like

    context: Any = SimpleNamespace(log=logging.getLogger(__name__))
    template = prod.one("RayJob", "ray")
    made = rayjob_like(template)
    fields = {name: value for name, value in template["spec"].items() if name != "rayClusterSpec"}
    raw = InteractiveRayJobSpec(**fields, ray_cluster_spec=made.spec.ray_cluster_spec)
    with pytest.raises(ValueError, match="collides"):
        raw.to_k8s(context)
    assert made.to_k8s(context)["spec"]["activeDeadlineSeconds"] == template["spec"]["activeDeadlineSeconds"]


def test_6_the_driver_has_what_connecting_imports() -> None:
    from importlib.util import find_spec

    assert find_spec("pandas")
    assert find_spec("pyarrow")
    assert any(requirement.startswith("ray[default,data") for requirement in PROJECT["dependencies"])


def test_7_the_client_is_pinned_below_36() -> None:
    from importlib.metadata import version

    assert "kubernetes<36" in PROJECT["dependencies"]
    assert int(version("kubernetes").split(".")[0]) < 36
    assert int(LOCK["kubernetes"].split(".")[0]) < 36


def test_9_no_image_is_one_that_is_gone(rendered: dict[str, Rendered], values: Values, schemas: Schemas) -> None:
    gone = ("bitnami", "library/postgres:14.6", "busybox:1.28", "minideb")
    theirs = str(defaults(schemas, "dagster-2026-06.yaml"))
    assert "bitnami" in theirs, "the control: so the chart is by default"
    images = {c["image"] for one in rendered.values() for pod in one.pods() for c in pod.containers}
    images |= {c["image"] for each in values.values() for pod in chart.pods(each) for c in pod.containers}
    assert [image for image in images if any(word in image for word in gone)] == []
    for each in values.values():
        assert [name for name in ("postgresql", "rabbitmq", "redis", "flower") if each[name]["enabled"]] == []


def test_10_two_chromas_in_one_namespace_would_not_share_a_configuration(rendered: dict[str, Rendered]) -> None:
    for one in rendered.values():
        chroma: Manifest = one.one("StatefulSet", "chroma")
        (volume,) = [v for v in chroma["spec"]["template"]["spec"]["volumes"] if v["name"] == "config"]
        name = volume["configMap"]["name"]
        assert name.startswith("chroma-config-"), "named by its content, so that a change restarts the server"
        assert one.one("ConfigMap", name)


def test_10_chroma_is_the_rust_server_and_keeps_its_disk(prod: Rendered) -> None:
    chroma = prod.one("StatefulSet", "chroma")
    (pod,) = list(pods_of(chroma))
    assert pod.containers[0]["args"][0] == "run"
    assert chroma["spec"]["replicas"] == 1
    assert chroma["spec"]["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert pod.containers[0][probe]["httpGet"]["path"] == "/api/v2/heartbeat", "that a port is open says little"
