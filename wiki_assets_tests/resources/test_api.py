"""Pages by title: each title has one fate, whatever the API says and however it says it."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wiki_assets.errors import BadRequest, SourceUnavailable
from wiki_assets.resources import api as api_module
from wiki_assets.resources.api import Fate, WikiApi, _batches
from wiki_assets.resources.replies import Answer, document_of, prepared
from wiki_assets.resources.session import Patience
from wiki_assets_tests.resources.fake_wiki import FakeWiki, Page, Say, error

AGENT = "wiki_assets/0 (+https://x; me@example.org) httpx/0"


def pages_named(*names: str) -> dict[str, Page]:
    return {name: Page(n, f"The text of {name}.") for n, name in enumerate(names, 1)}


@pytest.fixture
def wiki():
    with FakeWiki(pages_named("Llama", "Lake Baikal", "Glacier", "Violin")) as wiki:
        yield wiki


def api_of(wiki: FakeWiki, **changes) -> WikiApi:
    patience = Patience(backoff_s=0, max_attempts=4, max_wait_s=5, read_s=5)
    return WikiApi(wiki.url, AGENT, patience=patience, **{"maxlag_s": 0, "requests_per_minute": 10**9} | changes)


def fates(wiki: FakeWiki, *titles: str, **changes) -> dict[str, Fate]:
    found = list(api_of(wiki, **changes).fetch(titles))
    assert sorted(fate.title for fate in found) == sorted(titles), "every title has one fate"
    return {fate.title: fate for fate in found}


def test_titles_lead_to_pages_by_spelling_and_redirects(wiki):
    wiki.redirects = {
        "Baikal": "Lake Baikal",
        "Baykal": "Baikal",
        "Fiddle": "Violin",
        "A": "B",
        "B": "A",
        "Lama": "fr:Lama",
    }
    found = fates(
        wiki, "llama", "Lake_Baikal", "Baikal", "Baykal", "fiddle", "Nowhere", "A[b]", "x|y", " ", "Special:Random",
        "fr:Lama", "A", "Lama",
    )  # fmt: skip
    assert {title: fate.fate for title, fate in found.items()} == {
        **dict.fromkeys(["llama", "Lake_Baikal", "Baikal", "Baykal", "fiddle"], "page"),
        **{"Nowhere": "missing", "A[b]": "invalid", "x|y": "invalid", " ": "invalid", "Special:Random": "special"},
        **{"fr:Lama": "interwiki", "A": "circular", "Lama": "interwiki"},
    }
    assert [found[title].page_id for title in ("llama", "Lake_Baikal", "Baykal", "fiddle")] == [1, 2, 2, 4]
    assert found["Baykal"].document["text"] == "The text of Lake Baikal."
    assert len(wiki.asked) == 1


def test_a_request_is_polite(wiki):
    fates(wiki, "Llama", maxlag_s=5)
    (asked,) = wiki.asked
    assert asked.agent == AGENT
    assert asked.params["maxlag"] == "5"
    assert "source_text" not in asked.params["cdincludes"].split("|")


def test_titles_go_out_fifty_at_a_time(wiki):
    wiki.pages = pages_named(*(f"Page {n}" for n in range(120)))
    assert {fate.fate for fate in fates(wiki, *wiki.pages).values()} == {"page"}
    assert [len(asked.titles) for asked in wiki.asked] == [50, 50, 20]


def test_long_titles_go_out_in_urls_that_a_server_takes(wiki):
    wiki.pages = pages_named(*(f"{'湖' * 80}{n}" for n in range(30)))
    assert {fate.fate for fate in fates(wiki, *wiki.pages).values()} == {"page"}
    assert len(wiki.asked) > 3


@given(st.lists(st.text(min_size=1, max_size=200), max_size=130, unique=True), st.integers(1, 50))
def test_batches_are_all_titles_in_order(names, most):
    batches = list(_batches(names, most))
    assert [name for batch in batches for name in batch] == names
    assert all(1 <= len(batch) <= most for batch in batches)


@given(st.text())
def test_a_title_is_prepared_once(title):
    name = prepared(title)
    assert name is None or (prepared(name) == name and "|" not in name and name.encode())


# Replies in pieces


def test_a_reply_in_pieces_is_put_together(wiki):
    wiki.pages_per_reply = 1
    assert {fate.fate for fate in fates(wiki, *wiki.pages).values()} == {"page"}
    assert [asked.params.get("cdcontinue") for asked in wiki.asked] == [None, "1", "2", "3"]


def test_a_loop_is_cut_and_costs_only_its_title(wiki):
    wiki.poison = {"Glacier": Say(continues={"cdcontinue": "0", "continue": "||"})}
    api = api_of(wiki)
    found = {fate.title: fate.fate for fate in api.fetch(list(wiki.pages))}
    assert Counter(found.values()) == {"page": 3, "failed": 1} and found["Glacier"] == "failed"
    assert api.tally.loops_cut > 0


def test_a_continue_without_end_is_cut(wiki, monkeypatch):
    monkeypatch.setattr(api_module, "MAX_REPLIES", 5)
    wiki.faults = [Say(continues={"cdcontinue": str(n), "continue": "||"}) for n in range(5)]
    assert fates(wiki, "Llama")["Llama"].fate == "page"
    assert len(wiki.asked) == 6


def test_pages_that_the_wikis_own_bound_cut_off_are_asked_for_again(wiki):
    wiki.bytes_per_reply = 400
    assert {fate.fate for fate in fates(wiki, *wiki.pages).values()} == {"page"}


# Other sources


def test_what_the_index_lacks_is_built_afresh_or_taken_as_plain_text(wiki):
    wiki.pages["Glacier"].sources = ("cirrusbuilddoc", "extracts")
    wiki.pages["Violin"] = Page(
        4, "A violin has\nfour strings.\n== History ==\nOld.\n=== More ===\nNew.", ("extracts",)
    )
    wiki.pages["Empty"] = Page(9, "", ())
    wiki.redirects = {"Fiddle": "Violin"}
    found = fates(wiki, *wiki.pages)
    assert {title: fate.source for title, fate in found.items()} == {
        **{
            "Llama": "cirrusdoc",
            "Lake Baikal": "cirrusdoc",
            "Glacier": "cirrusbuilddoc",
            "Violin": "extracts",
            "Empty": "",
        }
    }
    assert found["Empty"].fate == "no_document"
    assert "source_text" not in found["Glacier"].document
    violin = found["Violin"].document
    assert (
        violin["text"] == "A violin has four strings. Old. New."
        and violin["opening_text"] == "A violin has four strings."
    )
    assert violin["heading"] == ["History", "More"] and violin["category"] == ["Animals"]
    assert violin["redirect"] == [{"namespace": 0, "title": "Fiddle"}]
    assert (violin["page_id"], violin["version"], violin["wikibase_item"], violin["language"]) == (4, 7, "Q7", "en")


def test_a_wiki_without_a_search_index_is_not_asked_for_it_twice(wiki):
    wiki.lacks = {"cirrusdoc", "cirrusbuilddoc"}
    assert {fate.source for fate in fates(wiki, *wiki.pages).values()} == {"extracts"}
    props = [asked.params["prop"].partition("|")[0] for asked in wiki.asked]
    assert props == ["cirrusdoc", "cirrusbuilddoc", *["extracts"] * 4]
    wiki.lacks.add("extracts")
    with pytest.raises(SourceUnavailable, match="knows none of cirrusdoc"):
        fates(wiki, "Llama")


def test_another_pages_document_is_not_taken(wiki):
    wiki.pages["Llama"].more = {"page_id": 77}
    assert fates(wiki, "Llama")["Llama"].source == "extracts"


# Errors, most of which come with HTTP 200

LATER = [
    Say(error("maxlag", "Waiting for 10.64.16.7: 6.2 seconds lagged", lag=6.2), headers={"Retry-After": "0"}),
    Say(error("ratelimited", "You've exceeded your rate limit"), headers={"Retry-After": "0"}),
    Say(error("readonly", "The wiki is currently in read-only mode", readonlyreason="upkeep")),
    Say(error("internal_api_error_DBQueryError", "[abc] Caught exception of type DBQueryError")),
    Say(error("badcontinue", "Invalid continue param")),
    Say(error("concurrency-limit", "Too many concurrent requests")),
    Say({"errors": [{"code": "ratelimited", "text": "in the newer form"}]}),
    Say(body=b"<!DOCTYPE html><html><title>Wikimedia Error</title>"),
    Say(cut=0.6),
    Say(drop=True),
    Say(body=b'{"query": {"pages": {"1": {"title": "old form"}}}}'),
    Say(body=b'{"batchcomplete": true}'),
    Say(body=b"[]"),
    Say(status=503, headers={"Retry-After": "0"}),
    Say(status=429),
]


@pytest.mark.parametrize("say", LATER, ids=lambda say: str(say.error or say.body or say.status)[:40])
def test_what_passes_is_asked_again_and_what_does_not_ends_after_four_attempts(wiki, say):
    wiki.faults = [say] * 3
    assert fates(wiki, "Llama")["Llama"].fate == "page"
    assert len(wiki.asked) == 4
    wiki.asked.clear()
    wiki.faults = [say] * 60
    wiki.pages = pages_named(*(f"Page {n}" for n in range(8)))
    with pytest.raises(SourceUnavailable) as caught:
        fates(wiki, *wiki.pages)
    assert 4 <= len(wiki.asked) <= 60 and "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("code", ["readapidenied", "blocked", "badvalue", "assertuserfailed"])
def test_what_will_not_pass_is_not_asked_again(wiki, code):
    wiki.faults = [Say(error(code))] * 9
    with pytest.raises(SourceUnavailable, match=code):
        fates(wiki, "Llama")
    assert len(wiki.asked) == 1


def test_a_title_that_breaks_the_server_costs_only_itself(wiki):
    names = [f"Page {n}" for n in range(50)]
    wiki.pages = pages_named(*names)
    wiki.poison = {"Page 31": Say(error("internal_api_error_Exception"))}
    found = fates(wiki, *names)
    assert Counter(fate.fate for fate in found.values()) == {"page": 49, "failed": 1}
    assert found["Page 31"].fate == "failed" and "internal_api_error" in found["Page 31"].detail


def test_a_reply_without_bounds_is_not_read_to_its_end(wiki, monkeypatch):
    monkeypatch.setattr(api_module, "MAX_REPLY_BYTES", 2_000)
    wiki.pages["Llama"] = Page(1, "x" * 10_000)
    found = fates(wiki, "Llama", "Violin")
    assert (found["Llama"].fate, found["Violin"].fate) == ("failed", "page")
    assert "over 2,000 bytes" in found["Llama"].detail


def test_a_server_without_an_api_is_named(wiki):
    with pytest.raises(SourceUnavailable, match="name the wiki's api.php with --api"):
        list(WikiApi(f"{wiki.url}/elsewhere/api.php", AGENT).fetch(["Llama"]))
    for url in ("http://example.org", "ftp://x", "https://user@x/w/api.php"):
        with pytest.raises(BadRequest, match="^API "):
            WikiApi(url, AGENT)


def test_the_number_of_articles(wiki):
    wiki.faults = [Say(error("maxlag", lag=9))]
    assert api_of(wiki).articles() == 270_000


NAMES = ["query", "pages", "normalized", "redirects", "from", "to", "title", "warnings", "interwiki"]
ANY_JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
)


@given(ANY_JSON)
def test_any_json_is_an_answer_or_an_error_we_foresee(value):
    answer = Answer()
    try:
        answer.add({"query": value})
        found = answer.find("A")
        if found.fate == "page":
            document_of(found.page, "cirrusdoc")
    except ValueError:
        pass
