"""An assistant's tools, asked through the SDK's own client: in this process, over HTTP, and as a command."""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from mcp import Client, StdioServerParameters

from wiki_assets.serving.limits import Limits
from wiki_assets.serving.mcp import make_server
from wiki_assets.serving.service import Service
from wiki_assets.settings import Settings
from wiki_assets_tests.serving.conftest import ARTICLES, Shelf, serving_shelf


def with_client(server: Any, work: Callable[[Client], Awaitable[Any]], **options: Any) -> Any:
    """What `work` returns, given a client of that server."""

    async def connected() -> Any:
        async with Client(server, read_timeout_seconds=60, **options) as client:
            return await work(client)

    return asyncio.run(connected())


def on_shelf(work: Callable[[Client], Awaitable[Any]], shelf: Shelf | None = None) -> Any:
    """The same, with the tools in this process."""
    shelf = shelf or Shelf()
    return with_client(make_server(Service(lambda: shelf, Limits()), own_life=True), work)  # type: ignore[arg-type,return-value]


def test_two_tools_that_only_read_and_ask_to_be_cited() -> None:
    async def look(client: Client) -> Any:
        return (await client.list_tools()).tools, client.instructions

    tools, instructions = on_shelf(look)
    assert [tool.name for tool in tools] == ["search_wikipedia", "get_article"]
    assert all(tool.annotations.read_only_hint for tool in tools)
    assert all("citation" in tool.description for tool in tools)
    assert "Cite" in instructions
    assert tools[0].input_schema["required"] == ["question"]


def test_every_passage_comes_with_its_citation() -> None:
    result = on_shelf(lambda client: client.call_tool("search_wikipedia", {"question": "deepest lake", "count": 2}))
    answer = result.structured_content
    assert (answer["wiki"], answer["snapshot"], answer["build"]) == ("tinywiki", "20250105", 1)
    assert [p["title"] for p in answer["passages"]] == ["Lake Baikal", "Llama"]
    assert answer["passages"][0]["citation"] == (
        "“Lake Baikal”, Wikipedia (tinywiki), revision 108, snapshot of 2025-01-05, "
        "https://tiny.wikipedia.org/wiki/8, CC BY-SA 4.0"
    )
    assert json.loads(result.content[0].text) == answer, "for clients that read text only"


def test_an_article_is_read_in_parts() -> None:
    async def read(client: Client) -> str:
        text, start = "", 0
        while start is not None:
            asked = {"title": "Llama", "start": start, "chars": 30}
            part = (await client.call_tool("get_article", asked)).structured_content
            assert part["citation"].startswith("“Llama”, Wikipedia (tinywiki), revision 107")
            text, start = text + part["text"], part["next_start"]
        return text

    assert on_shelf(read) == ARTICLES[7][1]


@pytest.mark.parametrize(
    ("tool", "arguments", "says"),
    [
        ("get_article", {"title": "Atlantis"}, "no such page"),
        ("get_article", {}, "either title or page_id"),
        ("get_article", {"title": "Llama", "page_id": 7}, "either title or page_id"),
        ("search_wikipedia", {"question": "x", "wiki": "enwiki"}, "published: tinywiki"),
        ("search_wikipedia", {"question": "x", "wiki": "../x"}, "is no wiki"),
        ("search_wikipedia", {"question": " "}, "the question is empty"),
        ("search_wikipedia", {"question": "ü" * 8000}, "16,000 bytes"),
        ("search_wikipedia", {"question": "x" * 9000}, "question"),
        ("search_wikipedia", {"question": "x", "count": 10**9}, "count"),
        ("search_wikipedia", {}, "question"),
    ],
)
def test_a_mistake_is_told_to_the_assistant(tool: str, arguments: dict[str, Any], says: str) -> None:
    result = on_shelf(lambda client: client.call_tool(tool, arguments))
    assert result.is_error
    assert says in result.content[0].text


def test_a_failure_of_ours_does_not_show_where_we_keep_things() -> None:
    shelf = Shelf()
    shelf.fail = RuntimeError("/srv/secret/place")
    result = on_shelf(lambda client: client.call_tool("search_wikipedia", {"question": "x", "wiki": "tinywiki"}), shelf)
    assert result.is_error
    assert "secret" not in str(result)


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_the_same_tools_over_http(mode: Any) -> None:
    with serving_shelf(Limits(rate=0)) as server:
        ask = {"question": "llama", "count": 1}
        result = with_client(f"{server.url}/mcp", lambda client: client.call_tool("search_wikipedia", ask), mode=mode)
        assert result.structured_content["passages"][0]["title"] == "Llama"
        call = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
        elsewhere = httpx.post(f"{server.url}/mcp", json=call, headers={"host": "evil.example"})
        assert 400 <= elsewhere.status_code < 500, "a name that was made to point here"


def test_the_command_answers_over_standard_input_and_output(published: Settings) -> None:
    command = StdioServerParameters(
        command=sys.executable,
        args=["-m", "wiki_assets.cli", "mcp"],
        env={**os.environ, "WIKI_ASSETS_ROOT": published.root},
    )

    async def ask(client: Client) -> Any:
        found = await client.call_tool("search_wikipedia", {"question": "Which lake is the deepest?", "count": 3})
        best = found.structured_content["passages"][0]
        return best, (await client.call_tool("get_article", {"page_id": best["page_id"]})).structured_content

    best, article = with_client(command, ask, mode="legacy")
    assert best["title"] == article["title"] == "Lake Baikal"
    assert "snapshot of 2025-01-05" in best["citation"]
    assert best["passage"] in article["text"]
