"""Which Ray this deployment runs on: its own on this machine, a cluster by its address, or a RayJob for each run.

Starting, joining and leaving Ray is dagster-ray's; this chooses, and tells the fan-out where a task may run.

A cluster that scales from nothing says what it can become by labels on its nodes, for Ray itself only tells what is
there now: every node names its group, and the head, which is always there, the CPUs and GPUs of the workers at most.
"""

import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any
from urllib.parse import urlsplit

from dagster_ray import Lifecycle, LocalRay, RayResource
from dagster_ray.kuberay.configs import RayClusterSpec
from dagster_ray.kuberay.resources.rayjob import InteractiveRayJobConfig, InteractiveRayJobSpec, KubeRayInteractiveJob
from dagster_ray.kuberay.utils import to_camel_case
from pydantic import Field
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_fixed

from wiki_assets.errors import BadRequest, WikiAssetsError
from wiki_assets.resources.liveness import leave_ray
from wiki_assets.settings import Settings, shown

if "ray" not in sys.modules:  # which reads this once, when it is imported
    os.environ.setdefault("RAY_AUTH_MODE", "token")

GROUP = "wiki-assets/group"  # of every node: head, cpu or gpu
CPU_SLOTS = "wiki-assets/cpu-slots"  # of the head: CPUs of all cpu workers at most
GPU_SLOTS = "wiki-assets/gpu-slots"  # of the head: GPUs of all gpu workers at most
QUEUE = "wiki-assets/queue"  # annotation of the template: the Kueue queue of the jobs made from it

_OBJECT_STORE_BYTES = 200 << 20  # workers pass keys and counts, not data
_RAYJOB = "rayjob/"
_START_S = 30 * 60  # a node that is bought first, and an image that it has not seen
_CONNECT_S = 5
_NESTED = ("authOptions", "upgradeStrategy", "tlsOptions", "networkPolicy", "historyServerOptions")


def ray_resource(settings: Settings) -> RayResource:
    """The Ray of this deployment, for a run that starts and leaves it by itself.

    Raises:
        BadRequest: if the setting is none of the three.
    """
    options = _init_options(settings)
    if settings.ray == "local":
        return OwnRay(ray_init_options=options)
    if settings.ray.startswith(_RAYJOB):
        namespace, name = _rayjob(settings.ray)
        return RayJobPerRun(template_namespace=namespace, template_name=name, ray_init_options=options)
    return SharedRay(address=settings.ray, ray_init_options=options)


def joined_ray() -> RayResource:
    """The Ray that this process has joined already, for several runs one after the other."""
    return LocalRay(lifecycle=Lifecycle(create=False, wait=False, connect=False, cleanup="never"))


@contextmanager
def ray_session(settings: Settings) -> Iterator[None]:
    """Start or join Ray once for everything inside.

    Raises:
        BadRequest: if the setting asks for a Ray of each run.
        WikiAssetsError: if nothing answers at the address.
    """
    import ray

    if settings.ray.startswith(_RAYJOB):
        raise BadRequest(
            f"WIKI_ASSETS_RAY={shown(settings.ray)!r} is for runs that Dagster launches: "
            "materialize there, or set it to local or to the address of a cluster"
        )
    if settings.ray == "local":
        ray.init(address=_own_address(), **_init_options(settings))
    else:
        check_answers(settings.ray)
        _patiently(ray.init)(address=settings.ray, **_init_options(settings))
    try:
        yield
    finally:
        leave_ray()


def _rayjob(setting: str) -> tuple[str, str]:
    parts = setting.removeprefix(_RAYJOB).split("/")
    if len(parts) != 2 or not all(parts):
        raise BadRequest(
            f"WIKI_ASSETS_RAY={shown(setting)!r}: expected rayjob/NAMESPACE/NAME, such as rayjob/wiki-assets/ray"
        )
    return parts[0], parts[1]


def _init_options(settings: Settings) -> dict[str, Any]:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a task without GPUs still sees their driver
    os.environ.setdefault("RAY_task_oom_retries", "3")  # without it, Ray tries again for ever where memory is short
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning"}
    if settings.ray != "local" or os.environ.get("RAY_ADDRESS"):
        return common
    return {
        **common,
        "num_cpus": settings.cpus or os.cpu_count() or 1,
        "include_dashboard": False,
        "object_store_memory": _OBJECT_STORE_BYTES,
    }


class OwnRay(LocalRay):
    """A Ray of this process; or that of `RAY_ADDRESS`, if the environment names one."""

    @property
    def ray_address(self) -> str | None:  # type: ignore[override]
        """What `ray.init` is told."""
        return _own_address()


def _own_address() -> str | None:
    """`local`, since left to itself Ray joins any cluster that somebody has started on this machine."""
    return None if os.environ.get("RAY_ADDRESS") else "local"


# --- a cluster by its address


class SharedRay(LocalRay):
    """A Ray cluster that is there already: `ray://head:10001` from outside, `head:6379` from inside."""

    address: str = Field(description="Of the cluster's head")

    @property
    def ray_address(self) -> str:  # type: ignore[override]
        """Where `ray.init` connects to."""
        return self.address

    def connect(self, context: Any) -> Any:  # type: ignore[override]
        """Join the cluster; a driver that connects to nothing would wait for minutes."""
        check_answers(self.address)
        return _patiently(super().connect)(context)


