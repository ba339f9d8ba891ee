"""The code location: every definition, and this deployment's resources."""

from collections.abc import Sequence

import dagster as dg
from dagster_ray import RayResource

from wiki_assets.defs.assets import wiki_assets
from wiki_assets.defs.automation import keep_up_to_date
from wiki_assets.defs.sensors import new_snapshots
from wiki_assets.defs.upkeep.sensor import reap_dead_runs
from wiki_assets.defs.wikis import WikiConfig, known_wikis
from wiki_assets.errors import BadRequest
from wiki_assets.resources.compute import ray_resource
from wiki_assets.resources.mirror import DumpMirror
from wiki_assets.resources.store import Store
from wiki_assets.settings import Settings


def build(
    settings: Settings,
    *,
    wikis: Sequence[WikiConfig] | None = None,
    ray: RayResource | None = None,
) -> dg.Definitions:
    """Everything there is for some wikis.

    Args:
        settings: of this deployment.
        wikis: which; those of the wikis file and those that have data, if not given.
        ray: what to compute on, if not what the settings say.
    """
    store = Store(settings.root)
    configs = known_wikis(settings, store) if wikis is None else wikis
    return dg.Definitions(
        assets=[asset for config in configs for asset in wiki_assets(config)],
        sensors=[
            *(sensor(config) for config in configs for sensor in (new_snapshots, keep_up_to_date)),
            reap_dead_runs,
        ],
        resources={
            "store": store,
            "settings": settings,
            "mirror": DumpMirror(base_url=settings.mirror, contact=settings.contact),
            "ray": ray or ray_resource(settings),
        },
        executor=step_executor(settings),
    )


def step_executor(settings: Settings) -> dg.ExecutorDefinition:
    """Where the steps of a run execute.

    Raises:
        BadRequest: if the setting is neither.
    """
    if settings.executor == "k8s":
        from dagster_k8s import k8s_job_executor

        return k8s_job_executor.configured(  # a step's pod goes with its run's, and has labels of its own
            {"enable_owner_references": True, "max_concurrent": 4}, name="k8s"
        )
    if settings.executor != "in-process":
        raise BadRequest(f"WIKI_ASSETS_EXECUTOR={settings.executor!r}: expected in-process or k8s")
    return dg.in_process_executor  # the fan-out is Ray's; a process a step would start Ray for each


defs = build(Settings.from_env())
