"""`wiki-assets serve` as people run it: a process of its own, over a real index."""

import signal
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil
import pytest

from wiki_assets.settings import Settings
from wiki_assets_tests.processes import wait_until
from wiki_assets_tests.serving.service import Service, serving
from wiki_assets_tests.tinywiki.published import publish_again

pytestmark = pytest.mark.chroma

QUESTION = "Which lake holds a fifth of the unfrozen fresh water?"


def test_a_question_is_answered_by_the_right_page(served: Service) -> None:
    answer = httpx.get(f"{served.url}/search", params={"q": QUESTION, "k": 3}, timeout=30).json()
    assert answer["hits"][0]["title"] == "Lake Baikal"
    assert answer["collection"] == f"tinywiki-20250105-{answer['build']}"
    page = httpx.get(served.url, params={"q": QUESTION}, timeout=30)
    assert "<mark>fifth</mark>" in page.text


def test_abuse_is_refused_in_bounded_memory(served: Service) -> None:
    process = psutil.Process(served.process.pid)
    with httpx.Client(base_url=served.url, timeout=60) as http:
        for k in (1000, 10, 1000):  # what honest use takes
            assert http.get("/search", params={"q": QUESTION, "k": k}).status_code == 200
        before = process.memory_info().rss
        deep = {"q": "x", "filters": [[]]}
        for _ in range(500):
            deep["filters"] = [deep["filters"]]
        statuses = Counter(
            response.status_code
            for response in (
                *(http.post("/search", content=b"x" * (10 << 20)) for _ in range(5)),
                *(http.get("/search", params={"q": "x", "k": k}) for k in (0, -1, 10**9, 2**64, "NaN")),
                *(http.post("/search", json={"q": "x", "k": k}) for k in (0, -1, 10**9, 2**64)),
                http.post("/search", content=b'{"q": "x", "k": NaN}', headers={"content-type": "application/json"}),
                http.post("/search", content=b'{"q": "\\udc00"}', headers={"content-type": "application/json"}),
                http.post("/search", json={"q": "\0"}),
                http.post("/search", json={"q": ""}),
                http.post("/search", json={"q": "x" * 100_000}),
                http.post("/search", json=deep),
                http.post("/search", json={"q": "x", "where": {"page_id": {"$in": list(range(20_000))}}}),
                http.post("/embed", json={"texts": ["x"] * 65}),
                http.post("/embed", json={"texts": []}),
                http.get("/search", params={"q": "x", "wiki": "nowiki"}),
                http.get("/article/99999999"),
                http.get("/similar/99999999"),
            )
        )
        grown = process.memory_info().rss - before
    assert set(statuses) <= {400, 404, 413, 422}, statuses
    assert grown < 64 << 20, f"{grown:,} bytes more"


def test_two_hundred_at_once_are_all_answered(served: Service) -> None:
    many = httpx.Limits(max_connections=200)
    with ThreadPoolExecutor(200) as crowd, httpx.Client(base_url=served.url, timeout=120, limits=many) as http:

        def ask(i: int) -> tuple[int, str]:
            answer = http.get("/search", params={"q": f"{QUESTION} {i}", "k": 3})
            return answer.status_code, answer.json()["hits"][0]["title"]

        answers = Counter(crowd.map(ask, range(200)))
    assert answers == {(200, "Lake Baikal"): 200}


def test_publishing_disturbs_no_question_and_no_answer_mixes_builds(served: Service, published: Settings) -> None:
    stop = threading.Event()

    def keep_asking(i: int) -> list[dict[str, Any]]:
        answers = []
        with httpx.Client(timeout=60) as http:
            while not stop.is_set():
                answer = http.get(f"{served.url}/search", params={"q": f"{QUESTION} {i} {len(answers)}", "k": 5})
                assert answer.status_code == 200, answer.text
                answers.append(answer.json())
        return answers

    with ThreadPoolExecutor(4) as clients:
        asking = [clients.submit(keep_asking, i) for i in range(4)]
        try:
            for _ in range(3):
                build = publish_again(published)["build"]
                wait_until(
                    lambda b=build: httpx.get(f"{served.url}/wikis").json()["wikis"][0]["build"] == b, within_s=30
                )
            n_before = [task.done() for task in asking].count(True)
        finally:
            stop.set()
        answers = [task.result() for task in asking]
    assert n_before == 0, "every client kept asking"
    for mine in answers:
        builds = [answer["build"] for answer in mine]
        assert builds == sorted(builds)
        assert all(answer["collection"] == f"tinywiki-20250105-{answer['build']}" for answer in mine)
        assert all(answer["hits"][0]["title"] == "Lake Baikal" for answer in mine)
    last = httpx.get(f"{served.url}/search", params={"q": QUESTION}).json()
    assert last["build"] == build


def test_questions_are_not_logged(served: Service) -> None:
    httpx.get(f"{served.url}/search", params={"q": "a very private matter"}, timeout=30)
    httpx.get(f"{served.url}/search", params={"q": "a very private matter", "k": -1}, timeout=30)
    assert "private" not in served.log.read_text()


def test_it_serves_before_anything_is_published_and_ends_when_told(tmp_path) -> None:
    with serving({"WIKI_ASSETS_ROOT": str(tmp_path / "data")}, tmp_path / "log", ready="/healthz") as service:
        wait_until(lambda: "nothing is published" in httpx.get(f"{service.url}/readyz").text, within_s=60)
        assert httpx.get(f"{service.url}/search?q=x").status_code == 404
        service.process.send_signal(signal.SIGTERM)
        service.process.wait(30)
        assert "Traceback" not in service.log.read_text()
