"""Our values as Helm merges them with the Dagster chart's defaults, and what the chart makes of them.

The chart itself is code and not here. `test_chart.py` compares what is laid out below with the real chart's output
where that is given (`WIKI_ASSETS_TEST_CHARTS`), so that everything else can be tested without it.
"""

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from wiki_assets_tests.conftest import REPOSITORY
from wiki_assets_tests.k8s.manifests import Manifest, Pod, parse

VALUES = REPOSITORY / "helm-values"
RELEASE, NAMESPACE = "dagster", "wiki-assets"
PROD = ("dagster.yaml",)  # data on a volume, logs in a bucket
ON_VOLUME = ("dagster.yaml", "logs-on-volume.yaml")
DEV = (*ON_VOLUME, "dev.yaml")
OBJECTS = ("dagster.yaml", "object-storage.yaml")
AZURE = (*OBJECTS, "logs-on-azure.yaml")
COMBINATIONS = {"mixed": PROD, "on-volume": ON_VOLUME, "dev": DEV, "object-storage": OBJECTS, "azure": AZURE}


def values_of(deployment: str) -> str:
    """Which combination goes with an overlay."""
    if deployment == "dev":
        return "dev"
    return "object-storage" if deployment in ("gke", "eks", "aks", "prod+object-storage") else "on-volume"


def values_chart(folder: Path, defaults: Path, schema: Path | None) -> Path:
    """A chart that has another's default values and schema, and only shows what they come to."""
    (folder / "templates").mkdir(parents=True)
    (folder / "Chart.yaml").write_text("apiVersion: v2\nname: shown\nversion: 0.0.1\n")
    (folder / "values.yaml").write_text(defaults.read_text("utf-8"))
    (folder / "templates" / "values.yaml").write_text("{{ .Values | toYaml }}\n")
    if schema:
        (folder / "values.schema.json").write_text(schema.read_text("utf-8"))
    return folder


def merged(helm: Path, chart: Path, files: Sequence[str]) -> dict[str, Any]:
    """What Helm hands to the templates; it refuses values that do not fit the schema."""
    command = [str(helm), "template", RELEASE, str(chart), "--namespace", NAMESPACE]
    command += [part for file in files for part in ("-f", str(VALUES / file))]
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    (found,) = parse(done.stdout)
    return found


def render(helm: Path, chart: Path, files: Sequence[str]) -> list[Manifest]:
    """The real chart's objects. Its schema refers to web addresses, so Helm is told to leave it."""
    command = [str(helm), "template", RELEASE, str(chart), "--namespace", NAMESPACE, "--skip-schema-validation"]
    command += [part for file in files for part in ("-f", str(VALUES / file))]
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return parse(done.stdout)


# --- what the chart makes of them


def image(of: Mapping[str, Any]) -> str:
    return f"{of['repository']}:{of['tag']}"


def pods(values: Mapping[str, Any]) -> Iterator[Pod]:
    """Webservers, daemon and code location, as the chart's templates write them."""
    user = values["dagster-user-deployments"]
    waits = [
        {
            "name": f"init-user-deployment-{each['name']}",
            "image": image(values["busybox"]["image"]),
        }
        for each in user["deployments"]
    ]
    web, daemon = values["dagsterWebserver"], values["dagsterDaemon"]
    names = ["dagster-webserver"] + (["dagster-webserver-read-only"] if web["enableReadOnly"] else [])
    components = [(web, name, {"component": name}) for name in names]
    components += [(daemon, "dagster-daemon", {"component": "dagster-daemon", "deployment": "daemon"})]
    for own, name, labels in components:
        first = own["extraPrependedInitContainers"]
        wait = [
            {**w, "securityContext": own["securityContext"], "resources": own["initContainerResources"]} for w in waits
        ]
        main = container("dagster", own, values)
        volumes = [{"name": "dagster-instance", "configMap": {"name": f"{RELEASE}-instance"}}, *own["volumes"]]
        yield Pod(
            f"Deployment/{name}",
            {**selector("dagster"), **labels, **own["labels"]},
            {
                "serviceAccountName": values["serviceAccount"]["name"],
                "securityContext": own["podSecurityContext"],
                "volumes": volumes,
            },
            [*first, *wait, main],
        )
    for own in user["deployments"]:
        main = container("dagster-user-deployments", own, values)
        labels = {**selector("dagster-user-deployments"), "component": "user-deployments", "deployment": own["name"]}
        yield Pod(
            f"Deployment/{own['name']}",
            {**labels, **own["labels"]},
            {
                "serviceAccountName": user["serviceAccount"]["name"],
                "securityContext": own["podSecurityContext"],
                "volumes": own["volumes"],
            },
            [main],
        )


