"""L3: our own rules over every object of every deployment, and over the pods of the Dagster chart.

Each rule has a control beside it: a copy of our manifests with that fault in it must be found.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from wiki_assets_tests.k8s import chart
from wiki_assets_tests.k8s.manifests import Manifest, Pod, Rendered, pods_of
from wiki_assets_tests.k8s.policies import (
    EXCEPTIONS,
    POD_RULES,
    Network,
    kuberay_takes_it,
    references_resolve,
    rights_are_few,
    says_how_far_it_scales,
    violations,
)

Values = dict[str, dict[str, Any]]
OBJECT_RULES = (kuberay_takes_it, says_how_far_it_scales, rights_are_few)


@pytest.mark.parametrize("rule", POD_RULES, ids=lambda rule: rule.__name__)
def test_no_pod_breaks_a_rule(rendered: dict[str, Rendered], values: Values, rule: Any) -> None:
    pods = {f"{one.name}: {pod}": pod for one in rendered.values() for pod in one.pods()}
    pods |= {f"{name}: {pod}": pod for name, each in values.items() for pod in chart.pods(each)}
    assert len(pods) > 80
    assert {where: found for where, pod in pods.items() if (found := violations(rule, pod))} == {}


@pytest.mark.parametrize("rule", OBJECT_RULES, ids=lambda rule: rule.__name__)
def test_no_object_breaks_a_rule(rendered: dict[str, Rendered], rule: Any) -> None:
    found = {
        f"{one.name}: {each['kind']}/{each['metadata']['name']}": faults
        for one in rendered.values()
        for each in one.objects
        if (faults := violations(rule, each))
    }
    assert found == {}


def test_every_reference_resolves(deployment: Rendered, values: Values) -> None:
    more = [*chart.pods(values[chart.values_of(deployment.name)]), *RUNS]
    assert list(references_resolve(deployment, more)) == []


def test_every_exception_is_needed(rendered: dict[str, Rendered], values: Values) -> None:
    pods = [pod for one in rendered.values() for pod in one.pods()]
    for name, pattern in EXCEPTIONS:
        (rule,) = [each for each in POD_RULES if each.__name__ == name]
        excused = {found for pod in pods for found in rule(pod)} - {v for pod in pods for v in violations(rule, pod)}
        assert excused, f"{name}: {pattern} excuses nothing any more"


# --- controls: the fault, and what is said of it

CHROMA, RAY = ("StatefulSet", "chroma"), ("RayJob", "ray")
CLUSTER = ("spec", "rayClusterSpec")
WORKER = (*CLUSTER, "workerGroupSpecs")
PLANTED: dict[str, tuple[tuple[str, str], tuple[Any, ...], Any]] = {
    "may run as root": (CHROMA, ("spec", "template", "spec", "securityContext", "runAsNonRoot"), False),
    "has no seccomp profile": (CHROMA, ("spec", "template", "spec", "securityContext", "seccompProfile"), {}),
    "may gain privileges": (CHROMA, ("spec", "template", "spec", "containers", 0, "securityContext"), {}),
    "hostNetwork is set": (CHROMA, ("spec", "template", "spec", "hostNetwork"), True),
    "has no memory limit": (CHROMA, ("spec", "template", "spec", "containers", 0, "resources", "limits"), {}),
    "chroma has no version": (CHROMA, ("spec", "template", "spec", "containers", 0, "image"), "chroma"),
    "uses the namespace's default account": (CHROMA, ("spec", "template", "spec", "serviceAccountName"), ""),
    "autoscaler may gain privileges": (RAY, (*CLUSTER, "autoscalerOptions", "securityContext"), {}),
    "has a CPU limit": (
        RAY,
        (*CLUSTER, "headGroupSpec", "template", "spec", "containers", 0, "resources", "limits", "cpu"),
        "1",
    ),
    "work would land on the head": (RAY, (*CLUSTER, "headGroupSpec", "rayStartParams", "num-cpus"), "2"),
    "num-cpus 4": (RAY, (*WORKER, 1, "rayStartParams", "num-cpus"), "4"),
    "num-gpus is 0": (RAY, (*WORKER, 1, "rayStartParams", "num-gpus"), "0"),
    "/dev/shm is smaller": (RAY, (*WORKER, 0, "rayStartParams", "object-store-memory"), "4294967296"),
    "does not tolerate": (RAY, (*WORKER, 1, "template", "spec", "tolerations"), []),
    "without using a GPU": (
        RAY,
        (*WORKER, 0, "template", "spec", "tolerations"),
        [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    ),
    "names no kind of node": (RAY, (*WORKER, 1, "template", "spec", "nodeSelector"), {}),
    "needs rayVersion 2.52": (RAY, (*CLUSTER, "rayVersion"), "2.9.0"),
    "more replicas at least": (RAY, (*WORKER, 0, "minReplicas"), 9),
    "labels belong to the group": (RAY, (*WORKER, 0, "rayStartParams", "labels"), "a=b"),
    "InteractiveMode has no retries": (RAY, ("spec", "backoffLimit"), 2),
    "must shut down": (RAY, ("spec", "shutdownAfterJobFinishes"), False),
    "alpha feature gate": (RAY, (*CLUSTER, "networkPolicy"), {}),
    "cpu-slots is": (RAY, (*WORKER, 0, "maxReplicas"), 9),
    "verbs *": (("Role", "wiki-run"), ("rules", 0, "verbs"), ["*"]),
    "may touch secrets": (("Role", "wiki-run"), ("rules", 0, "resources"), ["secrets"]),
}


@pytest.mark.parametrize("says", PLANTED)
def test_a_planted_fault_is_found(prod: Rendered, says: str) -> None:
    (kind, name), path, value = PLANTED[says]
    broken = planted(prod.one(kind, name), path, value)
    found = [fault for rule in OBJECT_RULES for fault in violations(rule, broken)]
    found += [fault for rule in POD_RULES for pod in pods_of(broken) for fault in violations(rule, pod)]
    assert any(says in fault for fault in found), found


def planted(manifest: Manifest, path: tuple[Any, ...], value: Any) -> Manifest:
    broken = deepcopy(manifest)
    place: Any = broken
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return broken


REFERENCES: dict[str, Callable[[list[Manifest]], None]] = {
    "no ServiceAccount wiki-chroma": lambda objects: remove(objects, "ServiceAccount", "wiki-chroma"),
    "no PriorityClass wiki-control": lambda objects: remove(objects, "PriorityClass", "wiki-control"),
    "no PersistentVolumeClaim wiki-data": lambda objects: remove(objects, "PersistentVolumeClaim", "wiki-data"),
    "no ConfigMap chroma-config": lambda objects: (
        [
            objects.remove(o)
            for o in list(objects)
            if o["kind"] == "ConfigMap" and o["metadata"]["name"].startswith("chroma-config")
        ]
        and None
    ),
    "selects nothing": lambda objects: remove(objects, "StatefulSet", "chroma"),
    "no Role wiki-run": lambda objects: remove(objects, "Role", "wiki-run"),
}


def remove(objects: list[Manifest], kind: str, name: str) -> None:
    objects[:] = [o for o in objects if (o["kind"], o["metadata"]["name"]) != (kind, name)]


@pytest.mark.parametrize("says", REFERENCES)
def test_a_dangling_reference_is_found(prod: Rendered, values: Values, says: str) -> None:
    objects = deepcopy(prod.objects)
    REFERENCES[says](objects)
    assert any(says in fault for fault in references_resolve(Rendered("broken", objects), RUNS))


# --- the network

WIKIMEDIA, METADATA, API_SERVER = "185.15.59.224", "169.254.169.254", "10.96.0.1"
OPERATOR = ("kuberay-system", {"app.kubernetes.io/name": "kuberay-operator"})
STRANGER = ("default", {"app": "anything"})
INGRESS = ("ingress", {})
WORK = {"wiki-assets/dagster": "yes", "wiki-assets/data": "yes", "wiki-assets/work": "yes"}
RUN = Pod("run", {**WORK, "wiki-assets/api-server": "yes", "app.kubernetes.io/component": "run_worker"}, {}, [])
STEP = Pod("step", {**RUN.labels, "app.kubernetes.io/component": "step_worker"}, {}, [])
DOWNLOAD = Pod("raw_dump's step", {**STEP.labels, "wiki-assets/egress": "dumps"}, {}, [])
RUNS = (RUN, STEP, DOWNLOAD)


def everybody(one: Rendered, values: Values) -> dict[str, Pod]:
    pods = [*one.pods(), *chart.pods(values[chart.values_of(one.name)]), *RUNS]
    return {str(pod): pod for pod in pods}


def test_only_downloads_reach_the_internet(rendered: dict[str, Rendered], values: Values) -> None:
    """And the code location, where its sensors shall look for dumps (components/sensors, in dev)."""
    for one in rendered.values():
        network = Network(one)
        out = {name for name, pod in everybody(one, values).items() if network.allows(pod.labels, WIKIMEDIA, 443)}
        sensors = {"Deployment/wiki-assets"} if one.name in ("dev", "prod+sensors") else set()
        downloads = {"CronJob/download"} if one.name != "dev" else set()
        assert out == {"raw_dump's step"} | sensors | downloads, one.name


def test_nobody_reaches_a_metadata_server_but_where_a_cloud_needs_it(
    rendered: dict[str, Rendered], values: Values
) -> None:
    for one in rendered.values():
        network = Network(one)
        for name, pod in everybody(one, values).items():
            allowed = one.name == "gke" and pod.labels.get("wiki-assets/data") == "yes"
            assert network.allows(pod.labels, METADATA, 80) == allowed, (one.name, name)


def test_a_stranger_reaches_nothing(deployment: Rendered, values: Values) -> None:
    network = Network(deployment)
    for name, pod in everybody(deployment, values).items():
        for port in (3000, 3030, 5432, 6379, 8000, 8080, 8265, 10001):
            assert not network.allows(STRANGER, pod.labels, port), (name, port)


def test_who_must_talk_may(prod: Rendered, values: Values) -> None:
    network = Network(prod)
    pods = everybody(prod, values)
    head, worker = pods["RayJob/ray head"].labels, pods["RayJob/ray cpu"].labels
    chroma, code = pods["StatefulSet/chroma"].labels, pods["Deployment/wiki-assets"].labels
    search = pods["RayService/search search"].labels
    database = {"wiki-assets/postgres": "yes"}
    dns = "169.254.20.10"
    must: list[tuple[Any, Any, int]] = [
        (STEP.labels, head, 10001),
        (STEP.labels, head, 8265),
        (STEP.labels, chroma, 8000),
        (OPERATOR, head, 8265),  # finding 8: else a RayJob ends only after a grace period
        (head, worker, 33333),
        (worker, head, 6379),
        (head, API_SERVER, 443),
        (RUN.labels, API_SERVER, 6443),
        (search, chroma, 8000),
        (OPERATOR, pods["RayService/search head"].labels, 8000),
        (INGRESS, search, 8000),
        (INGRESS, pods["Deployment/dagster-webserver-read-only"].labels, 3000),
        (pods["Deployment/dagster-webserver"].labels, code, 3030),
        (pods["Deployment/dagster-daemon"].labels, code, 3030),
        (pods["Deployment/dagster-daemon"].labels, database, 5432),
        (pods["CronJob/download"].labels, database, 5432),
        (code, database, 5432),
        (RUN.labels, database, 5432),
    ]
    assert [each for each in must if not network.allows(*each)] == []
    assert all(network.allows(pod.labels, dns, 53, "UDP") for pod in pods.values())


def test_who_need_not_talk_may_not(prod: Rendered, values: Values) -> None:
    network = Network(prod)
    pods = everybody(prod, values)
    head, worker = pods["RayJob/ray head"].labels, pods["RayJob/ray cpu"].labels
    chroma = pods["StatefulSet/chroma"].labels
    must_not: list[tuple[Any, Any, int]] = [
        (INGRESS, pods["Deployment/dagster-webserver"].labels, 3000),  # it has no login, and launches runs
        (INGRESS, chroma, 8000),
        (INGRESS, head, 8265),
        (worker, chroma, 8000),
        (worker, API_SERVER, 443),
        (chroma, API_SERVER, 443),
        (pods["Deployment/dagster-webserver"].labels, head, 10001),
        (pods["RayService/search search"].labels, {"wiki-assets/postgres": "yes"}, 5432),
        (("other", {"app.kubernetes.io/name": "kuberay-operator"}), head, 8265),
    ]
    assert [each for each in must_not if network.allows(*each)] == []


def test_chroma_behind_a_proxy_is_reached_by_nobody_else(rendered: dict[str, Rendered]) -> None:
    network = Network(rendered["prod+chroma-auth"])
    proxy, chroma = {"app.kubernetes.io/name": "chroma-proxy"}, {"app.kubernetes.io/name": "chroma"}
    assert network.allows(INGRESS, proxy, 8080)
    assert network.allows(proxy, chroma, 8000)
    assert not network.allows(INGRESS, chroma, 8000)


def test_redis_is_the_search_heads_alone(rendered: dict[str, Rendered], values: Values) -> None:
    one = rendered["prod+gcs-ft"]
    network = Network(one)
    redis = {"app.kubernetes.io/name": "redis"}
    reach = {name for name, pod in everybody(one, values).items() if network.allows(pod.labels, redis, 6379)}
    assert reach == {"RayService/search head"}
