"""Where a wiki lives on the web: the address of a page, and the language of its text."""

from functools import cache
from urllib.parse import quote

_PROJECTS = {  # how a wiki's database name ends -> where it lives; `wiki` last, as the others end in it too
    "wiktionary": "wiktionary.org",
    "wikibooks": "wikibooks.org",
    "wikinews": "wikinews.org",
    "wikiquote": "wikiquote.org",
    "wikisource": "wikisource.org",
    "wikiversity": "wikiversity.org",
    "wikivoyage": "wikivoyage.org",
    "wiki": "wikipedia.org",
}
_OWN_DOMAIN = {
    "commonswiki": "commons.wikimedia.org",
    "specieswiki": "species.wikimedia.org",
    "metawiki": "meta.wikimedia.org",
    "wikidatawiki": "www.wikidata.org",
    "mediawikiwiki": "www.mediawiki.org",
    "be_x_oldwiki": "be-tarask.wikipedia.org",
}


def page_url(wiki: str, title: str) -> str:
    """The address of a page, as Wikipedia itself writes it."""
    path = quote(title.replace(" ", "_"), safe=";@$!*(),/~:-_.")
    return f"https://{_domain(wiki)}/wiki/{path}"


def site_of(wiki: str) -> str:
    """The root of a wiki's own server, by its name."""
    return f"https://{_domain(wiki)}"


@cache
def _domain(wiki: str) -> str:
    if wiki in _OWN_DOMAIN:
        return _OWN_DOMAIN[wiki]
    for suffix, domain in _PROJECTS.items():
        if wiki.endswith(suffix):
            return f"{wiki.removesuffix(suffix).replace('_', '-')}.{domain}"
    return f"{wiki.replace('_', '-')}.wikipedia.org"


def language_of(wiki: str) -> str:
    """The language code of a wiki whose documents do not say: `simple` is English."""
    code = _domain(wiki).partition(".")[0]
    return "en" if code in ("simple", "test", "tiny") else code


def permalink(url: str, revision: int) -> str:
    """The address of a page as it stood in one revision; that of the page where the revision is not known."""
    base, wiki, title = url.partition("/wiki/")
    return f"{base}/w/index.php?title={title}&oldid={revision}" if wiki and revision else url
