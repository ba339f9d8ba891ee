"""From a registered snapshot to a published index without anybody: each asset asks for itself when its input is there.

Each wiki has two sensors, off until somebody turns them on: `<wiki>_new_snapshots` registers the newest complete
snapshot, and `<wiki>_keep_up_to_date` evaluates the conditions below. A shard's tokens are asked for as soon as its
articles are made, its vectors as soon as its tokens are, and the pointer moves when all of it is there.

Nothing is asked for because code or settings changed: that would remake every snapshot that is kept. Backfill what
the UI shows as stale.
"""

from typing import Any

import dagster as dg

from wiki_assets.defs.wikis import WikiConfig

AGAIN = "17 5 * * *"  # what failed for good is tried once more a day: a mirror, a disk or a quota may be back
_TICK_S = 60  # one run of a stage takes the shards that became ready between two ticks

_when: Any = dg.AutomationCondition  # whose types do not let two built-in conditions be joined by "or"
_wanted = (
    _when.newly_missing()
    | _when.any_deps_match(_when.data_version_changed())
    | (_when.execution_failed() & _when.cron_tick_passed(AGAIN))
).since_last_handled()

WHEN_REGISTERED = (
    (_when.newly_missing() | (_when.execution_failed() & _when.cron_tick_passed(AGAIN))).since_last_handled()
    & ~_when.in_progress()
).with_label("when its snapshot is registered")
"""Of raw_dump, which has no upstream asset."""

# Really there, not about to be: what is asked for together with its input would not be asked for again if that fails.
_input_is_there = ~_when.any_deps_match(_when.missing())

WHEN_INPUT_IS_THERE = (_wanted & _input_is_there & ~_when.in_progress()).with_label("when its input is there")
"""Of what is made shard by shard."""

WHEN_ALL_IS_THERE = (_wanted & _input_is_there & ~_when.any_deps_in_progress() & ~_when.in_progress()).with_label(
    "when all of its snapshot is there"
)
"""Of what is made once a snapshot."""


def keep_up_to_date(config: WikiConfig) -> dg.AutomationConditionSensorDefinition:
    """Asks for what is missing of a wiki's registered snapshots. Off until somebody turns it on."""
    return dg.AutomationConditionSensorDefinition(
        name=f"{config.wiki}_keep_up_to_date",
        target=dg.AssetSelection.groups(config.wiki),
        minimum_interval_seconds=_TICK_S,
        default_status=dg.DefaultSensorStatus.STOPPED,
        description=(
            f"Makes every registered snapshot of {config.wiki}, shard by shard as input arrives, and publishes it. "
            f"Turn {config.wiki}_new_snapshots on as well, and new dumps are found by themselves."
        ),
    )
