"""Questions of several clients as one batch.

While one batch is answered, questions gather; what has gathered is the next batch. So nobody waits for company: a
question that is alone goes through alone, and a crowd shares each pass.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from wiki_assets.stages.embeddings import Encoder

Ids = NDArray[np.int64]
Vectors = NDArray[np.float32]
A = TypeVar("A")
R = TypeVar("R")


class Gathered(Generic[A, R]):
    """One function for any number of threads, which is called with what they ask together.

    There is no thread beside theirs: while some are at work, the others wait, and the first of them then answers for
    those behind it too. Where that fails, each asks again for itself, so that a bad question costs only itself.

    Args:
        function: gives the answers to several questions, in their order; a generator's are handed on one by one.
        at_once: how many calls may run at the same time.
        most: questions of one call.
    """

    def __init__(self, function: Callable[[list[A]], Iterable[R]], *, at_once: int, most: int) -> None:
        self._function = function
        self._most = most
        self._free = at_once
        self._waiting: deque[_Waiting[A, R]] = deque()
        self._lock = threading.Lock()

    def __call__(self, asked: A) -> R:
        """The answer to one question; raises what the function raises for it."""
        mine = _Waiting[A, R](asked)
        with self._lock:
            self._waiting.append(mine)
            if self._free:
                self._free -= 1
                self._pass_on()
        return mine.answer.result()()

    def _pass_on(self) -> None:
        """Give the turn to who has waited longest."""
        batch = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
        if batch:
            batch[0].answer.set_result(partial(self._lead, batch))
        else:
            self._free += 1

    def _lead(self, batch: "list[_Waiting[A, R]]") -> R:
        """Answer a batch, the first of which is our own question."""
        ours: list[R] = []
        others = deque(batch[1:])
        try:
            for answer in self._function([each.asked for each in batch]):
                if not ours:
                    ours.append(answer)
                else:
                    others.popleft().answer.set_result(partial(_as_it_is, answer))
        except BaseException:  # a panic of a native library is no Exception
            if not ours and not others:
                raise
        finally:
            with self._lock:
                self._pass_on()
            for each in others:
                each.answer.set_result(partial(self._alone, each.asked))
        return ours[0] if ours else self._alone(batch[0].asked)

    def _alone(self, asked: A) -> R:
        (answer,) = self._function([asked])
        return answer


class _Waiting(Generic[A, R]):
    """A question, and, once it is known, what its thread is to do for the answer."""

    def __init__(self, asked: A) -> None:
        self.asked = asked
        self.answer: Future[Callable[[], R]] = Future()


def _as_it_is(answer: R) -> R:
    return answer


class SharedEncoder:
    """An encoder that any number of threads may call at the same time. One thread has the model.

    Args:
        load: gives the encoder; called in the thread that will use it.
        seen: told how many rows each batch has.
    """

    def __init__(self, load: Callable[[], Encoder], seen: Callable[[int], object] = lambda rows: None) -> None:
        self._seen = seen
        self._asked: deque[tuple[Ids, Ids, Future[Vectors]]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        loaded: Future[Encoder] = Future()
        self._thread = threading.Thread(target=self._work, args=(load, loaded), name="model", daemon=True)
        self._thread.start()
        encoder = loaded.result()
        self.dim, self.engine, self.batch_pieces = encoder.dim, encoder.engine, encoder.batch_pieces

    def encode(self, input_ids: Ids, attention_mask: Ids) -> Vectors:
        """Vectors of one padded batch: int64 [n, length] ids and mask to float32 [n, dim]."""
        answer: Future[Vectors] = Future()
        with self._changed:
            if self._closing:
                raise RuntimeError("the encoder is closed")
            self._asked.append((input_ids, attention_mask, answer))
            self._changed.notify()
        return answer.result()

    def close(self) -> None:
        """End the thread, after what was asked before."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _work(self, load: Callable[[], Encoder], loaded: "Future[Encoder]") -> None:
        try:
            encoder = load()
        except BaseException as error:
            loaded.set_exception(error)
            return
        loaded.set_result(encoder)
        while batch := self._next_batch(encoder.batch_pieces):
            try:
                vectors = encode_together(encoder, [(ids, mask) for ids, mask, _ in batch])
            except BaseException as error:
                for _, _, answer in batch:
                    answer.set_exception(error)
            else:
                for (_, _, answer), rows in zip(batch, vectors, strict=True):
                    answer.set_result(rows)
            self._seen(sum(len(ids) for ids, _, _ in batch))

    def _next_batch(self, most_pieces: int) -> list[tuple[Ids, Ids, "Future[Vectors]"]]:
        """What has gathered, as far as it fits into one batch; nothing once the encoder is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._asked or self._closing)
            batch, rows, longest = [], 0, 0
            while self._asked:
                more, length = self._asked[0][0].shape
                rows, longest = rows + more, max(longest, length)
                if batch and rows * longest > most_pieces:
                    break
                batch.append(self._asked.popleft())
            return batch


def encode_together(encoder: Encoder, batches: Sequence[tuple[Ids, Ids]]) -> list[Vectors]:
    """The vectors of several padded batches, by one pass.

    Args:
        encoder: the model.
        batches: int64 [n, length] ids and mask of each.

    Returns:
        float32 [n, dim] for each.
    """
    if len(batches) == 1:
        return [encoder.encode(*batches[0])]
    rows = sum(len(ids) for ids, _ in batches)
    longest = max(ids.shape[1] for ids, _ in batches)
    all_ids, all_masks = np.zeros((2, rows, longest), np.int64)
    ends = np.cumsum([len(ids) for ids, _ in batches])
    for end, (ids, mask) in zip(ends, batches, strict=True):
        all_ids[end - len(ids) : end, : ids.shape[1]] = ids
        all_masks[end - len(ids) : end, : ids.shape[1]] = mask
    return np.split(encoder.encode(all_ids, all_masks), ends[:-1])
