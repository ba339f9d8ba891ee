"""This machine's Dagster instance: made where there is none, with the defaults that we ship."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files as package_files
from pathlib import Path

import dagster as dg

from wiki_assets.settings import Settings

_WORKSPACE = """load_from:
  - python_module:
      module_name: wiki_assets.definitions
      location_name: wiki_assets
"""

DAEMON_SETTINGS = {
    # a backfill waits while the code server is down; without this the daemon fails it, and cancels its runs
    "DAGSTER_BACKFILL_RETRY_DEFINITION_CHANGED_ERROR": "1",
}
"""Environment of Dagster's daemon, for what `dagster.yaml` has no place for."""

POOL_LIMITS = {"mirror": 1, "chroma": 1}  # runs at once: one download, one writer


def prepare_home(settings: Settings) -> Path:
    """Make DAGSTER_HOME, with our `dagster.yaml` and a `workspace.yaml`, and name it in the environment."""
    home = settings.dagster_home.expanduser().absolute()
    home.mkdir(parents=True, exist_ok=True)
    config = home / "dagster.yaml"
    if not config.exists():
        config.write_bytes((Path(str(package_files("wiki_assets"))) / "dagster.yaml").read_bytes())
    workspace = home / "workspace.yaml"
    if not workspace.exists():
        workspace.write_text(_WORKSPACE)
    os.environ["DAGSTER_HOME"] = str(home)
    for name, value in DAEMON_SETTINGS.items():
        os.environ.setdefault(name, value)
    return home


@contextmanager
def open_instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """The instance of this machine, its pools limited."""
    prepare_home(settings)
    with dg.DagsterInstance.get() as instance:
        for pool, limit in POOL_LIMITS.items():
            instance.event_log_storage.set_concurrency_slots(pool, limit)
        yield instance


@contextmanager
def existing_instance(settings: Settings) -> Iterator[dg.DagsterInstance | None]:
    """The instance of this machine if there is one; none is made."""
    if not (settings.dagster_home.expanduser() / "dagster.yaml").exists():
        yield None
        return
    os.environ["DAGSTER_HOME"] = str(settings.dagster_home.expanduser().absolute())
    with dg.DagsterInstance.get() as instance:
        yield instance
