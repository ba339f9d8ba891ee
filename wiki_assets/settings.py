"""This deployment's settings: environment variables, each with a default that suits a laptop."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from wiki_assets.errors import BadRequest
from wiki_assets.keys import check_shard_count

WIKIMEDIA = "https://dumps.wikimedia.org"


_PASSWORD = re.compile(r"://[^/@]*:[^@]*@")


def shown(url: str) -> str:
    """A URL as messages may show it: without user, password and query, whether it is well formed or not."""
    without_user = re.sub(r"^([a-z][a-z0-9+.-]*://)?.*@", r"\1…@", url, flags=re.IGNORECASE | re.DOTALL)
    return re.sub(r"\?.+", "?…", without_user, flags=re.DOTALL)


def _setting(name: str, default: Any, doc: str) -> Any:
    return field(default=default, metadata={"variable": f"WIKI_ASSETS_{name}", "doc": doc})


@dataclass(frozen=True)
class Settings:
    """Every `WIKI_ASSETS_*` variable. README's table is made from this class."""

    root: str = _setting(
        "ROOT", "data", "where everything is kept: a folder, or s3://bucket/prefix; gs:// and az:// are untested"
    )
    mirror: str = _setting("MIRROR", WIKIMEDIA, "root of the dump server; plain http only for loopback")
    contact: str = _setting("CONTACT", "", "your e-mail address or page, sent to the dump server in the User-Agent")
    wikis: str = _setting("WIKIS", "", "TOML file of the wikis this deployment keeps; empty = the one shipped")
    shards: int = _setting(
        "SHARDS", 0, "shards of a wiki that has no data yet; 0 = its line in the wikis file, else from its dump's size"
    )
    model: str = _setting(
        "MODEL", "all-MiniLM-L6-v2", "sentence-transformers model: a folder, or a hub id with @revision"
    )
    engine: str = _setting("ENGINE", "auto", "auto, openvino-bf16, openvino-f32 or torch")
    chroma: str = _setting("CHROMA", "", "URL of a Chroma server; empty = an embedded store under the root")
    ray: str = _setting(
        "RAY",
        "local",
        "local; the address of a Ray cluster, such as ray://head:10001; "
        "or rayjob/NAMESPACE/NAME: a RayJob for each run, made like the suspended one of that name",
    )
    executor: str = _setting("EXECUTOR", "in-process", "in-process, or k8s: a Kubernetes Job for each step of a run")
    cpus: int = _setting("CPUS", 0, "CPUs for local Ray; 0 = all")
    task_seconds: int = _setting(
        "TASK_SECONDS", 900, "how long a worker may take over a task before it is ended; over much data, longer"
    )
    keep_snapshots: int = _setting(
        "KEEP_SNAPSHOTS", 0, "snapshots of a wiki that are kept; 0 = its line in the wikis file, else 3"
    )
    keep_builds: int = _setting(
        "KEEP_BUILDS",
        0,
        "builds of a wiki's index that are kept, the published one and those to roll back to; "
        "0 = its line in the wikis file, else 2",
    )
    max_loss: float = _setting(
        "MAX_LOSS",
        0.0,
        "share of the published pages that a new snapshot may lack and be published; "
        "0 = its line in the wikis file, else 0.1",
    )
    max_drift: float = _setting(
        "MAX_DRIFT",
        0.0,
        "share by which pages and passages may be more or fewer than the published ones; "
        "0 = its line in the wikis file, else 0.5",
    )
    rate: int = _setting("RATE", 20, "requests a second that the service takes of one client; 0 = no limit")
    trusted_proxies: str = _setting(
        "TRUSTED_PROXIES",
        "",
        "addresses or networks, with commas between, whose X-Forwarded-For the service believes",
    )
    cache: str = _setting(
        "CACHE", "~/.cache/wiki_assets", "converted models and token ranks; can be deleted at any time"
    )

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ, **flags: Any) -> "Settings":
        """Read the variables; flags that are not None win.

        Raises:
            BadRequest: if a number is none, or a URL holds a password.
        """
        values: dict[str, Any] = {}
        for spec in fields(cls):
            variable = spec.metadata["variable"]
            text = env.get(variable, "").strip()
            if flags.get(spec.name) is not None:
                values[spec.name] = flags[spec.name]
            elif text:
                try:
                    values[spec.name] = type(spec.default)(text)
                except ValueError:
                    kind = "a number, such as 0.1" if spec.type is float else f"a whole number, such as {spec.default}"
                    raise BadRequest(f"{variable}={text!r}: expected {kind}") from None
        settings = cls(**values)
        settings._require_no_secrets()
        if settings.shards:
            check_shard_count(settings.shards)
        if settings.task_seconds < 1:
            raise BadRequest(f"WIKI_ASSETS_TASK_SECONDS={settings.task_seconds}: expected 1 or more, such as 900")
        return settings

    def _require_no_secrets(self) -> None:
        """Refuse a URL with a user, a password or a query: URLs are logged, and some are kept in manifests."""
        for spec in fields(self):
            text = str(getattr(self, spec.name))
            inner = spec.name in ("mirror", "chroma", "ray") and re.search(r"[@?]", text)
            if inner or (spec.name == "root" and _PASSWORD.search(text)):
                raise BadRequest(
                    f"{spec.metadata['variable']} is {shown(text)!r:.200}: it is shown in logs and kept in manifests; "
                    "expected it without user, password or query"
                )

    @property
    def cache_folder(self) -> Path:
        """Where derived files wait to be reused, expanded."""
        return Path(self.cache).expanduser()

    @property
    def dagster_home(self) -> Path:
        """`DAGSTER_HOME` if it is set, else a folder under the root (a local one beside an object store)."""
        from wiki_assets.files import is_local, root_path

        if os.environ.get("DAGSTER_HOME"):
            return Path(os.environ["DAGSTER_HOME"])
        root = root_path(self.root)
        return Path(str(root)) / "dagster" if is_local(root) else self.cache_folder / "dagster"
