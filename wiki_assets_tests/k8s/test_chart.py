"""L1, L2 and L4: our values fit the charts, and Dagster takes the configuration that comes of them."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from wiki_assets_tests.k8s import chart
from wiki_assets_tests.k8s.manifests import parse, pods_of
from wiki_assets_tests.k8s.schemas import Schemas

Values = dict[str, dict[str, Any]]


@pytest.mark.parametrize("name", chart.COMBINATIONS)
def test_the_code_locations_values_fit_their_own_schema(values: Values, schemas: Schemas, name: str) -> None:
    """Helm checked the chart's; the subchart's it checks only with the subchart at hand."""
    from jsonschema import Draft202012Validator

    folder = schemas.folder
    schema = yaml.safe_load((folder / "dagster-helm-2026-06/dagster-user-deployments.values.schema.json").read_text())
    defaults = yaml.safe_load((folder / "default-values/dagster-user-deployments-2026-06.yaml").read_text())
    ours = deep_merged(defaults, values[name]["dagster-user-deployments"])
    faults = [f"{list(e.absolute_path)}: {e.message}" for e in Draft202012Validator(schema).iter_errors(ours)]
    assert faults == []


def deep_merged(known: Any, mine: Any) -> Any:
    if isinstance(known, Mapping) and isinstance(mine, Mapping):
        return {**known, **{name: deep_merged(known.get(name), value) for name, value in mine.items()}}
    return mine


def test_a_value_of_the_wrong_type_is_refused(helm: Path, schemas: Schemas, tmp_path: Path) -> None:
    folder = schemas.folder
    shown = chart.values_chart(
        tmp_path / "chart",
        folder / "default-values/dagster-2026-06.yaml",
        folder / "dagster-helm-2026-06/dagster.values.schema.json",
    )
    (tmp_path / "wrong.yaml").write_text("dagsterWebserver: {replicaCount: two}")
    with pytest.raises(AssertionError, match="replicaCount"):
        chart.merged(helm, shown, ["dagster.yaml", str(tmp_path / "wrong.yaml")])


@pytest.mark.parametrize(
    ("ours", "defaults"),
    [
        *(
            (file, "dagster-2026-06.yaml")
            for file in dict.fromkeys(f for files in chart.COMBINATIONS.values() for f in files)
        ),
        ("kuberay-operator.yaml", "kuberay-operator-1.7.0.yaml"),
    ],
)
def test_every_key_is_one_that_the_chart_reads(schemas: Schemas, ours: str, defaults: str) -> None:
    """Helm takes a mistyped key in silence."""
    known = yaml.safe_load((schemas.folder / "default-values" / defaults).read_text("utf-8"))
    mine = yaml.safe_load((chart.VALUES / ours).read_text("utf-8"))
    assert list(unknown_keys(mine, known, "")) == []


# Not among the default values, but in the schema and the templates.
OPTIONAL = {
    ".dagsterDaemon.runMonitoring.cancelTimeoutSeconds",
    ".dagsterDaemon.runMonitoring.maxRuntimeSeconds",
    ".dagsterDaemon.runRetries.retryOnAssetOrOpFailure",
    ".dagster-user-deployments.rbacEnabled",
    ".dagster-user-deployments.serviceAccount",
}
KUBERNETES = {"resources", "readinessProbe", "livenessProbe", "startupProbe"}  # Kubernetes' own fields


def unknown_keys(mine: Any, known: Any, path: str) -> Any:
    if isinstance(mine, Mapping) and isinstance(known, Mapping) and known:
        for name, value in mine.items():
            where = f"{path}.{name}"
            if where in OPTIONAL or path.rpartition(".")[2] in KUBERNETES:
                continue
            if name not in known:
                yield where
            else:
                yield from unknown_keys(value, known[name], where)
    elif isinstance(mine, list) and isinstance(known, list) and known and isinstance(known[0], Mapping):
        for value in mine:
            yield from unknown_keys(value, known[0], f"{path}[]")


# --- Dagster's own reading of it


@pytest.mark.parametrize("name", ["mixed", "on-volume", "dev", "object-storage"])
def test_dagster_takes_the_instance(values: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Every class is imported and its configuration checked by its own schema; nothing connects."""
    pytest.importorskip("dagster_postgres", reason="pip install dagster-postgres==0.29.27")
    pytest.importorskip("dagster_aws", reason="pip install dagster-aws==0.29.27")
    from dagster import DagsterInstance
    from dagster._core.instance.ref import InstanceRef
    from dagster._serdes import ConfigurableClass
    from dagster_k8s import K8sRunLauncher

    monkeypatch.setenv("DAGSTER_PG_PASSWORD", "secret")
    monkeypatch.setenv("WIKI_LOGS_BUCKET", "logs")
    home = chart.write_instance(tmp_path, chart.dagster_yaml(values[name]))
    ref = InstanceRef.from_dir(str(home))
    launcher = ref.run_launcher_data
    assert launcher is not None
    checked = {
        data.class_name
        for data in (ref.run_storage_data, ref.event_storage_data, ref.schedule_storage_data, ref.compute_logs_data,
                     ref.run_coordinator_data, ref.scheduler_data, launcher)
        if data is not None and validate(data)
    }  # fmt: skip
    assert {"PostgresRunStorage", "PostgresEventLogStorage", "K8sRunLauncher", "QueuedRunCoordinator"} <= checked
    assert issubclass(K8sRunLauncher, ConfigurableClass)
    settings = ref.settings
    assert settings["run_monitoring"] == {
        "enabled": True, "start_timeout_seconds": 300, "cancel_timeout_seconds": 180, "max_runtime_seconds": 21600,
        "max_resume_run_attempts": 0, "poll_interval_seconds": 60, "free_slots_after_run_end_seconds": 300,
    }  # fmt: skip
    assert settings["run_retries"] == {"enabled": True, "max_retries": 2, "retry_on_asset_or_op_failure": False}
    assert settings["telemetry"] == {"enabled": False}
    assert settings["concurrency"]["pools"] == {"granularity": "run"}
    assert DagsterInstance


