"""Runs launched by Dagster's own code against the fake API server: the Jobs it makes, and the verbs it uses."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.execution.api import create_execution_plan
from dagster._core.execution.context.system import PlanData, PlanOrchestrationContext
from dagster._core.execution.context_creation_job import (
    create_context_creation_data,
    create_executor,
    create_log_manager,
)
from dagster._core.executor.step_delegating import StepDelegatingExecutor, StepHandler, StepHandlerContext
from dagster._core.launcher import LaunchRunContext
from dagster._grpc.types import ExecuteStepArgs

from wiki_assets_tests.k8s import chart
from wiki_assets_tests.k8s.fake_api import FakeKubernetes
from wiki_assets_tests.k8s.manifests import Manifest

DATE = "20250105"
MODULE = "wiki_assets_tests.k8s.location"


@dataclass
class Cluster:
    """A Dagster instance whose run launcher speaks to the fake API server as the daemon's account."""

    instance: dg.DagsterInstance
    api: FakeKubernetes
    values: dict[str, Any]
    _jobs: dict[str, Any] = field(default_factory=dict)

    def launch(self, asset: str) -> Manifest:
        """Launch a run of one partition of simplewiki's asset; the Job that Dagster makes of it."""
        run = self.run(asset)
        self.instance.run_launcher.launch_run(LaunchRunContext(run, None))
        return self.api.created("jobs")[-1]

    def step(self, asset: str) -> tuple[StepHandler, StepHandlerContext]:
        """What the run's pod has in hand when it gives a step to a Job: our executor's handler, and the step."""
        job, run = self._job(asset), self.run(asset)
        plan = create_execution_plan(job, tags=run.tags, instance_ref=self.instance.get_ref())
        created = create_context_creation_data(job, plan, {}, run, self.instance)
        executor = create_executor(created)
        assert isinstance(executor, StepDelegatingExecutor)
        data = PlanData(
            job=job,
            dagster_run=run,
            instance=self.instance,
            execution_plan=plan,
            raise_on_error=False,
            retry_mode=executor.retries,
        )
        context = PlanOrchestrationContext(data, create_log_manager(created), executor, output_capture=None)
        arguments = ExecuteStepArgs(job.get_python_origin(), run.run_id, [plan.steps[0].key])
        return executor._step_handler, StepHandlerContext(self.instance, context, plan.steps, arguments)

    def _job(self, asset: str) -> Any:
        if asset not in self._jobs:
            self._jobs[asset] = self._make_job(asset)
        return self._jobs[asset]

    def _make_job(self, asset: str) -> Any:
        repository = ReconstructableRepository.for_module(
            MODULE,
            "defs",
            container_image=chart.image(self.values["dagster-user-deployments"]["deployments"][0]["image"]),
            container_context=chart.container_context(self.values),
        )
        job = repository.get_reconstructable_job("__ASSET_JOB")
        return job.get_subset(asset_selection=frozenset([dg.AssetKey(["simplewiki", asset])]))

    def run(self, asset: str) -> dg.DagsterRun:
        job = self._job(asset)
        cell = DATE if asset in ("raw_dump", "published_index") else f"{DATE}|00000"
        return self.instance.create_run_for_job(
            job.get_definition(),
            asset_selection=job.asset_selection,
            tags={"dagster/partition": cell},
            job_code_origin=job.get_python_origin(),
        )


@contextmanager
def cluster(api: FakeKubernetes, values: dict[str, Any], folder: Path, account: str) -> Iterator[Cluster]:
    """An instance with the launcher that our values make, and a database of its own on this machine."""
    config = chart.dagster_yaml(values)
    launcher = config["run_launcher"]
    launcher["config"] |= {
        "load_incluster_config": False,
        "kubeconfig_file": str(api.kubeconfig(account, folder)),
    }
    home = chart.write_instance(folder / account, {"run_launcher": launcher, "telemetry": {"enabled": False}})
    with dg.DagsterInstance.from_config(str(home)) as instance:
        instance.add_dynamic_partitions("simplewiki_dates", [DATE])
        yield Cluster(instance, api, values)
