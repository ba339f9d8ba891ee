"""What every pod, reference and network path must be: each rule yields its violations, one line each.

`EXCEPTIONS` is the one place where a rule may be broken, with the reason.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from ipaddress import ip_address, ip_network
from typing import Any

from wiki_assets.resources.compute import CPU_SLOTS, GPU_SLOTS, GROUP
from wiki_assets_tests.k8s.manifests import Manifest, Pod, Rendered, cluster_spec

GPU_TAINT = "nvidia.com/gpu"
OUR_IMAGE = "registry.example.org/wiki-assets:"

# (rule, regular expression of the violation): why it may be
EXCEPTIONS = {
    ("images_are_pinned", rf"{OUR_IMAGE}[\w.-]+ has no digest"): (
        "our own image has a digest only once somebody has built and pushed it; k8s/set-image.sh takes it with the tag"
    ),
}

# Made by people or by charts, not by k8s/: docs/kubernetes.md says how.
OUTSIDE = {
    "Secret": {"ray-token", "wiki-postgres", "object-store", "redis", "chroma-token"},
    "ConfigMap": {"dagster-instance", "dagster-daemon-env"},
}

Rule = Callable[[Pod], Iterator[str]]


def quantity(text: str) -> float:
    """A Kubernetes quantity as a number: bytes, or cores."""
    found = re.fullmatch(r"([0-9.]+)(m|Ki|Mi|Gi|Ti)?", str(text))
    assert found, text
    scale = {"m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    return float(found[1]) * scale.get(found[2] or "", 1)


# --- one pod


def fits_the_restricted_profile(pod: Pod) -> Iterator[str]:
    """Pod Security `restricted`, and more: a root file system that cannot be written to."""
    whole = pod.spec.get("securityContext") or {}
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.spec.get(name):
            yield f"{name} is set"
    allowed = {"configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret", "csi", "downwardAPI"}
    for volume in pod.spec.get("volumes", []):
        if bad := set(volume) - {"name"} - allowed:
            yield f"volume {volume['name']} is a {', '.join(bad)}"
    for each in pod.containers:
        own = each.get("securityContext") or {}
        merged = {**whole, **own}
        if merged.get("runAsNonRoot") is not True:
            yield f"{each['name']} may run as root"
        if merged.get("runAsUser") == 0:
            yield f"{each['name']} runs as root"
        if (merged.get("seccompProfile") or {}).get("type") != "RuntimeDefault":
            yield f"{each['name']} has no seccomp profile"
        if own.get("allowPrivilegeEscalation") is not False:
            yield f"{each['name']} may gain privileges"
        if (own.get("capabilities") or {}).get("drop") != ["ALL"] or (own.get("capabilities") or {}).get("add"):
            yield f"{each['name']} keeps capabilities"
        if own.get("readOnlyRootFilesystem") is not True:
            yield f"{each['name']} may write to its root"
        if own.get("privileged"):
            yield f"{each['name']} is privileged"


def says_what_it_needs(pod: Pod) -> Iterator[str]:
    """CPU and memory asked for, memory bounded: the scheduler and the quota know, and one pod cannot starve a node."""
    for each in pod.containers:
        resources = each.get("resources") or {}
        asks, bounds = resources.get("requests") or {}, resources.get("limits") or {}
        for name in ("cpu", "memory"):
            if name not in asks:
                yield f"{each['name']} asks for no {name}"
        if "memory" not in bounds:
            yield f"{each['name']} has no memory limit"
        elif "memory" in asks and quantity(asks["memory"]) > quantity(bounds["memory"]):
            yield f"{each['name']} asks for more memory than its limit"
        if asks.get(GPU_TAINT) != bounds.get(GPU_TAINT):
            yield f"{each['name']}: GPU request and limit differ"


def images_are_pinned(pod: Pod) -> Iterator[str]:
    """By a tag that says what it is, and a digest that proves it; never latest."""
    for each in pod.containers:
        image = each.get("image", "")
        if not re.search(r":[\w.-]*\d[\w.-]*(@|$)", image) or ":latest" in image:
            yield f"{image} has no version"
        if not re.search(r"@sha256:[0-9a-f]{64}$", image):
            yield f"{image} has no digest"
        if image.startswith(("wiki-assets", "library/wiki-assets")):
            yield f"{image} is no registry's: `images` must be the last component"


def has_an_account_of_its_own(pod: Pod) -> Iterator[str]:
    if not pod.spec.get("serviceAccountName") and not pod.makes_account:
        yield "uses the namespace's default account"


def can_write_where_it_must(pod: Pod) -> Iterator[str]:
    """The root is read-only, so /tmp is a volume."""
    for each in pod.containers:
        if each["name"] in ("wait-gcs-ready",) or "busybox" in each.get("image", ""):
            continue
        if pod.kind != "plain" and not any(m["mountPath"] == "/tmp" for m in each.get("volumeMounts", [])):
            yield f"{each['name']} has no /tmp"
        names = {volume["name"] for volume in pod.spec.get("volumes", [])} | {"data"}
        for mount in each.get("volumeMounts", []):
            if mount["name"] not in names:
                yield f"{each['name']} mounts {mount['name']}, which is no volume of the pod"


# --- one Ray pod


def ray_agrees_with_its_pod(pod: Pod) -> Iterator[str]:
    """Ray's CPUs, GPUs and memory are the pod's: it schedules by what it is told, the kernel by what is there."""
    if pod.kind == "plain":
        return
    start = pod.group["rayStartParams"]
    main = pod.spec["containers"][0]
    asks, bounds = main["resources"]["requests"], main["resources"]["limits"]
    if "cpu" in bounds:
        yield "has a CPU limit"
    if asks["memory"] != bounds["memory"]:
        yield "memory request and limit differ: Ray takes the limit for its own"
    cpus, gpus = int(start["num-cpus"]), int(start["num-gpus"])
    if pod.kind == "ray-head" and (cpus or gpus):
        yield "work would land on the head"
    if gpus != int(bounds.get(GPU_TAINT, 0)):
        yield f"num-gpus is {gpus}, the pod has {bounds.get(GPU_TAINT, 0)}"
    if gpus and cpus != gpus:
        yield f"num-cpus {cpus}: an embedding task takes 1 CPU and 1 GPU, the rest would take CPU tasks"
    if not gpus and pod.kind == "ray-worker" and cpus > 2 * quantity(asks["cpu"]):
        yield f"num-cpus {cpus} is more than twice the CPUs of the pod"
    store = int(start["object-store-memory"])
    shm = next((v for v in pod.spec["volumes"] if v["name"] == "shm"), {}).get("emptyDir", {})
    if shm.get("medium") != "Memory" or quantity(shm.get("sizeLimit", "0")) < store:
        yield "/dev/shm is smaller than the object store"
    if store + quantity("2Gi") > quantity(bounds["memory"]):
        yield "the object store leaves less than 2 GiB of the memory"
    if not any(m["mountPath"] == "/dev/shm" for m in main["volumeMounts"]):
        yield "/dev/shm is not mounted"
    if pod.spec.get("restartPolicy") not in (None, "Never"):
        yield "autoscaler v2 wants restartPolicy Never"


def gpus_are_for_gpu_work(pod: Pod) -> Iterator[str]:
    """A GPU pod finds its node, and nothing else tolerates that node's taint."""
    tolerated = [t for t in pod.spec.get("tolerations", []) if t.get("key") in (GPU_TAINT, None)]
    if any(GPU_TAINT in (each.get("resources") or {}).get("limits", {}) for each in pod.containers):
        if not tolerated:
            yield "does not tolerate the taint of GPU nodes"
        if not pod.spec.get("nodeSelector") and not pod.spec.get("affinity"):
            yield "names no kind of node"
    elif tolerated:
        yield "tolerates the taint of GPU nodes, without using a GPU"


