"""Threads that ask at the same moment share a pass of the model, and each gets its own vectors."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from wiki_assets.resources.sharing import SharedEncoder, encode_together


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
