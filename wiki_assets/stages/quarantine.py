"""Rows that a stage could not take in: set aside with their reason, so that a bad one costs only itself.

    {"page_id": 117, "title": "Llama", "reason": "panic", "detail": "PanicException: called `Option::unwrap()` …"}

Reasons: `panic`, a native library gave up; `error`, an exception; `not_finite`, a vector with NaN or without length;
`killed_worker` and `out_of_memory`, whoever worked on it died, twice, on it alone.
"""

from collections import Counter
from collections.abc import Iterator
from typing import IO, Any

import msgspec

from wiki_assets.errors import DamagedArtifact, NotPoison

_FEW = 16  # rows of a shard that may be bad; of a large one, a thousandth
_DETAIL_CHARS = 300


class Quarantined(msgspec.Struct, frozen=True, omit_defaults=True):
    """A row that was set aside: a page, or one passage of it."""

    page_id: int
    title: str
    reason: str
    detail: str = ""
    passage_id: str = ""


def is_of_the_row(error: BaseException) -> bool:
    """Whether an error may be a row's own fault: not somebody's wish to stop, nor the machine's memory or disk."""
    return not isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit | OSError | MemoryError)


def reason_of(error: BaseException) -> tuple[str, str]:
    """Why a row is set aside, in one word and in one line. Rust's panics are no `Exception`, so that none is caught."""
    reason = getattr(error, "reason", None) or ("error" if isinstance(error, Exception) else "panic")
    text = (str(error).strip().splitlines() or [""])[0]
    return reason, f"{type(error).__name__}: {text}"[:_DETAIL_CHARS]


class Quarantine:
    """The rows of one shard that were set aside."""

    def __init__(self, n_rows: int) -> None:
        """Args: n_rows: of the whole shard."""
        self.rows: list[Quarantined] = []
        self._n_rows = n_rows

    def add(self, row: Quarantined) -> None:
        """Set a row aside.

        Raises:
            NotPoison: if so many fail that it is not the rows.
        """
        self.rows.append(row)
        if len(self.rows) > max(_FEW, self._n_rows // 1000):
            raise NotPoison(
                f"{len(self.rows)} of {self._n_rows:,} rows failed, the last, of page {row.page_id}, by {row.reason} "
                f"({row.detail}): expected a bad one here and there; look at the library or the engine that says so"
            )

    @property
    def counts(self) -> dict[str, int]:
        """How many, by reason."""
        return dict(Counter(row.reason for row in self.rows))

    def write(self, out: Any) -> None:
        """One JSON object a line, into a binary file."""
        for row in self.rows:
            out.write(msgspec.json.encode(row) + b"\n")


def read_quarantine(source: IO[bytes]) -> Iterator[Quarantined]:
    """Read what `Quarantine.write` wrote.

    Raises:
        DamagedArtifact: if it did not write this.
    """
    for number, line in enumerate(source, start=1):
        try:
            yield msgspec.json.decode(line, type=Quarantined)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DamagedArtifact(
                f"line {number} of a quarantine file: {error}: materialize it and what is made from it again"
            ) from None
