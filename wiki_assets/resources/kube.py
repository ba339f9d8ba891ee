"""Is everything there that this deployment needs of its Kubernetes cluster? Each fault is named, with its remedy.

Reads only. What is checked is what our manifests say: the template of every run's RayJob, the settings, the volumes
and the Secrets that they name. Run it where `kubectl` works, with the rights of a person who may list.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wiki_assets.errors import SourceUnavailable

NAMESPACE = "wiki-assets"
SETTINGS = "wiki-assets-settings"
OVERLAY = "kubectl apply --server-side -k k8s/overlays/…"
_KUBERAY = (
    "kubectl apply --server-side -k 'github.com/ray-project/kuberay/ray-operator/config/crd?ref=v1.7.0', "
    "then helm install kuberay-operator with helm-values/kuberay-operator.yaml"
)
_POSTGRES = "wiki-postgres"
_SECRETS = {  # keys that must be in a Secret, and how to make it
    "ray-token": (
        ["auth_token"],
        'kubectl -n {0} create secret generic ray-token --from-literal=auth_token="$(openssl rand -hex 32)"',
    ),
    _POSTGRES: (
        ["username", "password", "postgresql-password"],
        "kubectl -n {0} create secret generic wiki-postgres --type=kubernetes.io/basic-auth "
        "--from-literal=username=dagster --from-literal=password=… --from-literal=postgresql-password=…",
    ),
    "object-store": (
        [],
        "kubectl -n {0} create secret generic object-store [--from-literal=AWS_ACCESS_KEY_ID=… …]; empty where the "
        "store knows the pod by its identity, or where there is none",
    ),
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: what was found; and if it is wrong, what to do."""

    about: str
    found: str
    remedy: str = ""

    @property
    def good(self) -> bool:
        """Whether nothing is to be done."""
        return not self.remedy


class Kube:
    """The API server, read by path, and what it holds by kind. A missing object is None."""

    def __init__(self, config: str | None = None, context: str | None = None) -> None:
        from kubernetes import client
        from kubernetes.config import ConfigException, load_incluster_config, new_client_from_config

        try:
            self._client = new_client_from_config(config_file=config, context=context)
        except ConfigException as error:
            try:
                load_incluster_config()
                self._client = client.ApiClient()
            except ConfigException:
                raise SourceUnavailable(
                    f"no Kubernetes cluster to ask: {str(error).splitlines()[0]}: set KUBECONFIG, or name --context"
                ) from None
        self.server = str(self._client.configuration.host)

    def get(self, path: str) -> dict[str, Any] | None:
        """An object or a list.

        Raises:
            SourceUnavailable: if the server does not answer, or refuses.
        """
        return self._ask("GET", path)

    def may(self, account: str, namespace: str, group: str, resource: str, verb: str) -> bool | None:
        """Whether a service account has a right; None if we may not ask."""
        attributes = {"namespace": namespace, "group": group, "resource": resource, "verb": verb}
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "LocalSubjectAccessReview",
            "metadata": {"namespace": namespace, "name": ""},
            "spec": {"user": f"system:serviceaccount:{namespace}:{account}", "resourceAttributes": attributes},
        }
        path = f"/apis/authorization.k8s.io/v1/namespaces/{namespace}/localsubjectaccessreviews"
        try:
            answer = self._ask("POST", path, body)
        except SourceUnavailable:
            return None
        return bool(answer and answer.get("status", {}).get("allowed"))

    def _ask(self, method: str, path: str, body: Any = None) -> dict[str, Any] | None:
        import urllib3
        from kubernetes.client import ApiException

        try:
            answer: Any = self._client.call_api(
                path,
                method,
                header_params={"Accept": "application/json"},
                body=body,
                response_type="object",
                auth_settings=["BearerToken"],
                _return_http_data_only=True,
                _request_timeout=15,
            )
        except ApiException as error:
            if error.status == 404:
                return None
            raise SourceUnavailable(
                f"{self.server}{path}: answers {error.status} {error.reason}: "
                "use an account that may read the namespace and list nodes"
            ) from None
        except urllib3.exceptions.HTTPError as error:
            raise SourceUnavailable(
                f"{self.server}: no API server answers ({type(error).__name__}): kubectl cluster-info, "
                "or name another --context"
            ) from None
        return answer


Check = Callable[[Kube, str], Iterator[Finding]]


def examine(kube: Kube, namespace: str = NAMESPACE, *, gpus_on_demand: bool = False) -> list[Finding]:
    """Look at everything; in the order in which one would put it right.

    Args:
        kube: the cluster.
        namespace: ours.
        gpus_on_demand: nodes with GPUs appear when they are asked for, so that none need be there now.

    Raises:
        SourceUnavailable: if the API server does not answer.
    """
    if kube.get(f"/api/v1/namespaces/{namespace}") is None:
        return [Finding(f"namespace {namespace}", "missing", OVERLAY)]
    checks: Sequence[Check] = (_profile, _operator, _template, _secrets, _volumes, _accounts, _chroma, _bucket)
    found = [finding for check in checks for finding in check(kube, namespace)]
    return found + list(_gpus(kube, namespace, gpus_on_demand))


