"""Deliberately broken builds of the compute side. Each is applied with `planted`: here, and in children."""

import socket
from typing import Any
from unittest import mock

from wiki_assets.defs import failures, fan_out, poison, publish
from wiki_assets.defs.rescue import Maker
from wiki_assets.resources import liveness
from wiki_assets.stages import quarantine, tokens


def only_exceptions_are_caught() -> Any:
    """`except Exception` at the record boundary: a panic of a native library is none."""
    return mock.patch.object(tokens, "is_of_the_row", lambda error: isinstance(error, Exception))


def disk_errors_are_blamed_on_rows() -> Any:
    """`except BaseException`, whatever it is: a full disk empties the index page by page."""
    return mock.patch.object(tokens, "is_of_the_row", return_value=True)


def rows_vanish() -> Any:
    """A bad row is skipped, and nobody writes that down."""
    return mock.patch.object(quarantine.Quarantine, "add")


def no_gate() -> Any:
    """Publishes whatever the stages counted."""
    return mock.patch.object(publish, "_stages", return_value=(True, {}))


def no_deadline() -> Any:
    """Waits for a task as long as it takes."""
    return mock.patch.object(fan_out, "_overdue", return_value=None)


def stuck_workers_stay() -> Any:
    """Gives a stuck task up, and leaves its worker to it."""
    return mock.patch.object(fan_out, "_end")


def nobody_looks_after_the_head() -> Any:
    """Waits for Ray, which waits for its head."""
    return mock.patch.object(liveness.Watch, "check")


def a_connection_is_an_answer() -> Any:
    """Takes a head for alive whose kernel takes connections."""

    def connects(address: str, timeout_s: float = 1) -> bool:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=timeout_s).close()
            return True
        except OSError:
            return False

    return mock.patch.object(liveness, "answers", connects)


def everything_is_tried_again() -> Any:
    """Tries again after every error of Ray's and of the system's."""

    def may_pass(error: BaseException) -> bool:
        return isinstance(error, OSError) or type(error).__module__.startswith("ray.")

    return mock.patch.object(failures, "may_pass", may_pass)


def nothing_is_tried_again() -> Any:
    """Gives up at the first lost node."""
    return mock.patch.object(failures, "may_pass", return_value=False)


def one_death_is_enough() -> Any:
    """Blames the row where halving ends, whoever killed the worker."""

    def find(survives: Any, n_rows: int, *, limit: int = poison.MAX_POISON) -> list[int]:
        found: list[int] = []
        while len(found) <= limit:
            rows = range(n_rows)
            while len(rows) > 1:
                first, second = rows[: len(rows) // 2], rows[len(rows) // 2 :]
                rows = second if survives(first, found) else first
            found = sorted({*found, *rows})
            if survives(range(n_rows), found):
                break
        return found

    return mock.patch.object(poison, "find_poison", find)


def no_limit_of_poison() -> Any:
    """Sets aside as many rows as there are."""
    real = poison.find_poison

    def find(survives: Any, n_rows: int) -> list[int]:
        return real(survives, n_rows, limit=10**9)

    return mock.patch.object(poison, "find_poison", find)


def no_search_for_poison() -> Any:
    """A shard whose workers die is a failed shard."""
    return mock.patch.object(Maker, "_without_poison", return_value=RuntimeError("workers died"))
