"""A build that somebody reads is known to be read, for as long as its reader lives."""

import os
import signal
from pathlib import Path

from wiki_assets.resources.pins import is_pinned, pinned
from wiki_assets_tests.chaos.children import CHILDREN, start


def test_a_build_is_pinned_while_any_reader_has_it(tmp_path: Path) -> None:
    assert not is_pinned(tmp_path)
    with pinned(tmp_path):
        with pinned(tmp_path):
            assert is_pinned(tmp_path)
        assert is_pinned(tmp_path)
    assert not is_pinned(tmp_path)


def test_a_build_that_is_gone_is_not_pinned(tmp_path: Path) -> None:
    with pinned(tmp_path / "gone"):
        assert not is_pinned(tmp_path / "gone")


def test_a_pin_goes_with_its_process(tmp_path: Path) -> None:
    ready = CHILDREN.Event()

    def read() -> None:
        with pinned(tmp_path):
            ready.set()
            signal.pause()

    reader = start(read)
    assert ready.wait(60)
    assert is_pinned(tmp_path)
    os.kill(reader.pid or 0, signal.SIGKILL)
    reader.join()
    assert not is_pinned(tmp_path)
