"""The page in a real browser: typed at, steered by the keyboard, on a phone, in the dark, without scripts, offline."""

from collections.abc import Iterator
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import pytest

from wiki_assets_tests.serving.browser import CHROMIUM, Page, browsing
from wiki_assets_tests.serving.service import Service

pytestmark = [
    pytest.mark.browser,
    pytest.mark.chroma,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium"),
]

QUESTION = "Which lake holds a fifth of the unfrozen fresh water?"
SCREENS = {"desktop": {"width": 1200}, "phone": {"width": 390, "height": 844, "phone": True, "dark": True}}


@pytest.fixture(scope="module")
def tab(served: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """One tab for the tests of this file; pictures of it lie in `pictures` beside its profile."""
    with browsing(tmp_path_factory.mktemp("browser")) as page:
        page.open(served.url)  # the first one takes a second
        yield page


@pytest.fixture
def page(tab: Page) -> Iterator[Page]:
    """The tab, as a person with a desktop sees it; nothing it logged as an error goes unseen."""
    tab.show(width=1200)
    tab.problems.clear()
    tab.requested.clear()
    yield tab
    assert tab.problems == []


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures of the page are kept, for a look at them."""
    return tmp_path_factory.mktemp("pictures")


def focus(page: Page) -> str:
    """What has the focus: its id, or its text."""
    return page.run("document.activeElement.id || document.activeElement.textContent")


def test_an_answer_comes_while_the_question_is_typed(page: Page, served: Service) -> None:
    page.open(served.url)
    assert focus(page) == "q", "one can type at once"
    page.type(QUESTION)
    page.until("document.querySelector('h3')?.textContent == 'Lake Baikal'")
    page.until("[...document.querySelectorAll('.hits li:first-child mark')].map(m => m.textContent).includes('fifth')")
    shown = page.run("document.querySelector('.hits li').textContent")
    for text in ("Snapshot of 5 January 2025", "revision 2112", "CC BY-SA 4.0", "deepest lake on Earth"):
        assert text in shown
    page.until("document.querySelector('[role=status]').textContent.includes('10 passages')")
    page.until("document.title.startsWith('Which lake')")
    assert "q=Which+lake" in page.run("location.search")
    assert page.run("document.querySelector('h3 a').href").startswith(
        "https://tiny.wikipedia.org/wiki/Lake_Baikal#:~:text="
    )


def test_everything_comes_from_the_service_itself(page: Page, served: Service) -> None:
    page.open(f"{served.url}/?q=llama")
    page.open(f"{served.url}/docs")
    assert page.requested
    assert [url for url in page.requested if not url.startswith((served.url, "data:"))] == []


def test_the_keyboard_is_enough(page: Page, served: Service) -> None:
    page.open(f"{served.url}/?q=glacier")
    page.run("document.activeElement.blur()")
    page.press("/")
    assert focus(page) == "q"
    first, second = page.run("[...document.querySelectorAll('h3 a')].slice(0, 2).map(a => a.textContent)")
    page.press("ArrowDown")
    assert focus(page) == first
    page.press("ArrowDown")
    assert focus(page) == second
    assert page.run("document.activeElement.getBoundingClientRect().bottom < innerHeight"), "it is in view"
    page.press("ArrowUp")
    page.press("ArrowUp")
    assert focus(page) == "q"
    page.press("ArrowDown")
    page.press("Escape")
    assert focus(page) == "q"
    page.press("Escape")
    page.until("document.querySelector('.top').dataset.empty == 'yes'")
    assert page.run("document.getElementById('q').value") == ""
    page.type("volcano")
    page.press("Enter")
    page.until("location.search == '?q=volcano' && document.querySelector('h3')")


def test_a_refinement_asks_again(page: Page, served: Service) -> None:
    page.open(f"{served.url}/?q=lake")
    page.run("document.querySelector('.refine').open = true; document.querySelector('[name=group]').click()")
    page.until("location.search.includes('group=1') && !document.querySelector('[aria-busy]')")
    titles = page.run("[...document.querySelectorAll('h3 a')].map(a => a.textContent)")
    assert len(set(titles)) == len(titles) > 3


def test_an_article_opens_at_the_passage_and_leads_back(page: Page, served: Service) -> None:
    page.open(f"{served.url}/?q=deepest+lake")
    page.run("document.querySelector('.more a').click()")
    page.until("document.querySelector('h1')?.textContent == 'Lake Baikal' && document.getElementById('passage')")
    assert "deepest lake" in page.run("document.getElementById('passage').textContent")
    page.until("document.getElementById('passage').getBoundingClientRect().top < innerHeight")
    page.run("document.querySelector('.back').click()")
    page.until("location.search.includes('q=deepest+lake') && document.querySelector('.hits')")


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize(
    ("name", "address"),
    [("home", "/"), ("found", "/?q=which+lake+is+deepest"), ("refined", "/?q=lake&mode=dense&group=1"),
     ("article", "/?page=112&start=0&end=467&q=lake"), ("wrong", "/?q=x&wiki=nowiki"), ("docs", "/docs")],
)  # fmt: skip
def test_each_page_is_accessible_and_fits(
    page: Page, served: Service, pictures: Path, name: str, address: str, screen: str
) -> None:
    page.show(**SCREENS[screen])
    page.open(served.url + address)
    page.picture(pictures / f"{name}-{screen}.png")
    assert page.run("document.documentElement.scrollWidth <= innerWidth"), "it scrolls sideways"
    paper = page.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(part) for part in paper[4:-1].split(",")) < 200) == (screen == "phone"), "a phone at night"
    if find_spec("axe_core_python") is None:
        pytest.skip("axe-core is not installed: pip install axe-core-python")
    page.run((files("axe_core_python") / "axe.min.js").read_text("utf-8") + "; 0")
    found = page.run("axe.run().then(r => r.violations.map(v => v.id + ': ' + v.nodes.map(n => n.html).join(' | ')))")
    assert found == []
    page.problems = [p for p in page.problems if name != "wrong" or "404" not in p]


def test_it_works_without_scripts(page: Page, served: Service) -> None:
    page.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.open(served.url)
        page.type("volcano")
        page.press("Enter")
        page.until("location.search.includes('q=volcano') && document.querySelector('.hits h3')")
        assert page.run("document.querySelectorAll('mark').length") > 0
    finally:
        page.send("Emulation.setScriptExecutionDisabled", value=False)


def test_it_says_so_when_the_service_does_not_answer(page: Page, served: Service) -> None:
    page.open(served.url)
    offline = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.send("Network.emulateNetworkConditions", offline=True, **offline)
    try:
        page.type("llama")
        page.until("document.querySelector('[role=alert]')?.textContent.startsWith('No connection')")
    finally:
        page.send("Network.emulateNetworkConditions", offline=False, **offline)
    page.press("Enter")
    page.until("document.querySelector('.hits')")
    page.problems = [p for p in page.problems if "ERR_INTERNET_DISCONNECTED" not in p]
