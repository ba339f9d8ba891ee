"""Read the folder pages of a dump server: which names lie there, and how large the files are.

Source: the pages of nginx's autoindex, which Wikimedia serves; Apache's and Python's are close enough.
"""

import html
import re
from urllib.parse import unquote

from wiki_assets.errors import TransientSource

_LINK = re.compile(  # every repeat is bounded, so that no page takes more than time in proportion to its length
    r"""<a\s[^<>]{0,200}?href=["']([^"'<>]{0,1000})["'][^<>]{0,200}>[^<]{0,1000}</a>"""
    r"""(?:[ \t]{1,200}\S{1,40}[ \t]{1,40}\S{1,40}[ \t]{1,40}([0-9]{1,18})(?=\s|<|$))?"""
)


def read_listing(page: str, url: str) -> dict[str, int | None]:
    """The names in a folder, in the order of the page.

    Args:
        page: the folder's page.
        url: where it came from, for the error.

    Returns:
        Each name, unquoted, a folder's with its `/`; with the file's size in bytes where the page states it
        exactly. Links that lead elsewhere (`../`, absolute ones, sort orders) are left out.

    Raises:
        TransientSource: if the page does not run to its end: names could be missing.
    """
    if not page.rstrip().lower().endswith("</html>"):
        raise TransientSource(f"{url}: the listing is cut after {len(page):,} characters; expected </html> at its end")
    names: dict[str, int | None] = {}
    for link, size in _LINK.findall(page):
        name = unquote(html.unescape(link).removeprefix("./"))
        if name.rstrip("/") not in ("", ".", "..") and not re.search(r"/.|[?#\\\0]|^/|:", name):
            names[name] = int(size) if size else names.get(name)
    return names