def validate(data: Any) -> bool:
    """Whether a class of the instance takes its configuration; raises what Dagster says if not."""
    import importlib

    from dagster._config import process_config, resolve_to_config_type

    made = getattr(importlib.import_module(data.module_name), data.class_name)
    result = process_config(resolve_to_config_type(made.config_type()), data.config_dict)
    assert result.success, (data.class_name, result.errors)
    return True


def test_the_code_location_differs_by_its_volume_alone(values: Values) -> None:
    (with_volume,) = deepcopy(values["mixed"]["dagster-user-deployments"]["deployments"])
    (without,) = values["object-storage"]["dagster-user-deployments"]["deployments"]
    with_volume["volumes"] = [each for each in with_volume["volumes"] if each["name"] != "data"]
    with_volume["volumeMounts"] = [each for each in with_volume["volumeMounts"] if each["name"] != "data"]
    assert without == with_volume


def test_the_limits_of_pools_are_set_before_anything_runs(values: Values) -> None:
    """Finding: a pool that only has the default limit lets its first batch through."""
    from wiki_assets.defs.instance import POOL_LIMITS

    (first, *_) = values["on-volume"]["dagsterDaemon"]["extraPrependedInitContainers"]
    said = first["args"][0]
    for pool, limit in {**POOL_LIMITS, "gpu": 1}.items():
        assert f"dagster instance concurrency set {pool} {limit}" in said


def test_the_daemon_has_the_environment_that_it_has_on_one_machine(values: Values) -> None:
    from wiki_assets.defs.instance import DAEMON_SETTINGS

    for each in values.values():
        found = {entry["name"]: entry["value"] for entry in each["dagsterDaemon"]["env"]}
        assert found == DAEMON_SETTINGS


