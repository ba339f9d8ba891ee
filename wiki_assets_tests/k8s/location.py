"""The code location as pods load it: steps are Kubernetes Jobs, and Ray is a RayJob of each run."""

from wiki_assets.definitions import build
from wiki_assets.defs.wikis import wiki_config
from wiki_assets.resources.store import Store
from wiki_assets.settings import Settings

SETTINGS = Settings.from_env(
    {
        "WIKI_ASSETS_ROOT": "/data",
        "WIKI_ASSETS_EXECUTOR": "k8s",
        "WIKI_ASSETS_RAY": "rayjob/wiki-assets/ray",
        "WIKI_ASSETS_CHROMA": "http://chroma:8000",
        "WIKI_ASSETS_SHARDS": "2",
    }
)
defs = build(SETTINGS, wikis=[wiki_config("simplewiki", SETTINGS, Store(SETTINGS.root))])