def check_answers(address: str) -> None:
    """Knock at a Ray head.

    Raises:
        BadRequest: if this is no address.
        WikiAssetsError: if nobody listens there.
    """
    url = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = url.hostname, url.port or (10001 if url.scheme == "ray" else None)
    except ValueError:
        host, port = None, None
    if url.scheme not in ("", "ray") or not host or not port:
        raise BadRequest(
            f"WIKI_ASSETS_RAY={shown(address)!r}: expected local, ray://HOST:10001, HOST:6379 or rayjob/NAMESPACE/NAME"
        )
    try:
        socket.create_connection((host, port), timeout=_CONNECT_S).close()
    except OSError as error:
        raise WikiAssetsError(
            f"{shown(address)}: no Ray answers ({error}): is the cluster up, and may this pod reach it? "
            "kubectl get raycluster,networkpolicy"
        ) from None


def _patiently(connect: Any) -> Any:
    """Ray Client gives up while a loaded head still starts its server for us; ask three times."""
    again = retry_if_exception_type((ConnectionError, TimeoutError))
    return retry(stop=stop_after_attempt(3), wait=wait_fixed(5), retry=again, reraise=True)(connect)


# --- a RayJob of each run


class RayJobPerRun(KubeRayInteractiveJob):
    """A Ray cluster of each run, made like a suspended RayJob that stands in the cluster as their template.

    As `kubectl create job --from=cronjob/…`: overlays patch one object, the operator checks it before any run, and
    the namespace decides what a run may use.
    """

    template_namespace: str = Field(description="Where the template is, and where the jobs are made")
    template_name: str = Field(description="The suspended RayJob")
    timeout: float = Field(default=_START_S, description="Until the head is ready, seconds")

    @contextmanager
    def yield_for_execution(self, context: Any) -> Iterator[KubeRayInteractiveJob]:  # type: ignore[override]
        """Make the job, connect to its cluster, and let KubeRay clean up."""
        where = f"{self.template_namespace}/{self.template_name}"
        template = self.client.get(self.template_name, self.template_namespace)
        if not template:
            raise WikiAssetsError(
                f"there is no RayJob {where} to make this run's like: kubectl apply -k k8s/overlays/…, "
                "or correct WIKI_ASSETS_RAY"
            )
        status = template.get("status", {})
        if status.get("jobDeploymentStatus") == "ValidationFailed":
            raise WikiAssetsError(f"KubeRay refuses RayJob {where}: {status.get('message', 'no message')}: correct it")
        job = _PatientJob(
            ray_job=rayjob_like(template),
            client=self.client,
            timeout=self.timeout,
            poll_interval=self.poll_interval,
            ray_init_options=self.ray_init_options,
            lifecycle=self.lifecycle,
            redis_port=self.redis_port,
        )
        with job.yield_for_execution(context) as connected:
            yield connected


class _PatientJob(KubeRayInteractiveJob):
    def connect(self, context: Any) -> Any:  # type: ignore[override]
        return _patiently(super().connect)(context)


def rayjob_like(template: Mapping[str, Any]) -> InteractiveRayJobConfig:
    """What to send for a run, given the template as the API server returns it.

    Only what makes it a template goes: its name, that it is suspended, and what the operator noted on it. A template
    annotated with `wiki-assets/queue` gives its jobs to that Kueue queue; a label would give away the template.
    """
    spec = deepcopy(dict(template["spec"]))
    for ours in ("suspend", "jobId", "entrypoint"):
        spec.pop(ours, None)
    spec["submissionMode"] = "InteractiveMode"
    cluster = spec.pop("rayClusterSpec")
    for key in _NESTED:
        if key in cluster:
            cluster[key] = {_snake(name): value for name, value in cluster[key].items()}
    metadata = template["metadata"]
    annotations = dict(metadata.get("annotations") or {})
    labels = dict(metadata.get("labels") or {})
    if queue := annotations.get(QUEUE):
        labels["kueue.x-k8s.io/queue-name"] = queue
    return InteractiveRayJobConfig(
        metadata={"namespace": metadata["namespace"], "labels": labels},
        spec=InteractiveRayJobSpec(
            **_fields(InteractiveRayJobSpec, spec),
            ray_cluster_spec=RayClusterSpec(**_fields(RayClusterSpec, cluster)),
        ),
    )


def _fields(model: Any, spec: Mapping[str, Any]) -> dict[str, Any]:
    """A Kubernetes spec as dagster-ray takes it: declared fields in snake case, others as they are."""
    names = {to_camel_case(name): name for name in model.model_fields}
    return {names.get(key, key): value for key, value in spec.items()}


def _snake(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name)


# --- where a task may run


def capacity() -> dict[str, float]:
    """CPUs and GPUs of the Ray that this process has joined: what is there, or what its head says it can become."""
    import ray

    found = {name: ray.cluster_resources().get(name, 0.0) for name in ("CPU", "GPU")}
    for node in _alive():
        for name, label in (("CPU", CPU_SLOTS), ("GPU", GPU_SLOTS)):
            found[name] = max(found[name], float(node["Labels"].get(label, 0)))
    return found


def placement(num_gpus: float) -> dict[str, Any]:
    """Options that keep a task in its group of workers, where the cluster has groups; none elsewhere.

    A GPU worker has CPUs to feed its GPU with, and Ray would fill them with any task; a task without GPUs must not
    keep such a node, or wake one.
    """
    if not any(GROUP in node["Labels"] for node in _alive()):
        return {}
    return {"label_selector": {GROUP: "gpu" if num_gpus else "cpu"}}


def _alive() -> Iterator[dict[str, Any]]:
    import ray

    return (node for node in ray.nodes() if node["Alive"])
