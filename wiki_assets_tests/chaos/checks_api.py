"""What must hold of pages fetched by title, whatever the API says: of the build, and not of broken ones.

Each check is one trial: it takes dice and an empty folder, fails with an AssertionError, and returns counts to add up.
"""

import json
import random
from collections import Counter
from pathlib import Path

from wiki_assets.compression import decoded_chunks
from wiki_assets.defs.own import fetch_pages
from wiki_assets.errors import SourceUnavailable
from wiki_assets.keys import Snapshot
from wiki_assets.resources.api import WikiApi
from wiki_assets.resources.session import Patience
from wiki_assets.resources.store import Store
from wiki_assets.stages.dump import DumpReader
from wiki_assets_tests.resources.fake_wiki import FakeWiki, Page, Say, error

SNAPSHOT = Snapshot("xwiki", "10260905")
N_TRIES = 4


def some_wiki(dice: random.Random) -> FakeWiki:
    """A wiki of some pages, redirects of all kinds, and documents here and there."""
    every = ("cirrusdoc", "cirrusbuilddoc", "extracts")
    names = [f"Page {n}" for n in range(dice.randint(1, 130))]
    pages = {}
    for n, name in enumerate(names, 1):
        sources = every if dice.random() < 0.9 else tuple(dice.sample(every, dice.randint(0, 3)))
        pages[name] = Page(n, f"Text of {name}: {dice.randbytes(dice.randint(1, 40)).hex()}", sources)
    redirects = {f"Other {n}": dice.choice(names) for n in range(dice.randint(0, 30))}
    redirects |= {f"Twice {n}": dice.choice(list(redirects)) for n in range(dice.randint(0, 5)) if redirects}
    redirects |= {"Round": "And round", "And round": "Round", "Abroad": "fr:Ailleurs", "Into nothing": "Nowhere at all"}
    wiki = FakeWiki(pages, redirects)
    wiki.pages_per_reply = dice.choice([1, 7, 50])
    wiki.bytes_per_reply = dice.choice([1_500, 1 << 30])
    return wiki


def some_titles(dice: random.Random, wiki: FakeWiki) -> list[str]:
    """What a person may ask for, right, wrong and more than once."""
    wrong = [
        "Nowhere",
        "A[b]",
        "x|y",
        "Special:Random",
        "fr:Ailleurs",
        "Round",
        "Abroad",
        "Into nothing",
        "",
        "ü" * 300,
    ]
    right = [*wiki.pages, *wiki.redirects]
    titles = dice.choices(right, k=dice.randint(1, 150)) + dice.choices(wrong, k=dice.randint(0, 12))
    titles += [title.replace(" ", "_") for title in dice.sample(right, min(5, len(right)))]
    titles += [f" {title[:1].lower()}{title[1:]} " for title in dice.sample(right, min(5, len(right)))]
    dice.shuffle(titles)
    return titles


def expected(wiki: FakeWiki, titles: list[str]) -> tuple[set[int], Counter[str]]:
    """The pages that the titles lead to, and how many titles lead to none, or to one that is there already."""
    pages: set[int] = set()
    others: Counter[str] = Counter()
    for title in titles:
        name, seen = " ".join(title.replace("_", " ").split()), set[str]()
        name = name if name.startswith("fr:") else name[:1].upper() + name[1:]
        while name in wiki.redirects and name not in seen:
            seen.add(name)
            name = wiki.redirects[name]
        page = wiki.pages.get(name)
        if page is None:
            others["no page"] += 1
        elif not page.sources:
            others["no document"] += 1
        elif page.page_id in pages:
            others["duplicate"] += 1
        else:
            pages.add(page.page_id)
    return pages, others


def passing_faults(dice: random.Random) -> list[Say]:
    """Failures that pass, of every documented kind; never so many in a row that one request runs out of attempts."""
    wait = {"Retry-After": "0"} if dice.random() < 0.85 else {"Retry-After": "1"}
    kinds = [
        Say(error("maxlag", "Waiting for 10.64.16.7: 6.2 seconds lagged", lag=6.2), headers=wait),
        Say(error("ratelimited"), headers=wait),
        Say(error("readonly", readonlyreason="upkeep")),
        Say(error("internal_api_error_DBQueryError")),
        Say(error("badcontinue")),
        Say({"errors": [{"code": "maxlag", "text": "in the newer form"}]}),
        Say(body=b"<!DOCTYPE html><html>"),
        Say(cut=dice.uniform(0.1, 0.95)),
        Say(drop=True),
        Say(body=b'{"batchcomplete": true}'),
        Say(status=503, headers=wait),
        Say(status=429, headers=wait),
        Say(continues={"cdcontinue": "0", "continue": "||"}),
    ]
    faults: list[Say] = []
    for _ in range(dice.randint(1, 4)):
        faults += [dice.choice(kinds) for _ in range(dice.randint(1, N_TRIES - 1))]
        faults += [Say()] * 400  # a question may take 130 replies, all of them again after a fault
    return faults