POD_RULES: tuple[Rule, ...] = (
    fits_the_restricted_profile,
    says_what_it_needs,
    images_are_pinned,
    has_an_account_of_its_own,
    can_write_where_it_must,
    ray_agrees_with_its_pod,
    gpus_are_for_gpu_work,
)


def violations(rule: Callable[..., Iterator[str]], *arguments: Any) -> list[str]:
    """What a rule finds and no exception covers."""
    excused = [pattern for name, pattern in EXCEPTIONS if name == rule.__name__]
    return [found for found in rule(*arguments) if not any(re.fullmatch(pattern, found) for pattern in excused)]


# --- a Ray cluster, as KubeRay's validation.go (v1.7.0) checks it


def kuberay_takes_it(manifest: Manifest) -> Iterator[str]:
    """What the operator refuses although the API server took it; the object then just stands there."""
    cluster = cluster_spec(manifest)
    if cluster is None:
        return
    name, kind, spec = manifest["metadata"]["name"], manifest["kind"], manifest["spec"]
    if len(name) > (53 if kind == "RayCluster" else 47) or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield f"name {name}"
    scales = cluster.get("enableInTreeAutoscaling", False)
    options = cluster.get("autoscalerOptions") or {}
    version = tuple(int(part) for part in str(cluster.get("rayVersion", "0")).split("."))
    if (cluster.get("authOptions") or {}).get("mode") == "token" and version < (2, 52, 0):
        yield f"token authentication needs rayVersion 2.52, not {cluster.get('rayVersion')}"
    groups = [("head", cluster["headGroupSpec"])] + [(g["groupName"], g) for g in cluster["workerGroupSpecs"]]
    if len({each for each, _ in groups}) != len(groups):
        yield "two groups of one name"
    for each, group in groups:
        environment = {e["name"] for e in group["template"]["spec"]["containers"][0].get("env", [])}
        if group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & group["rayStartParams"].keys():
            yield f"{each}: resources and rayStartParams"
        if "labels" in group["rayStartParams"]:
            yield f"{each}: labels belong to the group, not to rayStartParams"
        if environment & {"RAY_enable_autoscaler_v2", "RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME"}:
            yield f"{each}: an environment variable that KubeRay sets itself"
        if each != "head":
            if group["minReplicas"] > group["maxReplicas"]:
                yield f"{each}: more replicas at least than at most"
            if "idleTimeoutSeconds" in group and not (scales and options.get("version") == "v2"):
                yield f"{each}: idleTimeoutSeconds is the autoscaler's, version 2"
            if group.get("suspend") and scales:
                yield f"{each}: cannot be suspended and scale"
            if scales and kind != "RayService" and group["minReplicas"] != 0:
                yield f"{each}: keeps {group['minReplicas']} nodes when there is nothing to do"
    for gate in ("networkPolicy", "tlsOptions", "historyServerOptions"):
        if gate in cluster:
            yield f"{gate} needs an alpha feature gate"
    if (cluster.get("gcsFaultToleranceOptions") or {}).get("backend") == "rocksdb":
        yield "rocksdb needs an alpha feature gate"
    if kind == "RayJob":
        if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
            yield "a suspended job must shut down when it ends"
        if spec["submissionMode"] == "InteractiveMode" and spec.get("backoffLimit", 0):
            yield "InteractiveMode has no retries"
        if (spec.get("deletionStrategy") or {}).get("deletionRules") and spec.get("shutdownAfterJobFinishes"):
            yield "deletionRules and shutdownAfterJobFinishes"


