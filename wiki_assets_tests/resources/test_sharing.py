"""Threads that ask at the same moment are one batch, and each gets its own answer."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from wiki_assets.resources.sharing import Gathered, SharedEncoder, encode_together


class Sums:
    """A vector is the sum of the ids that the mask shows, and their number. `gate` holds up the first pass."""

    dim, engine, batch_pieces = 2, "sums", 24

    def __init__(self) -> None:
        self.shapes: list[tuple[int, int]] = []
        self.threads: set[int] = set()
        self.gate = threading.Event()
        self.entered = threading.Event()

    def encode(self, input_ids, attention_mask):
        self.shapes.append(input_ids.shape)
        self.threads.add(threading.get_ident())
        self.entered.set()
        assert self.gate.wait(30)
        if (input_ids == 13).any():
            raise RuntimeError("unlucky")
        return np.stack([(input_ids * attention_mask).sum(1), attention_mask.sum(1)], axis=1).astype(np.float32)


def row(*ids: int) -> tuple[np.ndarray, np.ndarray]:
    return np.array([ids], np.int64), np.ones((1, len(ids)), np.int64)


@pytest.fixture
def shared():
    sums = Sums()
    encoder = SharedEncoder(lambda: sums)
    yield encoder, sums
    sums.gate.set()
    encoder.close()


def test_what_gathers_while_the_model_is_busy_is_one_batch(shared) -> None:
    encoder, sums = shared
    asked = [tuple(range(1, n + 1)) for n in (3, 1, 4, 2, 5)]
    with ThreadPoolExecutor(5) as threads:
        first = threads.submit(encoder.encode, *row(*asked[0]))
        assert sums.entered.wait(30)
        others = [threads.submit(encoder.encode, *row(*ids)) for ids in asked[1:]]
        while len(encoder._asked) < 4:  # all of them wait
            pass
        sums.gate.set()
        found = [future.result(30) for future in (first, *others)]
    assert [v.tolist() for v in found] == [[[sum(ids), len(ids)]] for ids in asked]
    assert sums.shapes == [(1, 3), (4, 5)]
    assert len(sums.threads) == 1


def test_a_batch_is_not_padded_beyond_its_bound(shared) -> None:
    encoder, sums = shared
    with ThreadPoolExecutor(9) as threads:
        first = threads.submit(encoder.encode, *row(1))
        assert sums.entered.wait(30)
        others = [threads.submit(encoder.encode, *row(*[1] * 10)) for _ in range(8)]
        while len(encoder._asked) < 8:
            pass
        sums.gate.set()
        assert all(future.result(30).tolist() == [[10, 10]] for future in others)
        first.result(30)
    assert sums.shapes == [(1, 1)] + [(2, 10)] * 4


def test_a_failure_is_told_to_those_it_concerns_and_the_next_go_on(shared) -> None:
    encoder, sums = shared
    sums.gate.set()
    with pytest.raises(RuntimeError, match="unlucky"):
        encoder.encode(*row(13))
    assert encoder.encode(*row(1, 2)).tolist() == [[3, 2]]


def test_an_encoder_that_cannot_be_loaded_says_so() -> None:
    def load():
        raise LookupError("no such model")

    with pytest.raises(LookupError, match="no such model"):
        SharedEncoder(load)


def test_nothing_is_asked_of_a_closed_encoder() -> None:
    sums = Sums()
    sums.gate.set()
    encoder = SharedEncoder(lambda: sums)
    encoder.close()
    with pytest.raises(RuntimeError, match="closed"):
        encoder.encode(*row(1))


def test_several_batches_by_one_pass_are_as_by_several() -> None:
    sums = Sums()
    sums.gate.set()
    batches = [row(1, 2), (np.array([[3, 4, 5], [6, 0, 0]]), np.array([[1, 1, 1], [1, 0, 0]])), row(7)]
    together = encode_together(sums, batches)
    assert [v.tolist() for v in together] == [[[3, 2]], [[12, 3], [6, 1]], [[7, 1]]]
    assert sums.shapes == [(4, 3)]


class Squares:
    """Squares of numbers, one after the other; of 13 there is none. `gate` holds up who asks 0."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.gate = threading.Event()

    def __call__(self, asked: list[int]) -> Iterator[int]:
        self.calls.append(asked)
        for number in asked:
            if number == 0:
                assert self.gate.wait(30)
            if number == 13:
                raise ValueError("unlucky")
            yield number * number


def ask_together(gathered: Gathered[int, int], squares: Squares, numbers: list[int]) -> list[Callable[[], int]]:
    """Ask all of them, in this order, while the answer to 0 is held up."""
    with ThreadPoolExecutor(len(numbers) + 1) as threads:
        first = threads.submit(gathered, 0)
        wait_for(lambda: squares.calls == [[0]])
        futures = []
        for number in numbers:
            futures.append(threads.submit(gathered, number))
            wait_for(lambda: len(gathered._waiting) == len(futures))
        squares.gate.set()
        assert first.result(30) == 0
    return [future.result for future in futures]


def wait_for(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.001)


def test_what_gathers_while_others_are_at_work_is_asked_together() -> None:
    squares = Squares()
    gathered = Gathered(squares, at_once=1, most=3)
    assert [result() for result in ask_together(gathered, squares, [1, 2, 3, 4])] == [1, 4, 9, 16]
    assert squares.calls == [[0], [1, 2, 3], [4]]
    assert gathered(5) == 25
    assert squares.calls[-1] == [5], "who is alone goes through alone"


def test_a_bad_question_costs_only_itself() -> None:
    squares = Squares()
    gathered = Gathered(squares, at_once=1, most=8)
    good, bad, other = ask_together(gathered, squares, [2, 13, 3])
    assert (good(), other()) == (4, 9)
    with pytest.raises(ValueError, match="unlucky"):
        bad()
    assert squares.calls[1] == [2, 13, 3]
    assert sorted(squares.calls[2:]) == [[3], [13]]
    assert gathered(4) == 16


def test_so_many_are_at_work_as_may_be() -> None:
    inside = threading.Barrier(2)

    def meet(asked: list[int]) -> list[int]:
        inside.wait(30)
        return asked

    gathered = Gathered(meet, at_once=2, most=8)
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(gathered, [1, 2])) == [1, 2]


def test_a_crowd_of_threads_gets_each_its_own() -> None:
    squares = Squares()
    gathered = Gathered(squares, at_once=2, most=4)
    with ThreadPoolExecutor(12) as threads:
        assert list(threads.map(gathered, range(14, 2000))) == [number * number for number in range(14, 2000)]
    assert sorted(number for call in squares.calls for number in call) == list(range(14, 2000))