def _profile(kube: Kube, namespace: str) -> Iterator[Finding]:
    labels = (kube.get(f"/api/v1/namespaces/{namespace}") or {})["metadata"].get("labels") or {}
    level = labels.get("pod-security.kubernetes.io/enforce", "none")
    yield Finding(
        f"namespace {namespace}",
        f"enforces Pod Security {level}",
        "" if level == "restricted" else f"{OVERLAY}, which labels it restricted",
    )


def _operator(kube: Kube, namespace: str) -> Iterator[Finding]:
    for kind in ("rayjobs", "rayclusters", "rayservices"):
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{kind}.ray.io"
        definition = kube.get(path)
        versions = [v["name"] for v in (definition or {}).get("spec", {}).get("versions", []) if v.get("served")]
        good = "v1" in versions
        yield Finding(f"CRD {kind}.ray.io", ", ".join(versions) or "missing", "" if good else _KUBERAY)


def _template(kube: Kube, namespace: str) -> Iterator[Finding]:
    """The RayJob that every run's is made like, if this deployment uses one."""
    setting = _settings(kube, namespace)
    if setting is None:
        yield Finding(f"ConfigMap {SETTINGS}", "missing", OVERLAY)
        return
    ray = setting.get("WIKI_ASSETS_RAY", "local")
    if not ray.startswith("rayjob/"):
        yield Finding("Ray", f"at {ray}")
        return
    _, space, name = ray.split("/")
    job = kube.get(f"/apis/ray.io/v1/namespaces/{space}/rayjobs/{name}")
    if job is None:
        yield Finding(f"RayJob {space}/{name}", "missing, and every run's is made like it", OVERLAY)
        return
    status = job.get("status") or {}
    if not job["spec"].get("suspend"):
        yield Finding(f"RayJob {space}/{name}", "is not suspended: it runs by itself", f"{OVERLAY}: spec.suspend: true")
    elif status.get("jobDeploymentStatus") == "ValidationFailed":
        yield Finding(
            f"RayJob {space}/{name}", f"KubeRay refuses it: {status.get('message')}", "correct k8s/base/ray.yaml"
        )
    elif not status:
        yield Finding(f"RayJob {space}/{name}", "no operator has looked at it", f"is KubeRay running? {_KUBERAY}")
    else:
        yield Finding(f"RayJob {space}/{name}", f"template, {status.get('jobDeploymentStatus', 'suspended')}")


def _secrets(kube: Kube, namespace: str) -> Iterator[Finding]:
    for name, (keys, how) in _SECRETS.items():
        remedy = how.format(namespace)
        secret = kube.get(f"/api/v1/namespaces/{namespace}/secrets/{name}")
        if secret is None:
            yield Finding(f"Secret {name}", "missing", remedy)
            continue
        lacking = [key for key in keys if not (secret.get("data") or {}).get(key)]
        found = f"has no {', '.join(lacking)}" if lacking else "there"
        yield Finding(f"Secret {name}", found, remedy if lacking else "")


