"""Lines of a dump, right ones and wrong ones."""

import json

BOM = b"\xef\xbb\xbf"


def action(page_id: int | str, kind: str | None = None) -> bytes:
    return json.dumps({"index": ({"_type": kind} if kind else {}) | {"_id": page_id}}, separators=(",", ":")).encode()


def document(page_id: int | None, **fields: object) -> bytes:
    given_id = {} if page_id is None else {"page_id": page_id}
    whole = (
        given_id | {"title": f"Page {page_id}", "namespace": 0, "text": f"Text of {page_id}.", "version": 7} | fields
    )
    return json.dumps(whole).encode()


def raw(page_id: int, name: str, value: bytes) -> bytes:
    """A document with one field written as it stands."""
    return document(page_id)[:-1] + b', "%s": %s}' % (name.encode(), value)


def pair(page_id: int, **fields: object) -> bytes:
    return action(page_id) + b"\n" + document(page_id, **fields) + b"\n"


ACTION = action(50) + b"\n"
DEEP = b"[" * 100_000 + b"]" * 100_000

# name -> (what stands between good pages, the reasons counted for it, whether page 50 is read nevertheless)
CLASSES: dict[str, tuple[bytes, dict[str, int], bool]] = {
    "garbage": (b"#### no JSON ####\n", {"bad_json": 1}, False),
    "binary garbage": (bytes(range(256)).replace(b"\n", b"") + b"\n", {"bad_text": 1}, False),
    "garbage between an action and its document": (ACTION + b"####\n" + document(50) + b"\n", {"bad_json": 1}, True),
    "a document cut in half": (ACTION + document(50)[:40] + b"\n", {"bad_json": 1}, False),
    "a cut action line": (b'{"index":{"_id":\n' + document(50) + b"\n", {"bad_json": 1}, True),
    "no index line": (document(50) + b"\n", {}, True),
    "neither index line nor page id": (document(None) + b"\n", {"no_action": 1}, False),
    "two actions": (action(49) + b"\n" + ACTION + document(50) + b"\n", {"no_document": 1}, True),
    "an action of another page": (action(49) + b"\n" + document(50) + b"\n", {"no_document": 1}, True),
    "a document written twice": (ACTION + (document(50) + b"\n") * 2, {}, True),
    "CRLF": (pair(50).replace(b"\n", b"\r\n"), {}, True),
    "blank lines": (b"\n\n" + ACTION + b"\r\n\n" + document(50) + b"\n\n", {}, True),
    "a byte order mark": (BOM + pair(50), {}, True),
    "a byte order mark before each line": (BOM + pair(50).replace(b"\n{", b"\n" + BOM + b"{"), {}, True),
    "a byte order mark alone": (BOM + b"\r\n" + pair(50), {}, True),
    "an action with spaces": (b' { "index" : { "_id" : 50 } }\n' + document(None) + b"\n", {}, True),
    "invalid UTF-8 in the text": (ACTION + raw(50, "text", b'"caf\xe9"') + b"\n", {"bad_text": 1}, False),
    "invalid UTF-8 in a field of no interest": (ACTION + raw(50, "source_text", b'"caf\xe9"') + b"\n", {}, True),
    "invalid UTF-8 in the action": (b'{"index":{"_id":"\xe9"}}\n' + document(50) + b"\n", {"bad_json": 1}, True),
    "a NUL byte": (ACTION + raw(50, "text", b'"a\0b"') + b"\n", {"bad_json": 1}, False),
    "an escaped NUL": (pair(50, text="a\0b"), {}, True),
    "NUL bytes as a line": (b"\0" * 512 + b"\n", {"bad_json": 1}, False),
    "half a surrogate pair in the text": (pair(50, text="\ud800"), {"bad_text": 1}, False),
    "half a surrogate pair in the title": (pair(50, title="\udfff"), {"bad_text": 1}, False),
    "half a surrogate pair in a field of no interest": (pair(50, source_text="\ud800"), {}, True),
    "deep JSON": (DEEP + b"\n", {"bad_json": 1}, False),
    "deep JSON in a document": (ACTION + raw(50, "x", DEEP) + b"\n", {"bad_json": 1}, False),
    "deep JSON in an action": (b'{"index":' + DEEP + b"}\n" + document(50) + b"\n", {"bad_json": 1}, True),
    "a revision of 5,000 digits": (ACTION + raw(50, "version", b"1" * 5_000) + b"\n", {"bad_json": 1}, False),
    "5,000 digits in a field of no interest": (ACTION + raw(50, "x", b"1" * 5_000) + b"\n", {}, True),
    "a revision that no column can hold": (pair(50, version=2**70), {"bad_type": 1}, False),
    "NaN as text": (ACTION + raw(50, "text", b"NaN") + b"\n", {"bad_type": 1}, False),
    "NaN as popularity": (ACTION + raw(50, "popularity_score", b"NaN") + b"\n", {}, True),
    "a page id of another type": (
        ACTION + document(50).replace(b'"page_id": 50', b'"page_id": "fifty"') + b"\n",
        {"bad_type": 1},
        False,
    ),
    "a number as text": (pair(50, text=17), {"bad_type": 1}, False),
    "a list as title": (pair(50, title=["Page"]), {"bad_type": 1}, False),
    "no title": (pair(50, title=None), {"bad_type": 1}, False),
    "a namespace of another type": (pair(50, namespace="0"), {"bad_type": 1}, False),
    "categories of another type": (pair(50, category="Animals"), {}, True),
    "redirects of another type": (pair(50, redirect=[1, 2]), {}, True),
    "links of another type": (pair(50, incoming_links="many"), {}, True),
    "a list for a document": (ACTION + b"[1, 2]\n", {"not_a_page": 1}, False),
    "a string for a document": (ACTION + b'"page"\n', {"not_a_page": 1}, False),
    "a search request": (
        action("AVQXnGH_62ew") + b'\n{"query":{"match":{"all":"x"}},"size":20}\n',
        {"not_a_page": 1},
        False,
    ),
    "page id 0": (action(0) + b"\n" + document(0) + b"\n", {"not_a_page": 1}, False),
    "a negative page id": (action(-5) + b"\n" + document(-5) + b"\n", {"not_a_page": 1}, False),
    "a page id beyond 63 bits": (action(2**63) + b"\n" + document(2**63) + b"\n", {"not_a_page": 1}, False),
}