def selector(name: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": name, "app.kubernetes.io/instance": RELEASE}


def password(values: Mapping[str, Any]) -> dict[str, Any]:
    key = {"name": values["global"]["postgresqlSecretName"], "key": "postgresql-password"}
    return {"name": "DAGSTER_PG_PASSWORD", "valueFrom": {"secretKeyRef": key}}


def container(name: str, own: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The main container of one of the chart's own pods."""
    return {
        "name": name,
        "image": image(own["image"]),
        "securityContext": own["securityContext"],
        "resources": own["resources"],
        "env": [password(values), *own["env"]],
        "envFrom": sources(own),
        "volumeMounts": list(own["volumeMounts"]),
    }


def sources(own: Mapping[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"configMapRef": each} for each in own["envConfigMaps"]]
    return found + [{"secretRef": each} for each in own["envSecrets"]]


def container_context(values: Mapping[str, Any]) -> dict[str, Any]:
    """What the code location tells Dagster of the pods of its runs."""
    (own,) = values["dagster-user-deployments"]["deployments"]
    return {
        "k8s": {
            "image_pull_policy": own["image"]["pullPolicy"],
            "env_config_maps": [each["name"] for each in own["envConfigMaps"]],
            "env_secrets": [each["name"] for each in own["envSecrets"]],
            "volume_mounts": own["volumeMounts"],
            "volumes": own["volumes"],
            "labels": own["labels"],
            "resources": own["resources"],
            "namespace": NAMESPACE,
            "service_account_name": values["dagster-user-deployments"]["serviceAccount"]["name"],
            "env": own["env"],
            "run_k8s_config": {
                "pod_spec_config": {
                    "automount_service_account_token": True,
                    "security_context": own["podSecurityContext"],
                }
            },
        }
    }


def dagster_yaml(values: Mapping[str, Any]) -> dict[str, Any]:
    """The instance's configuration."""
    postgres = {
        "postgres_db": {
            "username": values["postgresql"]["postgresqlUsername"],
            "password": {"env": "DAGSTER_PG_PASSWORD"},
            "hostname": values["postgresql"]["postgresqlHost"],
            "db_name": values["postgresql"]["postgresqlDatabase"],
            "port": values["postgresql"]["service"]["port"],
            "params": values["postgresql"]["postgresqlParams"],
        }
    }
    storage = {
        f"{name}_storage": {
            "module": f"dagster_postgres.{module}",
            "class": f"Postgres{title}Storage",
            "config": postgres,
        }
        for name, module, title in (
            ("run", "run_storage", "Run"),
            ("event_log", "event_log", "EventLog"),
            ("schedule", "schedule_storage", "Schedule"),
        )
    }
    launcher = values["runLauncher"]["config"]["k8sRunLauncher"]
    pod = launcher["runK8sConfig"]
    monitoring, retries = values["dagsterDaemon"]["runMonitoring"], values["dagsterDaemon"]["runRetries"]
    coordinator = values["dagsterDaemon"]["runCoordinator"]["config"]["queuedRunCoordinator"]
    threads = {
        f"{name}": {"use_threads": True, "num_workers": values["dagsterDaemon"][name]["numWorkers"]}
        for name in ("sensors", "schedules")
    }
    return {
        **storage,
        **threads,
        "scheduler": {"module": "dagster._core.scheduler", "class": "DagsterDaemonScheduler"},
        "run_launcher": {
            "module": "dagster_k8s",
            "class": "K8sRunLauncher",
            "config": {
                "load_incluster_config": launcher["loadInclusterConfig"],
                "job_namespace": NAMESPACE,
                "image_pull_policy": launcher["imagePullPolicy"],
                "service_account_name": values["serviceAccount"]["name"],
                "dagster_home": values["global"]["dagsterHome"],
                "instance_config_map": f"{RELEASE}-instance",
                "postgres_password_secret": values["global"]["postgresqlSecretName"],
                "labels": launcher["labels"],
                "run_k8s_config": {
                    "container_config": pod["containerConfig"],
                    "pod_spec_config": pod["podSpecConfig"],
                    "pod_template_spec_metadata": pod["podTemplateSpecMetadata"],
                    "job_spec_config": pod["jobSpecConfig"],
                },
            },
        },
        "run_coordinator": {
            "module": "dagster._core.run_coordinator",
            "class": "QueuedRunCoordinator",
            "config": {
                "dequeue_interval_seconds": coordinator["dequeueIntervalSeconds"],
                "dequeue_use_threads": coordinator["dequeueUseThreads"],
                "dequeue_num_workers": coordinator["dequeueNumWorkers"],
            },
        },
        "compute_logs": compute_logs(values),
        "run_monitoring": {
            "enabled": monitoring["enabled"],
            "start_timeout_seconds": monitoring["startTimeoutSeconds"],
            "cancel_timeout_seconds": monitoring["cancelTimeoutSeconds"],
            "max_runtime_seconds": monitoring["maxRuntimeSeconds"],
            "max_resume_run_attempts": monitoring["maxResumeRunAttempts"],
            "poll_interval_seconds": monitoring["pollIntervalSeconds"],
            "free_slots_after_run_end_seconds": monitoring["freeSlotsAfterRunEndSeconds"],
        },
        "run_retries": {
            "enabled": retries["enabled"],
            "max_retries": retries["maxRetries"],
            "retry_on_asset_or_op_failure": retries["retryOnAssetOrOpFailure"],
        },
        "telemetry": {"enabled": values["telemetry"]["enabled"]},
        "concurrency": {
            "pools": {"granularity": values["concurrency"]["pools"]["granularity"]},
            "runs": {"max_concurrent_runs": values["concurrency"]["runs"]["maxConcurrentRuns"]},
        },
        "retention": {
            name: {
                "purge_after_days": (
                    {kind: days["purgeAfterDays"][kind] for kind in ("failure", "skipped", "started", "success")}
                    if isinstance((days := values["retention"][key])["purgeAfterDays"], dict)
                    else days["purgeAfterDays"]
                )
            }
            for name, key in (("sensor", "sensor"), ("schedule", "schedule"), ("auto_materialize", "autoMaterialize"))
        },
    }


def compute_logs(values: Mapping[str, Any]) -> dict[str, Any]:
    manager = values["computeLogManager"]
    if manager["type"] == "S3ComputeLogManager":
        own = manager["config"]["s3ComputeLogManager"]
        return {
            "module": "dagster_aws.s3.compute_log_manager",
            "class": "S3ComputeLogManager",
            "config": {
                "bucket": own["bucket"],
                "local_dir": own["localDir"],
                "prefix": own["prefix"],
                "verify": True,
                "skip_empty_files": own["skipEmptyFiles"],
                "upload_interval": own["uploadInterval"],
            },
        }
    assert manager["type"] == "LocalComputeLogManager", manager["type"]
    own = manager["config"]["localComputeLogManager"]
    return {
        "module": "dagster._core.storage.local_compute_log_manager",
        "class": "LocalComputeLogManager",
        "config": {"base_dir": own["baseDir"], "polling_timeout": own["pollingTimeout"]},
    }


def write_instance(folder: Path, config: Mapping[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dagster.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(config))))
    return folder