def says_how_far_it_scales(manifest: Manifest) -> Iterator[str]:
    """The head's slots are what its groups can become; the driver fills its window by them."""
    cluster = cluster_spec(manifest)
    if cluster is None or manifest["kind"] == "RayService":
        return
    slots = {"cpu": 0, "gpu": 0}
    for group in cluster["workerGroupSpecs"]:
        name = group["groupName"]
        if group["labels"].get(GROUP) != name:
            yield f"{name}: label {GROUP} is {group['labels'].get(GROUP)}"
        slots[name] += group["maxReplicas"] * int(group["rayStartParams"][f"num-{name}s"])
    head = cluster["headGroupSpec"]["labels"]
    for name, label in (("cpu", CPU_SLOTS), ("gpu", GPU_SLOTS)):
        if head.get(label) != str(slots[name]):
            yield f"{label} is {head.get(label)}, its workers have {slots[name]}"


# --- references


def references_resolve(one: Rendered, more: Sequence[Pod] = ()) -> Iterator[str]:
    """Every name that an object uses is one that exists, here or in the list of what people make."""
    named = {(e["kind"], e["metadata"]["name"]) for e in one.objects}
    pods = [*one.pods(), *more]
    pods += [Pod("Cluster", each["spec"]["inheritedMetadata"]["labels"], {}, []) for each in one.of("Cluster")]

    def unknown(kind: str, name: str | None) -> bool:
        return name is not None and (kind, name) not in named and name not in OUTSIDE.get(kind, set())

    for pod in pods:
        for kind, name in _names(pod):
            if unknown(kind, name):
                yield f"{pod}: no {kind} {name}"
    for each in one.objects:
        label = f"{each['kind']}/{each['metadata']['name']}"
        spec = each.get("spec") or {}
        if each["kind"] == "RoleBinding":
            wanted = [("Role", each["roleRef"]["name"])] + [(s["kind"], s["name"]) for s in each["subjects"]]
            yield from (f"{label}: no {kind} {name}" for kind, name in wanted if unknown(kind, name))
        elif each["kind"] == "Service":
            chosen = [pod for pod in pods if spec["selector"].items() <= pod.labels.items()]
            ports = {p.get("name") for pod in chosen for c in pod.containers for p in c.get("ports", [])}
            for port in spec["ports"]:
                if isinstance(port["targetPort"], str) and port["targetPort"] not in ports:
                    yield f"{label}: no port {port['targetPort']}"
        elif each["kind"] in ("PodDisruptionBudget", "PodMonitor"):
            chosen = [pod for pod in pods if spec["selector"]["matchLabels"].items() <= pod.labels.items()]
            if not chosen:
                yield f"{label}: selects nothing"
            ports = {p.get("name") for pod in chosen for c in pod.containers for p in c.get("ports", [])}
            for endpoint in spec.get("podMetricsEndpoints", []):
                if endpoint["port"] not in ports:
                    yield f"{label}: no port {endpoint['port']}"
        elif each["kind"] == "NetworkPolicy":
            for selector in _selectors(spec):
                if selector and not any(selector.items() <= pod.labels.items() for pod in pods):
                    yield f"{label}: nothing is labelled {selector}"
        elif each["kind"] == "Cluster" and unknown("Secret", spec["bootstrap"]["initdb"]["secret"]["name"]):
            yield f"{label}: no Secret"
        cluster = cluster_spec(each)
        if cluster and unknown("Secret", (cluster.get("authOptions") or {}).get("secretName")):
            yield f"{label}: no Secret {cluster['authOptions']['secretName']}"