def every_title_has_one_fate(dice: random.Random, folder: Path) -> Counter[str]:
    """Whatever fails on the way: the pages are those that the titles lead to, with the right text, and all adds up."""
    with some_wiki(dice) as wiki:
        titles = some_titles(dice, wiki)
        pages, others = expected(wiki, titles)
        wiki.faults = passing_faults(dice)
        wiki.most_requests = 3_000
        patience = Patience(backoff_s=0, max_attempts=N_TRIES, max_wait_s=30, read_s=10)
        api = WikiApi(wiki.url, "x/0 (me@example.org)", patience=patience, maxlag_s=0, requests_per_minute=10**9)
        store = Store(str(folder))
        try:
            ledger = fetch_pages(SNAPSHOT, titles, api, store, lambda line: None).counts["ledger"]
        except SourceUnavailable:
            if pages:
                raise
            ledger = {"titles": len(titles), "pages": 0, "left_out": dict(others)}
        found = {document.page_id: document.text for document in documents(store)}
        assert wiki.early == 0, f"{wiki.early} requests came too early"
        assert max(len(asked.titles) for asked in wiki.asked) <= 50, "too many titles at once"
    texts = {page.page_id: page.text for page in wiki.pages.values()}
    assert found == {page_id: texts[page_id] for page_id in pages}, "other pages than the titles lead to, or other text"
    left_out = Counter(ledger["left_out"])
    assert ledger["titles"] == len(titles) == ledger["pages"] + left_out.total(), f"not conserved: {ledger}"
    assert ledger["pages"] == len(pages)
    if pages:
        assert left_out["duplicate"] == others["duplicate"] and left_out["no_document"] == others["no document"]
        assert not left_out["failed"], ledger
        indexed = {page.page_id for page in wiki.pages.values() if "cirrusdoc" in page.sources}
        assert ledger["sources"].get("cirrusdoc", 0) == len(pages & indexed), "taken from another source than the index"
    counts = Counter(
        {"titles": len(titles), "conserved": len(titles), "pages": len(pages), "requests": len(wiki.asked)}
    )
    return counts + Counter({"loops cut": api.tally.loops_cut}) + Counter(api.tally.errors)


def documents(store: Store) -> list:
    """What the dump's reader reads of the raw snapshot."""
    found = []
    for path in sorted(store.raw(SNAPSHOT).glob("*.json.gz")) if store.raw(SNAPSHOT).exists() else ():
        reader = DumpReader()
        with path.open("rb") as raw:
            found += reader.documents(decoded_chunks(raw, path.name))
        assert not reader.bad_lines, path
    return found


def a_loop_costs_only_its_title(dice: random.Random, folder: Path) -> Counter[str]:
    """A `continue` that leads nowhere, or an error that stays, costs the title that it is about, and is cut."""
    names = [f"Page {n}" for n in range(dice.randint(5, 120))]
    bad = dice.choice(names)
    with FakeWiki({name: Page(n, f"Text {n}") for n, name in enumerate(names, 1)}) as wiki:
        wiki.pages_per_reply = dice.choice([1, 9, 50])
        wiki.poison = {
            bad: dice.choice(
                [
                    Say(continues={"cdcontinue": "0", "continue": "||"}),
                    Say(error("internal_api_error_Exception")),
                    Say(cut=0.5),
                ]
            )
        }
        patience = Patience(backoff_s=0, max_attempts=N_TRIES, max_wait_s=30, read_s=10)
        api = WikiApi(wiki.url, "x/0 (me@example.org)", patience=patience, maxlag_s=0, requests_per_minute=10**9)
        store = Store(str(folder))
        wiki.most_requests = 40 * N_TRIES + 3 * len(names)
        ledger = fetch_pages(SNAPSHOT, names, api, store, lambda line: None).counts["ledger"]
    assert ledger["left_out"] == {"failed": 1} and ledger["sources"] == {"cirrusdoc": len(names) - 1}
    (left,) = [json.loads(line) for line in (store.raw(SNAPSHOT) / "left_out.jsonl").read_bytes().splitlines()]
    assert left["title"] == bad
    return Counter({"titles": len(names), "conserved": len(names), "loops cut": api.tally.loops_cut})


def no_request_before_its_time(dice: random.Random, folder: Path) -> Counter[str]:
    """After a Retry-After, with whatever status or error it came, the next request waits for as long."""
    with FakeWiki({"Llama": Page(1, "x")}) as wiki:
        later = {"Retry-After": "1"}
        wiki.faults = [
            dice.choice(
                [
                    Say(error("maxlag", lag=7), headers=later),
                    Say(error("ratelimited"), headers=later),
                    Say(status=429, headers=later),
                    Say(status=503, headers=later),
                ]
            )
        ]
        patience = Patience(backoff_s=0, max_attempts=N_TRIES, max_wait_s=30, read_s=10)
        api = WikiApi(wiki.url, "x/0 (me@example.org)", patience=patience, maxlag_s=0, requests_per_minute=10**9)
        fetch_pages(SNAPSHOT, ["Llama"], api, Store(str(folder)), lambda line: None)
        assert wiki.early == 0 and len(wiki.asked) == 2
    return Counter({"waits": 1, "requests before allowed time": wiki.early})
