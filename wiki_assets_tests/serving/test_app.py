"""What the service answers to each operation, and to whatever else a client may send."""

import json
from datetime import date

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from wiki_assets.errors import DamagedArtifact, NotPublished, SchemaMismatch, SourceUnavailable
from wiki_assets.search import Filters
from wiki_assets.serving.app import create_app
from wiki_assets.serving.limits import Limits
from wiki_assets_tests.serving.conftest import ARTICLES, Asked, Shelf, asking, problem


def test_an_answer_names_its_build_and_its_licence(ask: Asked) -> None:
    answer = ask.http.get("/search", params={"q": "deepest lake", "k": 2}).json()
    assert answer["hits"][0]["title"] == "Lake Baikal"
    assert len(answer["hits"]) == 2
    assert (answer["wiki"], answer["snapshot"], answer["build"]) == ("tinywiki", "20250105", 1)
    assert "CC BY-SA 4.0" in answer["licence"]
    fields = {"rank", "score", "page_id", "title", "url", "revision", "passage", "start", "end", "snapshot", "wiki"}
    assert fields <= set(answer["hits"][0])


def test_get_and_post_ask_the_same(ask: Asked) -> None:
    fields = {
        "q": "lake", "wiki": "tinywiki", "k": 3, "mode": "lexical", "group": True, "category": "Lakes",
        "updated_after": "2024-01-01", "updated_before": "2024-12-31",
    }  # fmt: skip
    assert ask.http.get("/search", params=fields).status_code == 200
    assert ask.http.post("/search", json=fields).status_code == 200
    expected = {
        "question": "lake", "wiki": "tinywiki", "k": 3, "mode": "lexical", "group": True,
        "filters": Filters("Lakes", date(2024, 1, 1), date(2024, 12, 31)),
    }  # fmt: skip
    assert ask.shelf.asked == [expected, expected]


def test_an_article_comes_in_parts_that_join(ask: Asked) -> None:
    text, start = "", 0
    while start is not None:
        part = ask.http.get("/article/7", params={"start": start, "chars": 11}).json()
        text, start = text + part["text"], part["next_start"]
    assert text == ARTICLES[7][1]
    assert part["chars"] == len(text)
    assert ask.http.get("/article", params={"title": "Llama"}).json()["page_id"] == 7


def test_vectors_come_with_their_model(ask: Asked) -> None:
    answer = ask.http.post("/embed", json={"texts": ["a", "b"]}).json()
    assert (len(answer["vectors"]), answer["dim"], answer["model"]) == (2, 3, "all-MiniLM-L6-v2")


def test_similar_articles_are_others(ask: Asked) -> None:
    answer = ask.http.get("/similar/7", params={"k": 2}).json()
    assert [hit["page_id"] for hit in answer["hits"]] == [8, 9]


LONG = "x" * 8193
BAD = [
    ("GET", "/search", {}, 422, "q: Field required"),
    ("GET", "/search", {"q": ""}, 422, "q"),
    ("GET", "/search", {"q": "\0 \t"}, 422, "empty"),
    ("GET", "/search", {"q": LONG}, 422, "q"),
    ("GET", "/search", {"q": "ü" * 4097}, 422, "8,194 bytes"),
    ("GET", "/search", {"q": "x", "k": "0"}, 422, "k"),
    ("GET", "/search", {"q": "x", "k": "-1"}, 422, "k"),
    ("GET", "/search", {"q": "x", "k": "1000000000"}, 422, "less than or equal to 1000"),
    ("GET", "/search", {"q": "x", "k": str(2**64)}, 422, "k"),
    ("GET", "/search", {"q": "x", "k": "nan"}, 422, "k"),
    ("GET", "/search", {"q": "x", "k": "9" * 6000}, 422, "k"),
    ("GET", "/search", {"q": "x", "wiki": "../../etc"}, 422, "wiki"),
    ("GET", "/search", {"q": "x", "wiki": "enwiki"}, 404, "published: tinywiki"),
    ("GET", "/search", {"q": "x", "mode": "magic"}, 422, "'hybrid', 'dense' or 'lexical'"),
    ("GET", "/search", {"q": "x", "where": '{"$or": []}'}, 422, "where: Extra inputs"),
    ("GET", "/search", {"q": "x", "updated_after": "yesterday"}, 422, "updated_after"),
    ("GET", "/search", {"q": "x", "category": ""}, 422, "category"),
    ("GET", "/similar/7", {"k": "0"}, 422, "k"),
    ("GET", f"/similar/{2**64}", {}, 422, "page_id"),
    ("GET", "/similar/-1", {}, 422, "page_id"),
    ("GET", "/similar/x", {}, 422, "page_id"),
    ("GET", "/similar/404", {}, 404, "no such page"),
    ("GET", "/article/404", {}, 404, "no such page"),
    ("GET", "/article", {"title": "\0"}, 404, "no such page"),
    ("GET", "/article", {}, 422, "title"),
    ("GET", "/nowhere", {}, 404, "/openapi.json"),
    ("GET", "/static/..%2f..%2fapp.py", {}, 404, ""),
    ("DELETE", "/search", {"q": "x"}, 405, "method"),
    ("GET", "/mcp", {}, 405, "method"),
]


