"""A run whose process died is failed within a minute, without anybody asking."""

import dagster as dg

from wiki_assets.defs.upkeep.reap import reap

_EVERY_S = 60


@dg.sensor(
    name="reap_dead_runs",
    minimum_interval_seconds=_EVERY_S,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Fails runs whose process is gone, so that they are retried, and what they held is free again.",
)
def reap_dead_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Starts no run; looks at unfinished ones only."""
    dead = reap(context.instance)
    if not dead:
        return dg.SkipReason("every unfinished run has its process")
    return dg.SkipReason(f"failed {len(dead)}: " + "; ".join(f"{run.run_id}: {run.reason}" for run in dead))
