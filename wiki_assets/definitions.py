"""The code location: every definition, and this deployment's resources."""

from collections.abc import Sequence

import dagster as dg
from dagster_ray import RayResource

from wiki_assets.defs.assets import wiki_assets
from wiki_assets.defs.sensors import new_snapshots
from wiki_assets.defs.wikis import WikiConfig, known_wikis
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
        sensors=[new_snapshots(config) for config in configs],
        resources={
            "store": store,
            "settings": settings,
            "mirror": DumpMirror(base_url=settings.mirror, contact=settings.contact),
            "ray": ray or ray_resource(settings),
        },
        executor=dg.in_process_executor,  # the fan-out is Ray's; a process a step would start Ray for each
    )


defs = build(Settings.from_env())
