"""What a step's pod is given where steps are Kubernetes Jobs (`WIKI_ASSETS_EXECUTOR=k8s`).

Steps drive: the work of articles, tokens and embeddings is done by Ray's workers. Only a download and the writer of
the index work themselves. Elsewhere these tags mean nothing.
"""

from typing import Any

DUMPS = {"wiki-assets/egress": "dumps"}  # label of the only pods that a network policy lets out to the internet

_PODS: dict[str, dict[str, Any]] = {
    "raw_dump": {
        "container_config": {
            "resources": {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"memory": "2Gi"}},
        },
        "pod_template_spec_metadata": {"labels": DUMPS},
    },
    "chroma_collection": {  # a shard's rows at a time
        "container_config": {
            "resources": {"requests": {"cpu": "1", "memory": "4Gi"}, "limits": {"memory": "4Gi"}},
        },
    },
    "evaluation": {  # the model and the index
        "container_config": {
            "resources": {"requests": {"cpu": "1", "memory": "4Gi"}, "limits": {"memory": "4Gi"}},
        },
    },
    "published_index": {
        "container_config": {
            "resources": {"requests": {"cpu": "1", "memory": "4Gi"}, "limits": {"memory": "4Gi"}},
        },
    },
}


def step_pod(asset: str) -> dict[str, Any]:
    """Op tags of an asset: empty where the pod of any step will do."""
    return {"dagster-k8s/config": _PODS[asset]} if asset in _PODS else {}