def _names(pod: Pod) -> Iterator[tuple[str, str | None]]:
    yield "ServiceAccount", pod.spec.get("serviceAccountName")
    yield "PriorityClass", pod.spec.get("priorityClassName")
    for volume in pod.spec.get("volumes", []):
        yield "PersistentVolumeClaim", (volume.get("persistentVolumeClaim") or {}).get("claimName")
        yield "ConfigMap", (volume.get("configMap") or {}).get("name")
        yield "Secret", (volume.get("secret") or {}).get("secretName")
    for each in pod.containers:
        for variable in each.get("env", []):
            source = variable.get("valueFrom") or {}
            yield "Secret", (source.get("secretKeyRef") or {}).get("name")
            yield "ConfigMap", (source.get("configMapKeyRef") or {}).get("name")
        for source in each.get("envFrom", []):
            yield "Secret", (source.get("secretRef") or {}).get("name")
            yield "ConfigMap", (source.get("configMapRef") or {}).get("name")


def _selectors(spec: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Labels of pods of this namespace that a network policy speaks of."""
    yield spec["podSelector"].get("matchLabels", {})
    for side in (*spec.get("ingress", []), *spec.get("egress", [])):
        for peer in side.get("from", side.get("to", [])):
            if "podSelector" in peer and "namespaceSelector" not in peer:
                yield peer["podSelector"].get("matchLabels", {})


def rights_are_few(manifest: Manifest) -> Iterator[str]:
    if manifest["kind"] in ("ClusterRole", "ClusterRoleBinding"):
        yield "reaches beyond its namespace"
    for rule in manifest.get("rules", []) if manifest["kind"] == "Role" else []:
        for part in ("apiGroups", "resources", "verbs"):
            if "*" in rule[part]:
                yield f"{part} *"
        if {"secrets", "pods/exec", "serviceaccounts", "roles"} & set(rule["resources"]):
            yield f"may touch {', '.join(rule['resources'])}"


# --- who may talk to whom

Peer = Mapping[str, str] | str  # labels of a pod of the namespace, or an address outside
Outsider = tuple[str, Mapping[str, str]]  # a namespace's name, and a pod's labels


class Network:
    """The policies of one deployment, asked as a node's firewall would."""

    def __init__(self, one: Rendered) -> None:
        self._policies = [each["spec"] for each in one.of("NetworkPolicy")]

    def allows(self, source: Peer | Outsider, target: Peer, port: int, protocol: str = "TCP") -> bool:
        leaves = isinstance(source, str | tuple) or self._side("Egress", source, target, port, protocol)
        arrives = isinstance(target, str) or self._side("Ingress", target, source, port, protocol)
        return leaves and arrives

    def _side(self, way: str, pod: Mapping[str, str], other: Peer | Outsider, port: int, protocol: str) -> bool:
        chosen = [
            policy
            for policy in self._policies
            if way in policy["policyTypes"] and policy["podSelector"].get("matchLabels", {}).items() <= pod.items()
        ]
        if not chosen:
            return True
        return any(
            self._port(rule, port, protocol) and self._peer(rule.get("from" if way == "Ingress" else "to"), other)
            for policy in chosen
            for rule in policy.get(way.lower(), [])
        )

    @staticmethod
    def _port(rule: Mapping[str, Any], port: int, protocol: str) -> bool:
        ports = rule.get("ports")
        return not ports or any(p["port"] == port and p.get("protocol", "TCP") == protocol for p in ports)

    @staticmethod
    def _peer(peers: Sequence[Mapping[str, Any]] | None, other: Peer | Outsider) -> bool:
        if peers is None:
            return True
        for peer in peers:
            pods = peer.get("podSelector", {}).get("matchLabels", {})
            spaces = peer.get("namespaceSelector", {}).get("matchLabels")
            if isinstance(other, str):
                found = "ipBlock" in peer and _inside(peer["ipBlock"], other)
            elif isinstance(other, tuple):
                known = {"kubernetes.io/metadata.name": other[0]}
                known |= {"wiki-assets/ingress": "yes"} if other[0] == "ingress" else {}
                found = spaces is not None and spaces.items() <= known.items() and pods.items() <= other[1].items()
            else:
                found = "podSelector" in peer and spaces is None and pods.items() <= other.items()
            if found:
                return True
        return False


def _inside(block: Mapping[str, Any], address: str) -> bool:
    found = ip_address(address)
    return found in ip_network(block["cidr"]) and not any(found in ip_network(n) for n in block.get("except", []))
