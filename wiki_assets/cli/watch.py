"""Keep wikis up to date without the UI; list the wikis that are kept."""

import json
import subprocess
import sys
import time
from typing import Any

import click

from wiki_assets.cli.common import FAILED, with_settings
from wiki_assets.errors import BadRequest, SourceUnavailable
from wiki_assets.keys import check_wiki
from wiki_assets.settings import Settings


@click.command()
@click.argument("wikis", nargs=-1)
@click.option("--once", is_flag=True, help="Look once, make what is due, and end: for cron.")
@with_settings
def watch(wikis: tuple[str, ...], once: bool, settings: Settings) -> None:
    """Look for new snapshots, and make and publish them as they come; every wiki of the wikis file, if none is named.

    \b
    wiki-assets watch simplewiki frwiki
    wiki-assets watch --once

    Says why nothing happens when nothing does. What failed is tried again at the next look, an hour later, or what
    check_minutes says in the wikis file. The UI's sensors do the same; use one or the other.
    """
    from wiki_assets.defs.sensors import newest_to_make
    from wiki_assets.defs.wikis import read_wikis
    from wiki_assets.resources.mirror import DumpMirror
    from wiki_assets.resources.store import Store

    lines = read_wikis(settings)
    store, mirror = Store(settings.root), DumpMirror(base_url=settings.mirror, contact=settings.contact)
    names = [check_wiki(wiki) for wiki in wikis] or sorted({*lines, *store.wikis()})
    if not names:
        raise BadRequest("no wiki to watch: name one, or put a line such as [simplewiki] into the wikis file")
    due = dict.fromkeys(names, 0.0)
    failed: list[str] = []
    while True:
        for wiki in [name for name in names if due[name] <= time.monotonic()]:
            try:
                found = newest_to_make(wiki, (), mirror, store)
            except SourceUnavailable as error:
                found = str(error)
                failed.append(wiki)
            click.echo(f"{wiki}: {found.date} is due" if not isinstance(found, str) else found)
            if not isinstance(found, str) and _make(wiki, found.date, settings) != 0:
                failed.append(wiki)
            due[wiki] = time.monotonic() + 60 * float(str(lines.get(wiki, {}).get("check_minutes", 60)))
        if once:
            break
        time.sleep(max(1.0, min(due.values()) - time.monotonic()))
    if failed:
        sys.exit(FAILED)


def _make(wiki: str, date: str, settings: Settings) -> int:
    """Make a snapshot in a process of its own: if its Ray dies, it does not take the watcher along."""
    flags = ["--root", settings.root, "--mirror", settings.mirror, "--model", settings.model]
    flags += ["--chroma", settings.chroma] if settings.chroma else []
    flags += ["--shards", str(settings.shards)] if settings.shards else []
    command = [sys.executable, "-m", "wiki_assets.cli", "materialize", wiki, "--snapshot", date, *flags]
    return subprocess.run(command, check=False).returncode


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for pipes.")
@with_settings
def wikis(as_json: bool, settings: Settings) -> None:
    """List the wikis that are kept: those of the wikis file, and those that have data here.

    \b
    wiki-assets wikis
    """
    from wiki_assets.defs.report import aligned
    from wiki_assets.defs.wikis import known_wikis
    from wiki_assets.resources.store import Store

    store = Store(settings.root)
    rows: list[dict[str, Any]] = []
    for config in known_wikis(settings, store):
        pointer = store.pointer(config.wiki) or {}
        rows.append(
            {
                "wiki": config.wiki,
                "shards": config.shards,
                "model": config.model,
                "encoding": config.encoding,
                "check_minutes": config.check_minutes,
                "snapshots": store.dates(config.wiki),
                "published": pointer.get("collection"),
                "pages": pointer.get("pages"),
            }
        )
    if as_json:
        for row in rows:
            click.echo(json.dumps(row, ensure_ascii=False))
        return
    head = ("wiki", "shards", "model", "looked for", "snapshots here", "published")
    cells = [head] + [
        (
            row["wiki"],
            str(row["shards"]),
            row["model"],
            f"every {row['check_minutes']} min",
            ", ".join(row["snapshots"]) or "none",
            f"{row['published']}, {row['pages']:,} pages" if row["published"] else "nothing",
        )
        for row in rows
    ]
    click.echo(aligned(cells))
