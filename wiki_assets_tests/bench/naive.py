"""The naive way: a Ray task and a JSON file for each article."""

import bz2
import gzip
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_WINDOW = 100
_CPUS = 0.25


def encode_article(document: dict[str, Any], folder: str, wait_s: float = 0) -> int:
    """Write one article with its token ids."""
    import tiktoken

    encoding = tiktoken.get_encoding("cl100k_base")
    ids = encoding.encode(document["text"], disallowed_special=())
    target = Path(folder) / f"{document['page_id']}.json"
    working = target.with_suffix(".tmp")
    working.write_text(json.dumps({**document, "token_ids": ids, "token_count": len(ids)}))
    working.rename(target)
    time.sleep(wait_s)
    return len(ids)


class Naive:
    """A driver that reads the dump and hands each article to Ray.

    Args:
        ranks: the folder that tiktoken finds its ranks in.
    """

    def __init__(self, ranks: str) -> None:
        os.environ["TIKTOKEN_CACHE_DIR"] = ranks
        import ray

        start_ray()
        self._ray = ray
        self._task = ray.remote(encode_article).options(num_cpus=_CPUS, max_retries=3)

    def warm(self, folder: str) -> None:
        """Have every worker load tiktoken."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        blank = {"title": "", "text": "a"}
        self._ray.get([self._task.remote({"page_id": -i, **blank}, folder, 2.0) for i in range(int(2 / _CPUS))])

    def run(self, files: Sequence[Path], folder: str) -> dict[str, int]:
        """Encode every article of the files."""
        Path(folder).mkdir(parents=True)
        running: list[Any] = []
        pages = tokens = 0
        for path in files:
            with (bz2.open if path.suffix == ".bz2" else gzip.open)(path) as lines:
                for action in lines:
                    document = json.loads(next(lines))
                    if document.get("page_type") == "redirect" or not document.get("text"):
                        continue
                    page_id = int(json.loads(action)["index"]["_id"])
                    article = {"page_id": page_id, "title": document["title"], "text": document["text"]}
                    running.append(self._task.remote(article, folder))
                    pages += 1
                    if len(running) >= _WINDOW:
                        done, running = self._ray.wait(running, num_returns=1)
                        tokens += self._ray.get(done[0])
        return {"pages": pages, "tokens": tokens + sum(self._ray.get(running))}

    def close(self) -> None:
        """Leave Ray."""
        self._ray.shutdown()


def start_ray() -> None:
    """A Ray of our own on two CPUs, for this process.

    As Ray comes, it ends workers that idle for a second beyond one a CPU, and a design of eight small tasks at once
    pays for starting them again. With BENCH_KEEP_IDLE=1 they stay.
    """
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="warning",
        object_store_memory=200 << 20,
        _system_config={"idle_worker_killing_time_threshold_ms": 3_600_000}
        if os.environ.get("BENCH_KEEP_IDLE")
        else {},
    )
