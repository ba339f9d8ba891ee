"""What a run says while it runs: to Dagster's log, and to whoever listens in this process, such as a terminal."""

import logging

import dagster as dg

logger = logging.getLogger(__name__)

# Dagster's own console line carries the run's id, the step and the time, and events that no person asked for
SILENT_CONSOLE = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def say(context: dg.AssetExecutionContext, message: str, level: int = logging.INFO) -> None:
    """One line for a person; numbers worth keeping are metadata."""
    context.log.log(level, message)
    logger.log(level, message)
