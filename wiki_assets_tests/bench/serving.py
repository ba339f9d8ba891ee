"""How fast the service answers: `wiki-assets serve` as a process, and clients on this machine that ask it.

    WIKI_ASSETS_ROOT=data python -m wiki_assets_tests.bench.serving
    python -m wiki_assets_tests.bench.serving --root data --clients 16 --seconds 20 --mode dense

Two crowds, one after the other: clients that ask as fast as they are answered, which shows what the machine can
carry; and clients that read what they get before they ask again, which is what people feel. No question is asked
twice. The clients take their share of the same CPUs; what the service itself spends is measured beside it.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from urllib.parse import quote

import httpx
import numpy as np
import psutil
import pyarrow.parquet as pq

from wiki_assets.resources.store import Store
from wiki_assets_tests.bench.measure import machine
from wiki_assets_tests.serving.service import serving

PAUSE_S = (0.2, 0.6)  # between an answer and the next question of one who reads
_FORMS = (
    "What is {}?", "Who or what was {} known for?", "Where is {}?", "history of {}", "{} and {}", "When did {} begin?",
)  # fmt: skip


@dataclass
class Crowd:
    """What a number of clients met with."""

    name: str
    seconds: float = 0.0
    cpu_s: float = 0.0  # of the service
    latencies: list[float] = field(default_factory=list)
    refused: int = 0

    def row(self) -> str:
        """As it is printed."""
        n = len(self.latencies)
        p50, p90, p99 = (1e3 * np.quantile(self.latencies, q) for q in (0.5, 0.9, 0.99))
        return (
            f"{self.name:<38} {n:>6,} answers  {n / self.seconds:>6.0f}/s   "
            f"p50 {p50:>6.1f}  p90 {p90:>6.1f}  p99 {p99:>6.1f} ms   "
            f"{1e3 * self.cpu_s / n:>5.1f} CPU-ms an answer   {self.refused} refused"
        )


def questions(root: str, wiki: str, *, seed: int) -> Iterator[str]:
    """Questions about a wiki's own pages, no two alike."""
    store = Store(root)
    pointer = store.published(wiki)
    titles: list[str] = []
    for path in sorted((store.wiki(wiki) / "articles" / pointer["snapshot"]).glob("*.parquet")):
        with path.open("rb") as source:
            titles += pq.read_table(source, columns=["title"])["title"].to_pylist()
    rng = random.Random(seed)
    rng.shuffle(titles)
    for number, title in enumerate(cycle(titles)):
        again = f" {number}" if number >= len(titles) else ""
        yield rng.choice(_FORMS).format(title, rng.choice(titles)) + again


async def ask_all(port: int, asked: Iterator[str], crowd: Crowd, *, clients: int, seconds: float, query: str,
                  pause_s: tuple[float, float] | None) -> None:  # fmt: skip
    """Let clients ask for some seconds, each over a connection that it keeps."""
    ends = time.monotonic() + seconds

    async def client(number: int) -> None:
        rng = random.Random(number)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        if pause_s:
            await asyncio.sleep(rng.uniform(0, pause_s[1]))  # they do not come all at once
        while time.monotonic() < ends:
            head = f"GET /search?q={quote(next(asked))}&{query} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n"
            began = time.perf_counter()
            writer.write(head.encode())
            answer = await reader.readuntil(b"\r\n\r\n")
            length = next(line for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.split(b":")[1]))
            if answer.startswith(b"HTTP/1.1 200"):
                crowd.latencies.append(time.perf_counter() - began)
            else:
                crowd.refused += 1
            if pause_s:
                await asyncio.sleep(rng.uniform(*pause_s))
        writer.close()

    await asyncio.gather(*(client(i) for i in range(clients)))


def cpu_of(process: psutil.Process) -> float:
    """CPU-seconds it has spent."""
    times = process.cpu_times()
    return times.user + times.system


def main(arguments: list[str]) -> None:
    """Measure, and print a line a crowd."""
    parser = argparse.ArgumentParser(
        prog="python -m wiki_assets_tests.bench.serving",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--root", default=os.environ.get("WIKI_ASSETS_ROOT", "data"))
    parser.add_argument("--wiki", help="which one; the only one, if left out")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=15, help="of each crowd")
    parser.add_argument("--mode", default="hybrid")
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    chosen = parser.parse_args(arguments)
    wiki = Store(chosen.root).published(chosen.wiki)["wiki"]
    query = f"wiki={wiki}&k={chosen.k}&mode={chosen.mode}"
    env = {"WIKI_ASSETS_ROOT": chosen.root, "WIKI_ASSETS_RATE": "0"}
    with (
        tempfile.TemporaryDirectory(prefix="wiki_assets-bench-") as folder,
        serving(env, Path(folder) / "serve.log") as started,
    ):
        service = psutil.Process(started.process.pid)
        start_cpu_s = cpu_of(service)
        first = httpx.get(f"{started.url}/search", params={"q": "x", "wiki": wiki}, timeout=60).json()
        crowds = []
        for name, pause_s, seconds in (
            ("warming up", None, 3.0),
            (f"{chosen.clients} clients without a pause", None, chosen.seconds),
            (f"{chosen.clients} clients who read, {PAUSE_S[0]:g}-{PAUSE_S[1]:g} s", PAUSE_S, chosen.seconds),
        ):
            crowd = Crowd(name)
            before, since = cpu_of(service), time.perf_counter()
            asked = questions(chosen.root, wiki, seed=len(crowds))
            port, clients = started.port, chosen.clients
            asyncio.run(ask_all(port, asked, crowd, clients=clients, seconds=seconds, query=query, pause_s=pause_s))
            crowd.seconds, crowd.cpu_s = time.perf_counter() - since, cpu_of(service) - before
            crowds.append(crowd)
        memory = service.memory_info().rss
    start = f"ready after {started.seconds_to_ready:.1f} s ({start_cpu_s:.1f} CPU-s), {memory >> 20} MB"
    print(f"{first['collection']}, mode {first['mode']}, k {chosen.k}: {start}")
    for crowd in crowds[1:]:
        print(crowd.row())
    print(machine())
    if chosen.json:
        chosen.json.write_text(
            json.dumps(
                {
                    "machine": machine(),
                    "collection": first["collection"],
                    "mode": first["mode"],
                    "start_s": started.seconds_to_ready,
                    "start_cpu_s": start_cpu_s,
                    "memory_bytes": memory,
                    "crowds": [
                        {"name": c.name, "seconds": c.seconds, "cpu_s": c.cpu_s, "refused": c.refused,
                         "answers": len(c.latencies),
                         **{p: 1e3 * float(np.quantile(c.latencies, q)) for p, q in
                            (("p50_ms", 0.5), ("p90_ms", 0.9), ("p99_ms", 0.99))}}
                        for c in crowds[1:]
                    ],
                },
                indent=1,
            )
        )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