def test_the_shown_ui_cannot_write_and_the_other_is_not_exposed(values: Values) -> None:
    assert values["on-volume"]["dagsterWebserver"]["enableReadOnly"] is True
    for each in values.values():
        assert each["ingress"]["enabled"] is False
        assert each["dagsterWebserver"]["service"]["type"] == "ClusterIP"


# --- the real chart, where it is given


@pytest.mark.parametrize("name", ["mixed", "on-volume", "dev", "object-storage"])
def test_the_real_chart_makes_what_we_lay_out(helm: Path, charts: Path, values: Values, name: str) -> None:
    objects = chart.render(helm, charts / "dagster", chart.COMBINATIONS[name])
    (instance,) = [o for o in objects if o["kind"] == "ConfigMap" and o["metadata"]["name"] == "dagster-instance"]
    (config,) = parse(instance["data"]["dagster.yaml"])
    assert config == chart.dagster_yaml(values[name])
    real = {pod.owner.removeprefix("Deployment/dagster-"): pod for o in objects for pod in pods_of(o)}
    ours = {pod.owner.removeprefix("Deployment/"): pod for pod in chart.pods(values[name])}
    for owner, mine in ours.items():
        theirs = next(pod for key, pod in real.items() if key.endswith(owner.removeprefix("dagster-")))
        assert dict(mine.labels) == dict(theirs.labels), owner
        assert mine.spec["serviceAccountName"] == theirs.spec["serviceAccountName"]
        assert mine.spec["securityContext"] == theirs.spec["securityContext"]
        assert {v["name"] for v in mine.spec["volumes"]} <= {v["name"] for v in theirs.spec["volumes"]}
        assert [c["name"] for c in mine.containers] == [c["name"] for c in theirs.containers]
        for own, other in zip(mine.containers, theirs.containers, strict=True):
            assert own["image"] == other["image"]
            assert own["resources"] == other["resources"], own["name"]
            assert own["securityContext"] == other["securityContext"]
    (code,) = [pod for pod in real.values() if pod.labels.get("component") == "user-deployments"]
    (context,) = [e["value"] for e in code.containers[0]["env"] if e["name"].endswith("CONTAINER_CONTEXT")]
    told = yaml.safe_load(context)["k8s"]
    mine = chart.container_context(values[name])["k8s"]
    assert {**told, "env_config_maps": told["env_config_maps"][1:]} == mine


def test_the_real_operator_chart_fits_the_restricted_profile(helm: Path, charts: Path) -> None:
    from wiki_assets_tests.k8s.policies import fits_the_restricted_profile, says_what_it_needs

    objects = chart.render(helm, charts / "kuberay-operator", ["kuberay-operator.yaml"])
    (pod,) = [pod for each in objects for pod in pods_of(each)]
    assert [*fits_the_restricted_profile(pod), *says_what_it_needs(pod)] == []
    assert "cpu" not in pod.containers[0]["resources"]["limits"]


def test_the_code_locations_command_is_one_that_dagster_has(values: Values) -> None:
    from dagster._cli.api import grpc_command

    for each in values.values():
        (own,) = each["dagster-user-deployments"]["deployments"]
        context = grpc_command.make_context("grpc", ["-p", str(own["port"]), *own["dagsterApiGrpcArgs"]])
        assert context.params["port"] == 3030


def test_the_commands_of_the_init_container_are_ones_that_dagster_has(values: Values) -> None:
    import shlex

    from dagster._cli import create_dagster_cli

    (first, *_) = values["on-volume"]["dagsterDaemon"]["extraPrependedInitContainers"]
    lines = [line.removeprefix("until ").partition(";")[0] for line in first["args"][0].splitlines()]
    for line in lines:
        dagster, *words = shlex.split(line)
        assert dagster == "dagster"
        command: Any = create_dagster_cli()
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        command.make_context("dagster", list(words), resilient_parsing=False)
    assert len(lines) == 4