@pytest.mark.parametrize(("method", "path", "params", "status", "says"), BAD)
def test_what_cannot_be_asked_is_a_4xx_that_says_why(
    ask: Asked, method: str, path: str, params: dict[str, str], status: int, says: str
) -> None:
    problem(ask.http.request(method, path, params=params), status, says)


BODIES = [
    (b"", "Field required"),
    (b"{", ""),
    (b"\xff\xfe", ""),
    (b"null", ""),
    (b"[]", ""),
    (b'{"q": "\\ud800"}', ""),
    (b'{"q": "x", "k": NaN}', "k"),
    (b'{"q": "x", "k": 1e400}', "k"),
    (b'{"q": "x", "k": %s}' % (b"9" * 5000), ""),
    (b'{"q": "x", "k": true, "k": "2**64"}', "k"),
    (b'{"q": ["x"]}', "q"),
    (b'{"q": "x", "vector": [NaN, 1, 2]}', "vector: Extra inputs"),
    (b'{"q": "x", "filters": {"$where": "1"}}', "filters: Extra inputs"),
    (b'{"q": "x", "filters": ' + b'{"$and": [' * 2000 + b"]}" * 2000 + b"}", ""),
    (b'{"q": "x", "category": {"$in": %s}}' % json.dumps(["c"] * 10_000).encode(), "category"),
    (b'{"q": "x", "\\ud800": 1}', "unicode"),
    (b'{"q": "x", "%s": 1}' % (b"y" * 5000), "Extra inputs"),
]


def test_a_body_has_to_say_that_it_is_json(ask: Asked) -> None:
    problem(ask.http.post("/search", content=b'{"q": "x"}'), 415, "application/json")
    problem(ask.http.post("/embed", data={"texts": "x"}), 415, "application/json")


@pytest.mark.parametrize("body", [body for body, _ in BODIES], ids=range(len(BODIES)))
def test_a_body_that_makes_no_sense_is_a_4xx(ask: Asked, body: bytes) -> None:
    response = ask.http.post("/search", content=body, headers={"content-type": "application/json"})
    problem(response, 422 if response.status_code == 422 else 400, dict(BODIES)[body])
    assert not ask.shelf.asked


