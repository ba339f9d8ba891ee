"""Bounds: on how often, how much, how long, and how many at once."""

import asyncio
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wiki_assets.serving.limits import Guard, Limits, Overloaded, Pool, TokenBuckets, client_of
from wiki_assets.serving.metrics import Metrics
from wiki_assets_tests.serving.conftest import Shelf, asking, problem


@given(
    rate=st.integers(1, 50),
    burst=st.integers(1, 20),
    pauses=st.lists(st.floats(0, 3, allow_subnormal=False), max_size=60),
)
def test_a_client_gets_its_burst_and_its_rate_and_no_more(rate: int, burst: int, pauses: list[float]) -> None:
    now = 0.0
    buckets = TokenBuckets(rate, burst, 10, clock=lambda: now)
    granted = 0
    for pause in pauses:
        now += pause
        wait = buckets.wait("a")
        granted += wait == 0
        assert 0 <= wait <= 1 / rate + 1e-9
    assert granted <= burst + rate * now + 1e-6
    assert granted >= min(len(pauses), burst)


def test_who_waits_as_long_as_told_may_come() -> None:
    now = 0.0
    buckets = TokenBuckets(4, 2, 10, clock=lambda: now)
    assert [buckets.wait("a"), buckets.wait("a")] == [0, 0]
    wait = buckets.wait("a")
    assert wait == pytest.approx(0.25)
    assert buckets.wait("b") == 0, "others are not held up"
    now += wait
    assert buckets.wait("a") == 0


def test_clients_are_forgotten_the_longest_unseen_first() -> None:
    buckets = TokenBuckets(1, 1, 3, clock=lambda: 0.0)
    for client in "abacd":
        buckets.wait(client)
    assert len(buckets) == 3
    assert buckets.wait("a") > 0, "seen after b"


@pytest.mark.parametrize(
    ("host", "client"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("2001:db8:1:2:aaaa::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:bbbb::9", "2001:db8:1:2::/64"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("testclient", "testclient"),
    ],
)
def test_one_customer_is_one_client(host: str, client: str) -> None:
    assert client_of({"type": "http", "client": (host, 1)}) == client


def test_too_many_requests_are_told_when_to_come_back() -> None:
    with asking(Shelf(), Limits(rate=1, burst=3)) as http:
        answers = [http.get("/search", params={"q": "x"}) for _ in range(5)]
        assert [answer.status_code for answer in answers[:3]] == [200] * 3
        problem(answers[-1], 429, "1 requests a second")
        assert int(answers[-1].headers["retry-after"]) >= 1
        assert http.get("/healthz").status_code == 200, "probes are not counted"
        assert 'wiki_assets_refused_total{reason="rate"} 2.0' in http.get("/metrics").text


@pytest.mark.parametrize(("trusted", "clients"), [("", 1), ("testclient", 3)])
def test_a_proxy_names_the_client_only_if_it_is_trusted(trusted: str, clients: int) -> None:
    with asking(Shelf(), Limits(rate=1, burst=1), trusted_proxies=trusted) as http:
        answers = [
            http.get("/search", params={"q": "x"}, headers={"x-forwarded-for": f"10.0.0.{i}"}).status_code
            for i in range(3)
        ]
    assert answers.count(200) == clients


def test_a_body_is_read_up_to_its_bound_whatever_it_announces() -> None:
    shelf = Shelf()
    with asking(shelf, Limits(rate=0, body_bytes=2000)) as http:
        fits = http.post("/search", json={"q": "x" * 1000})
        assert fits.status_code == 200
        problem(http.post("/search", content=b"x" * 5000), 413, "5,000 bytes", "2,000")
        problem(http.post("/search", content=iter([b"x" * 1000] * 5)), 413, "2,000")  # chunked
    assert len(shelf.asked) == 1


def test_an_address_is_bounded() -> None:
    with asking(Shelf()) as http:
        problem(http.get("/search", params={"q": "x" * 40_000}), 414, "32,768")
        problem(http.get("/" + "x" * 40_000), 414)


# --- what takes long


async def _nothing(_: Any) -> None:
    pass


def _guarded(app: Any, **limits: Any) -> Guard:
    return Guard(app, limits=Limits(rate=0, **limits), metrics=Metrics())


def _scope(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": list(headers)}


async def _answers(guard: Guard, scope: dict[str, Any], receive: Any) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await guard(scope, receive, send)
    return sent


def test_a_body_that_drips_is_given_up() -> None:
    async def drip() -> dict[str, Any]:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    sent = asyncio.run(_answers(_guarded(_nothing, body_s=0.2), _scope((b"transfer-encoding", b"chunked")), drip))
    assert sent[0]["status"] == 408


def test_an_answer_that_takes_too_long_is_given_up() -> None:
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(60)

    sent = asyncio.run(_answers(_guarded(slow, request_s=0.05), _scope(), _nothing))
    assert sent[0]["status"] == 503
    assert b"retry-after" in dict(sent[0]["headers"])


def test_an_answer_that_breaks_off_is_not_followed_by_another() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("in the middle")

    with pytest.raises(Exception, match="the service failed"):
        asyncio.run(_answers(_guarded(broken), _scope(), _nothing))


# --- what there is too much of


def test_more_than_the_queue_holds_is_refused_and_the_rest_is_done() -> None:
    gate = threading.Event()

    async def crowd() -> list[Any]:
        pool = Pool(Limits(workers=2, waiting=3))
        asked = [asyncio.create_task(pool.run(gate.wait, 30)) for _ in range(8)]
        while sum(task.done() for task in asked) < 3:  # those that are refused
            await asyncio.sleep(0)
        assert (pool.running, pool.waiting) == (2, 3)
        gate.set()
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert (pool.running, pool.waiting) == (0, 0)
        pool.close()
        return results

    results = asyncio.run(crowd())
    assert [isinstance(r, Overloaded) for r in results].count(True) == 3
    assert results.count(True) == 5


def test_who_leaves_the_queue_is_not_worked_for() -> None:
    gate = threading.Event()
    done: list[int] = []

    async def leave() -> None:
        pool = Pool(Limits(workers=1, waiting=9))
        first = asyncio.create_task(pool.run(gate.wait, 30))
        others = [asyncio.create_task(pool.run(done.append, i)) for i in range(3)]
        while pool.waiting < 3:
            await asyncio.sleep(0)
        others[1].cancel()
        first.cancel()  # it runs, so it keeps its thread
        await asyncio.sleep(0)
        assert (pool.running, pool.waiting) == (1, 2)
        gate.set()
        await asyncio.gather(*others, return_exceptions=True)
        assert (pool.running, pool.waiting) == (0, 0)
        pool.close()

    asyncio.run(leave())
    assert done == [0, 2]


def test_a_crowd_is_answered_or_told_to_come_back() -> None:
    shelf = Shelf()
    shelf.hold.clear()
    with asking(shelf, Limits(rate=0, workers=2, waiting=4)) as http:
        answers: list[Any] = []
        crowd = [
            threading.Thread(target=lambda: answers.append(http.get("/search", params={"q": "x", "wiki": "tinywiki"})))
            for _ in range(12)
        ]
        for one in crowd:
            one.start()
        while len(answers) < 6:  # those that are refused
            assert any(one.is_alive() for one in crowd)
        shelf.hold.set()
        for one in crowd:
            one.join()
    statuses = [answer.status_code for answer in answers]
    assert (statuses.count(200), statuses.count(503)) == (6, 6)
    assert all("retry-after" in answer.headers for answer in answers if answer.status_code == 503)
    assert shelf.most_running == 2
