"""What the UI asks of Dagster's webserver."""

import json
import urllib.request
from typing import Any

LAUNCH = """
mutation($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
  }
}"""
SERVED = "{ repositoriesOrError { ... on RepositoryConnection { nodes { name } } } }"


def ask_ui(port: int, query: str, **variables: Any) -> dict[str, Any]:
    """One GraphQL request, as the UI makes it; fails if it was not understood."""
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/graphql", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        answer = json.load(reply)
    assert "errors" not in answer, answer
    return answer["data"]


def is_up(port: int) -> bool:
    """Whether the webserver answers, and has the code location."""
    try:
        return bool(ask_ui(port, SERVED)["repositoriesOrError"].get("nodes"))
    except OSError:
        return False


def launch_backfill(port: int, assets: list[str], partitions: list[str]) -> str:
    """Start a backfill of some of tinywiki's assets; its id."""
    asked = {"assetSelection": [{"path": ["tinywiki", name]} for name in assets], "partitionNames": partitions}
    launched = ask_ui(port, LAUNCH, params=asked)["launchPartitionBackfill"]
    assert launched["__typename"] == "LaunchBackfillSuccess", launched
    return launched["backfillId"]