def test_a_deployment_of_several_wikis_wants_to_know_which() -> None:
    shelf = Shelf(["simplewiki", "tinywiki"])
    with asking(shelf) as http:
        problem(http.get("/search", params={"q": "x"}), 400, "simplewiki, tinywiki")
        assert http.get("/search", params={"q": "x", "wiki": "simplewiki"}).json()["wiki"] == "simplewiki"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (SchemaMismatch("model 'b' asked, made with 'a'"), 500),
        (SourceUnavailable("http://chroma.internal:8000: no Chroma server answers"), 503),
        (NotPublished("collection tinywiki-20250105-1 is published, but /srv/place does not have it"), 503),
        (DamagedArtifact("/srv/place/published.json: expected JSON"), 500),
        (RuntimeError("/srv/place"), 500),
    ],
)
def test_our_own_failures_go_to_the_log_and_not_to_the_client(
    ask: Asked, error: Exception, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    ask.shelf.fail = error
    response = ask.http.get("/search", params={"q": "x"})
    problem(response, status)
    assert ("retry-after" in response.headers) == (status == 503)
    assert "place" not in response.text
    assert "internal" not in response.text
    assert str(error) in caplog.text


def test_what_is_published_is_shown_without_inner_addresses(ask: Asked) -> None:
    shown = ask.http.get("/wikis")
    assert "secret" not in shown.text
    assert shown.json()["wikis"][0]["collection"] == "tinywiki-20250105-1"


def test_ready_only_while_something_is_published(ask: Asked) -> None:
    assert ask.http.get("/healthz").json() == {"status": "alive"}
    while ask.http.get("/readyz").status_code == 503:
        pass
    ask.shelf.names = []
    problem(ask.http.get("/readyz"), 503, "nothing is published")
    problem(ask.http.get("/search", params={"q": "x"}), 404, "nothing is published")


def test_an_index_that_cannot_be_asked_is_not_ready_until_it_can() -> None:
    shelf = Shelf()
    shelf.fail = SchemaMismatch("another model")
    with asking(shelf) as http:
        problem(http.get("/readyz"), 503)
        shelf.fail = None
        while http.get("/readyz").status_code == 503:
            pass


def test_metrics_count_by_route_and_reason() -> None:
    with asking(Shelf()) as http:
        for path in ("/search?q=x", "/search", "/similar/7", "/similar/8", "/wp-login.php"):
            http.get(path)
        text = http.get("/metrics").text
    assert 'wiki_assets_requests_total{path="/search",status="200"} 1.0' in text
    assert 'wiki_assets_requests_total{path="/search",status="422"} 1.0' in text
    assert 'wiki_assets_requests_total{path="/similar/{page_id}",status="200"} 2.0' in text
    assert 'wiki_assets_requests_total{path="none",status="404"} 1.0' in text
    assert 'wiki_assets_published_passages{build="1",snapshot="20250105",wiki="tinywiki"} 4.0' in text
    assert "wp-login" not in text


# --- the page


def test_the_page_shows_passages_with_the_words_of_the_question_marked(ask: Asked) -> None:
    page = ask.http.get("/", params={"q": "which lakes are deepest?"})
    assert page.status_code == 200
    assert "<mark>deepest lake</mark>" in page.text
    assert '<time datetime="2025-01-05">5 January 2025</time>' in page.text
    assert "CC BY-SA 4.0" in page.text
    assert "https://tiny.wikipedia.org/wiki/8#:~:text=Lake%20Baikal%20is%20the%20deepest%20lake" in page.text


def test_nothing_of_a_passage_or_a_question_becomes_markup(ask: Asked) -> None:
    for path in ("/", "/results"):
        page = ask.http.get(path, params={"q": '"><script>alert(2)</script> program', "wiki": "tinywiki"}).text
        assert "<script>alert" not in page
        assert "<b>" not in page
        assert "&lt;<mark>script</mark> src=&#34;x&#34;&gt; runs a <mark>program</mark> &amp; more" in page
    assert "<script>alert" not in ask.http.get("/", params={"page": "9"}).text


def test_the_page_loads_nothing_from_elsewhere(ask: Asked) -> None:
    page = ask.http.get("/")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "unsafe" not in policy
    for name in ("style.css", "page.js", "icon.svg"):
        address = page.text.split(f"/static/{name}")[1].split('"')[0]
        asset = ask.http.get(f"/static/{name}{address}")
        assert asset.headers["cache-control"].endswith("immutable")
        assert "http" not in asset.text.replace("http://www.w3.org/2000/svg", "")
    assert page.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "address",
    [
        "/?q=" + "x" * 9000, "/?q=x&wiki=../..", "/?q=x&mode=magic", "/?q=x&k=abc", "/?page=404", "/?similar=404",
        "/?page=999999999999999999999", "/?q=x&updated_after=soon", "/?page=7&start=5000&end=2", "/?q=%ED%A0%80",
    ],
)  # fmt: skip
def test_the_page_bears_any_address(ask: Asked, address: str) -> None:
    page = ask.http.get(address)
    assert page.status_code < 500
    assert page.text.startswith("<!doctype html>")
    assert page.status_code == 200 or 'role="alert"' in page.text


def test_the_page_says_how_to_begin_where_nothing_is_published(ask: Asked) -> None:
    ask.shelf.names = []
    assert "wiki-assets materialize" in ask.http.get("/").text


def test_an_article_is_shown_with_the_passage_marked(ask: Asked) -> None:
    page = ask.http.get("/", params={"page": "7", "start": "0", "end": "12", "q": "spit"}).text
    assert '<mark id="passage" tabindex="-1">Llamas spit </mark>at one' in page


def test_the_operations_are_described_for_people(ask: Asked) -> None:
    page = ask.http.get("/docs").text
    assert "/similar/{page_id}" in page
    assert "up to 8 KiB" in page


# --- everything that OpenAPI allows, and some that it does not

_shelf = Shelf()
_refusals = {"negative_data_rejection": {"expected-statuses": ["400", "404", "405", "413", "414", "415", "422"]}}
schema = schemathesis.openapi.from_asgi(
    "/openapi.json",
    create_app(lambda: _shelf, Limits(rate=0)),  # type: ignore[arg-type,return-value]
    config=schemathesis.Config.from_dict({"checks": _refusals}),
)


@schema.parametrize()
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_answers_are_as_openapi_says(case: schemathesis.Case) -> None:
    case.call_and_validate(excluded_checks=[positive_data_acceptance])  # a page that is not there is a 404
