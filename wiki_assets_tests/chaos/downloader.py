"""Downloads in processes of their own, killed at a line of our code that the test chooses.

    python -m wiki_assets_tests.chaos.downloader    a job a line in, how it ended a line out

Its imports take a second, so they are made once, and each job is a fork. It has no threads, as the tests have.
"""

import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import wiki_assets

_PACKAGE = str(Path(wiki_assets.__file__).parent)
_OURS = tuple(f"{_PACKAGE}/{name}" for name in ("resources/", "files.py", "compression.py", "defs/raw.py"))
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True)
class Survey:
    """The lines that an undisturbed download passes: how many in all, and how often each."""

    n_lines: int
    places: dict[str, int]


class Downloader:
    """The door to such a process, for as long as a `with` block lasts."""

    survey: Survey

    def __enter__(self) -> "Downloader":
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            cwd=Path(_PACKAGE).parent,
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()

    def run(self, url: str, root: Path, **job: Any) -> dict[str, Any]:
        """Fetch the snapshot of the checks from a server, in a process of its own.

        Args:
            url: of the server.
            root: the data root.
            job: `die_at`: the number of the line at which to die; or `die_at_place` and `hit`: a line, and how often
                it was passed by then; `survey`: count lines; `mutant`: the name of one that breaks the code first;
                `only`: fetch this one file of the server, to be refused.

        Returns:
            `signal` that ended it, or 0; `error` that it ended with, or None; `rss_growth` in bytes; `lines`, `places`.
        """
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"url": url, "root": str(root), **job}) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def look(self, url: str, root: Path) -> None:
        """Make the survey, with a server that has the snapshot."""
        end = self.run(url, root, survey=True)
        assert end["error"] is None, end
        self.survey = Survey(end["lines"], end["places"])


class _Deadly:
    """Traces our own lines, and kills this process at one of them."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._at, self._place, self._hit = job.get("die_at"), job.get("die_at_place"), job.get("hit")
        self._numbers = itertools.count(1)
        self.n_lines, self.places = 0, Counter[str]()

    def __enter__(self) -> "_Deadly":
        threading.settrace(self.trace_call)
        sys.settrace(self.trace_call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]

    def trace_call(self, frame: FrameType, event: str, argument: object) -> Any:
        return self.trace_line if frame.f_code.co_filename.startswith(_OURS) else None

    def trace_line(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "line":
            place = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
            self.places[place] += 1
            self.n_lines = next(self._numbers)
            if self.n_lines == self._at or (place == self._place and self.places[place] == self._hit):
                os.kill(os.getpid(), signal.SIGKILL)
        return self.trace_line


def _do(job: dict[str, Any]) -> dict[str, Any]:
    """One job, in the forked process."""
    from wiki_assets.defs.raw import fetch_snapshot
    from wiki_assets.errors import WikiAssetsError
    from wiki_assets.keys import Snapshot
    from wiki_assets.resources.mirror import DumpMirror, RemoteFile
    from wiki_assets.resources.store import Store

    if mutant := job.get("mutant"):
        from wiki_assets_tests.chaos.mutants_source import MUTANTS

        MUTANTS[mutant].plant()
    mirror, error = DumpMirror(base_url=job["url"], backoff_s=0), None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with _Deadly(job) if job.keys() & {"die_at", "die_at_place", "survey"} else nullcontext() as deadly:
        try:
            if only := job.get("only"):
                mirror.fetch(RemoteFile(only, f"{job['url']}/{only}"), Path(job["root"]))
            else:
                fetch_snapshot(Snapshot("xwiki", "20260823"), mirror, Store(job["root"]), lambda text: None)
        except WikiAssetsError as failed:
            error = f"{type(failed).__name__}: {failed}"
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * _RSS_UNIT
    found = {"lines": deadly.n_lines, "places": deadly.places} if isinstance(deadly, _Deadly) else {}
    return {"signal": 0, "error": error, "rss_growth": growth, **found}


def main() -> None:
    """Do the jobs that come in, each in a fork."""
    import wiki_assets.defs.raw  # noqa: F401  # before the forks

    for line in sys.stdin:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.write(writer, json.dumps(_do(json.loads(line))).encode())
                os._exit(0)
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(1)
        os.close(writer)
        with os.fdopen(reader, "rb") as said:
            answer = said.read()
        _, status = os.waitpid(pid, 0)
        ended = {"signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, "error": f"exit status {status}"}
        print(answer.decode() or json.dumps(ended), flush=True)


if __name__ == "__main__":
    main()
