"""A head that is gone, stopped or on a machine that is gone is noticed in time, however it is gone."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent import futures

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wiki_assets.errors import ComputeLost, Overdue
from wiki_assets.resources.liveness import Watch, answers, watch_ray
from wiki_assets_tests.processes import free_port


@contextlib.contextmanager
def grpc_server() -> Iterator[str]:
    """A gRPC server that knows no service at all."""
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait(10)


@contextlib.contextmanager
def deaf_server(says: bytes = b"") -> Iterator[str]:
    """Somebody who takes connections, as the kernel does for a stopped process, and is no gRPC server."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        if says:

            def talk() -> None:
                with contextlib.suppress(OSError):
                    while True:
                        line, _ = listener.accept()
                        line.sendall(says)

            threading.Thread(target=talk, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


# Knocking


def test_a_grpc_server_answers() -> None:
    with grpc_server() as address:
        assert all(answers(address) for _ in range(3))


def test_a_server_that_takes_connections_and_says_nothing_does_not_answer() -> None:
    with deaf_server() as address:
        assert not answers(address, timeout_s=0.2)


def test_a_server_of_another_kind_does_not_answer() -> None:
    with deaf_server(b"HTTP/1.1 400 Bad Request\r\n\r\n") as address:
        assert not answers(address)


@pytest.mark.parametrize("address", ["127.0.0.1:{free}", "", "127.0.0.1", "127.0.0.1:port", "[::1]:{free}"])
def test_nobody_does_not_answer(address: str) -> None:
    assert not answers(address.format(free=free_port()), timeout_s=0.5)


# Watching


class Time:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def watch(silent: Callable[[float], bool]) -> tuple[Watch, Time, list[float]]:
    """A watch on a head that is silent at some times; and when it was asked."""
    clock = Time()
    asked: list[float] = []

    def knock(_: str) -> bool:
        asked.append(clock.now)
        return not silent(clock.now)

    return Watch("head:1", answers=knock, clock=clock), clock, asked


def loss(one: Watch, clock: Time, *, every_s: float, until_s: float) -> float | None:
    """When the head is given up, if it is looked after as often as this."""
    while clock.now < until_s:
        try:
            one.check()
        except ComputeLost:
            return clock.now
        clock.now += every_s
    return None


@given(begin=st.floats(0, 100), every_s=st.floats(0.01, 2.9))
def test_silence_is_noticed_within_seconds_of_its_limit(begin: float, every_s: float) -> None:
    one, clock, _ = watch(lambda now: now >= begin)
    lost = loss(one, clock, every_s=every_s, until_s=200)
    assert lost is not None
    longest = begin + one.patience_s + 2 * (one.every_s + every_s)
    assert begin + one.patience_s <= lost <= longest
    assert longest - begin < 30, "long before Ray's driver takes its process with it"


@given(length=st.floats(0, 11), begin=st.floats(0, 50))
def test_a_pause_is_no_loss(length: float, begin: float) -> None:
    one, clock, _ = watch(lambda now: begin <= now < begin + length)
    assert loss(one, clock, every_s=0.5, until_s=100) is None


@given(every_s=st.floats(0.01, 1))
def test_the_head_is_not_asked_all_the_time(every_s: float) -> None:
    one, clock, asked = watch(lambda now: False)
    loss(one, clock, every_s=every_s, until_s=30)
    assert len(asked) <= 1 + 30 / one.every_s


def test_a_call_that_waits_for_a_lost_head_is_left_behind() -> None:
    never = threading.Event()
    one = Watch("head:1", answers=lambda _: False, every_s=0.01, patience_s=0.05)
    with pytest.raises(ComputeLost, match="head:1 has not answered"):
        one.during(lambda: never.wait(60))
    never.set()


def test_a_call_that_takes_too_long_is_left_behind_though_the_head_is_there() -> None:
    never = threading.Event()
    one = Watch("head:1", answers=lambda _: True, every_s=0.01)
    with pytest.raises(Overdue, match="took longer than 0 s"):
        one.during(lambda: never.wait(60), within_s=0.1)
    never.set()


def test_a_call_returns_what_it_returns_and_raises_what_it_raises() -> None:
    one = Watch("head:1", answers=lambda _: True)
    assert one.during(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        one.during(lambda: 1 // 0)
    with pytest.raises(KeyboardInterrupt):
        one.during(lambda: (_ for _ in ()).throw(KeyboardInterrupt))


def test_a_call_that_fails_because_the_head_is_gone_says_that() -> None:
    one = Watch("head:1", answers=lambda _: False)
    with pytest.raises(ComputeLost, match="is gone .ConnectionError"):
        one.during(lambda: (_ for _ in ()).throw(ConnectionError("Client is shutting down")))


def test_a_process_without_ray_is_told_so() -> None:
    import ray

    if ray.is_initialized():
        pytest.skip("another test has joined Ray")
    with pytest.raises(ComputeLost, match="this process has no Ray"):
        watch_ray()