def _volumes(kube: Kube, namespace: str) -> Iterator[Finding]:
    classes = {item["metadata"]["name"]: item for item in _items(kube, "/apis/storage.k8s.io/v1/storageclasses")}
    default = next((name for name, item in classes.items() if _is_default(item)), None)
    for claim in _items(kube, f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"):
        about = f"PersistentVolumeClaim {claim['metadata']['name']}"
        spec, phase = claim["spec"], (claim.get("status") or {}).get("phase", "Pending")
        name = spec.get("storageClassName") or default
        if phase == "Bound":
            yield Finding(about, f"bound, {'/'.join(spec['accessModes'])}, class {name}")
        elif name is None:
            yield Finding(about, "names no storage class, and the cluster has no default one", _class_remedy(classes))
        elif name not in classes:
            yield Finding(about, f"storage class {name} does not exist", _class_remedy(classes))
        elif classes[name].get("volumeBindingMode") == "WaitForFirstConsumer":
            yield Finding(about, f"waits for its first pod, class {name}")
        else:
            yield Finding(
                about,
                f"{phase}: class {name} ({classes[name]['provisioner']}) gives no {'/'.join(spec['accessModes'])}",
                f"kubectl -n {namespace} describe pvc {claim['metadata']['name']}; "
                "shared files need NFS, EFS, Filestore or Azure Files (k8s/components/nfs)",
            )


def _class_remedy(classes: Mapping[str, Any]) -> str:
    return f"this cluster has {', '.join(classes) or 'none'}: name one in your overlay, or add k8s/components/nfs"


def _is_default(item: Mapping[str, Any]) -> bool:
    annotations = item["metadata"].get("annotations") or {}
    return annotations.get("storageclass.kubernetes.io/is-default-class") == "true"


def _accounts(kube: Kube, namespace: str) -> Iterator[Finding]:
    for name in ("wiki-dagster", "wiki-run", "wiki-ray"):
        if kube.get(f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}") is None:
            yield Finding(f"ServiceAccount {name}", "missing: its pods would be accepted and never start", OVERLAY)
    for account, group, resource in (("wiki-dagster", "batch", "jobs"), ("wiki-run", "ray.io", "rayjobs")):
        allowed = kube.may(account, namespace, group, resource, "create")
        if allowed is not None:
            yield Finding(f"{account}", f"may {'' if allowed else 'not '}create {resource}", "" if allowed else OVERLAY)


def _chroma(kube: Kube, namespace: str) -> Iterator[Finding]:
    server = kube.get(f"/apis/apps/v1/namespaces/{namespace}/statefulsets/chroma")
    if server is None:
        yield Finding("Chroma", "no StatefulSet chroma", OVERLAY)
        return
    ready = (server.get("status") or {}).get("readyReplicas", 0)
    remedy = "" if ready else f"kubectl -n {namespace} describe pod chroma-0; kubectl -n {namespace} logs chroma-0"
    yield Finding("Chroma", "ready" if ready else "not ready", remedy)


def _bucket(kube: Kube, namespace: str) -> Iterator[Finding]:
    """The data root, where it is an object store; asked from here, with the credentials of here."""
    root = (_settings(kube, namespace) or {}).get("WIKI_ASSETS_ROOT", "")
    if "://" not in root or root.startswith("file://"):
        return
    bucket = "/".join(root.split("/")[:3])
    found, remedy = look_into(bucket)
    yield Finding(f"bucket {bucket}", found, remedy)


def look_into(bucket: str) -> tuple[str, str]:
    """What a bucket answers, and the remedy if it is not what it should be."""
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(bucket)
        system.invalidate_cache()
        system.ls(path, detail=False)
    except ImportError as error:
        return f"cannot be asked from here: {error}", "pip install the client it names, or run this in a pod of ours"
    except FileNotFoundError:
        return "does not exist", f"make it, or correct WIKI_ASSETS_ROOT in ConfigMap {SETTINGS}"
    except PermissionError as error:
        return f"refuses us: {error}", "its policy must let this account list, read and write it"
    except Exception as error:  # each store's client has classes of its own; they all mean: it did not answer
        return f"cannot be asked: {type(error).__name__}: {str(error)[:120]}", "are its address and credentials right?"
    return "answers", ""


def _gpus(kube: Kube, namespace: str, on_demand: bool) -> Iterator[Finding]:
    setting = (_settings(kube, namespace) or {}).get("WIKI_ASSETS_RAY", "local")
    if setting.startswith("rayjob/"):
        _, space, name = setting.split("/")
        job = kube.get(f"/apis/ray.io/v1/namespaces/{space}/rayjobs/{name}")
        groups = ((job or {}).get("spec", {}).get("rayClusterSpec") or {}).get("workerGroupSpecs", [])
    else:
        clusters = _items(kube, f"/apis/ray.io/v1/namespaces/{namespace}/rayclusters")
        groups = [group for cluster in clusters for group in cluster["spec"].get("workerGroupSpecs", [])]
    wanted = [group for group in groups if _gpu_limit(group) and group.get("maxReplicas")]
    if not wanted:
        yield Finding("GPUs", "none asked for: embeddings are made on CPUs")
        return
    nodes = _items(kube, "/api/v1/nodes")
    offer = {n["metadata"]["name"]: int(n["status"].get("allocatable", {}).get("nvidia.com/gpu", 0)) for n in nodes}
    for group in wanted:
        about = f"GPUs for workers {group['groupName']!r}"
        selector = group["template"]["spec"].get("nodeSelector") or {}
        fit = [n for n in nodes if selector.items() <= (n["metadata"].get("labels") or {}).items()]
        gpus = sum(offer[n["metadata"]["name"]] for n in fit)
        if gpus:
            yield Finding(about, f"{gpus} on {len(fit)} nodes")
        elif on_demand:
            yield Finding(about, "none now; nodes appear when asked for")
        elif sum(offer.values()):
            labels = ", ".join(f"{k}={v}" for k, v in selector.items())
            yield Finding(
                about, f"none on a node labelled {labels}", "label those nodes, or correct the overlay's nodeSelector"
            )
        else:
            yield Finding(
                about,
                f"no node of {len(nodes)} offers nvidia.com/gpu",
                "install the NVIDIA device plugin (GPU operator) on the GPU nodes; --gpus-on-demand where they scale "
                "from none; or maxReplicas: 0 for CPUs only",
            )


def _gpu_limit(group: Mapping[str, Any]) -> str | None:
    main = group["template"]["spec"]["containers"][0]
    return ((main.get("resources") or {}).get("limits") or {}).get("nvidia.com/gpu")


def _settings(kube: Kube, namespace: str) -> dict[str, str] | None:
    found = kube.get(f"/api/v1/namespaces/{namespace}/configmaps/{SETTINGS}")
    return None if found is None else found.get("data") or {}


def _items(kube: Kube, path: str) -> list[dict[str, Any]]:
    return (kube.get(path) or {}).get("items", [])
