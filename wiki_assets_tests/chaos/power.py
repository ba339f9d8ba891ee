"""A disk that loses what was not synced: records what a process does to its files, then replays any legal crash.

After a power loss a file holds what it held at its last fsync, or anything it was given since; a name is as it was
at the last fsync of its folder, or as any of the changes since left it. Source: Pillai et al., OSDI 2014 (ALICE).
"""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock


@dataclass
class Recorder:
    """What happened below `root`, in order.

    Events: ("data", file, bytes) a file's content was made durable; ("name", path, file or None) a name was made,
    replaced or taken away; ("folder", path) a folder's names were made durable; ("done", path) the caller was told
    that this manifest stands.
    """

    root: Path
    events: list[tuple] = field(default_factory=list)
    last: dict[int, bytes] = field(default_factory=dict)  # what each file was last seen to hold
    _names: dict[str, int] = field(default_factory=dict)
    _files: dict[int, int] = field(default_factory=dict)  # which file an inode is now; a freed one is used again
    _n_files: int = 0
    _begin: int = 0

    def look(self) -> None:
        """Note which names changed since the last look, and what files hold."""
        now: dict[str, int] = {}
        inodes = {}
        for path in self.root.rglob("*"):
            if path.is_file() and path.suffix != ".lock":
                inodes[str(path)] = path.stat().st_ino
        for gone in self._files.keys() - inodes.values():
            del self._files[gone]
        for name, inode in inodes.items():
            if inode not in self._files:
                self._n_files += 1
                self._files[inode] = self._n_files
            now[name] = self._files[inode]
            self.last[now[name]] = Path(name).read_bytes()
        for path in sorted(self._names.keys() - now.keys()):
            self.events.append(("name", path, None))
        for path, file in sorted(now.items()):
            if self._names.get(path) != file:
                self.events.append(("name", path, file))
        self._names = now

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record what this process does."""
        fsync, replace, unlink = os.fsync, os.replace, os.unlink
        self.look()
        for _, path, inode in list(self.events):  # what was there before is durable
            self.events.append(("data", inode, self.last[inode]))
            self.events.append(("folder", str(Path(path).parent)))
        self._begin = len(self.events)

        def synced(handle: int) -> None:
            self.look()
            fsync(handle)
            path = Path(os.readlink(f"/proc/self/fd/{handle}"))
            if path.is_dir():
                self.events.append(("folder", str(path)))
            else:
                self.events.append(("data", self._files[path.stat().st_ino], path.read_bytes()))

        def replaced(source: str, target: str) -> None:
            self.look()
            replace(source, target)
            self.look()

        def unlinked(path: str, **options: object) -> None:
            self.look()
            unlink(path, **options)  # type: ignore[arg-type]
            self.look()

        with (
            mock.patch("os.fsync", synced),
            mock.patch("os.replace", replaced),
            mock.patch("os.unlink", unlinked),
        ):
            yield
        self.look()

    def told(self, path: Path) -> None:
        """The caller was told that this manifest stands."""
        self.look()
        self.events.append(("done", str(path)))

    def crash(self, seed: int, target: Path) -> tuple[int, list[str]]:
        """Lay out under `target` what a disk may hold after a power loss at a random moment.

        Returns:
            How many events had happened, and the manifests that callers had been told of by then.
        """
        rng = random.Random(seed)
        moment = rng.randrange(self._begin, len(self.events) + 1)
        durable: dict[int, bytes] = {}
        names: dict[str, int] = {}
        pending: list[tuple[str, int | None]] = []
        told: list[str] = []
        for event in self.events[:moment]:
            if event[0] == "data":
                durable[event[1]] = event[2]
            elif event[0] == "name":
                pending.append((event[1], event[2]))
                if event[2] is None and event[1] in told:  # it is being made again
                    told.remove(event[1])
            elif event[0] == "folder":
                for path, inode in [p for p in pending if str(Path(p[0]).parent) == event[1]]:
                    _apply(names, path, inode)
                pending = [p for p in pending if str(Path(p[0]).parent) != event[1]]
            elif event[0] == "done":
                told.append(event[1])
        for path, inode in pending:
            if rng.random() < 0.5:
                _apply(names, path, inode)
        for path, inode in names.items():
            where = target / Path(path).relative_to(self.root)
            where.parent.mkdir(parents=True, exist_ok=True)
            where.write_bytes(self._content(rng, durable.get(inode), self.last.get(inode, b"")))
        return moment, told

    def _content(self, rng: random.Random, durable: bytes | None, last: bytes) -> bytes:
        if durable is not None and durable == last:
            return last
        torn = last[: rng.randrange(len(last) + 1)]
        return rng.choice([durable or b"", torn, bytes(len(last)), torn + bytes(len(last) - len(torn)), last])


def _apply(names: dict[str, int], path: str, inode: int | None) -> None:
    if inode is None:
        names.pop(path, None)
    else:
        names[path] = inode
