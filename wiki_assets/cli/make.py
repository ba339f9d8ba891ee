"""Make a snapshot, see what is done, open the UI."""

import json
import os
import sys
import time
from typing import Any

import click

from wiki_assets.cli.common import FAILED, speak, with_settings
from wiki_assets.errors import BadRequest
from wiki_assets.keys import Snapshot, check_date, check_wiki
from wiki_assets.settings import Settings


@click.command()
@click.argument("wiki")
@click.option("--snapshot", "date", default="latest", show_default=True, help="YYYYMMDD, or the newest complete one.")
@click.option("--until", default="published_index", show_default=True, help="The last asset to make.")
@with_settings
def materialize(wiki: str, date: str, until: str, settings: Settings) -> None:
    """Make what is not done of a snapshot, up to the published index.

    \b
    wiki-assets materialize simplewiki
    wiki-assets materialize enwiki --snapshot 20260823 --until tokens

    Run it again after an interruption: it goes on where it was, and ends at once where nothing is left to do.
    """
    check_wiki(wiki)
    if date != "latest":
        check_date(date)
    from wiki_assets.defs.recipes import STAGES

    if until not in STAGES:
        raise BadRequest(f"--until {until!r}: expected one of {', '.join(STAGES)}")
    started = time.monotonic()
    from wiki_assets.definitions import build
    from wiki_assets.defs.headless import materialize_snapshot
    from wiki_assets.defs.instance import open_instance
    from wiki_assets.defs.raw import require_dump
    from wiki_assets.defs.rollback import standing
    from wiki_assets.defs.wikis import require_shard_count, wiki_config
    from wiki_assets.resources.mirror import DumpMirror
    from wiki_assets.resources.store import Store

    speak()
    store = Store(settings.root)
    mirror = DumpMirror(base_url=settings.mirror, contact=settings.contact)
    snapshot = mirror.latest(wiki) if date == "latest" else Snapshot(wiki, date)
    if store.raw_manifest(snapshot) is None:
        require_dump(snapshot, store)
    known = bool(store.shard_count(wiki) or settings.shards)
    size = (
        None if known or store.raw_manifest(snapshot) else sum(f.size_bytes or 0 for f in mirror.dump_files(snapshot))
    )
    config = wiki_config(wiki, settings, store, dump_bytes=size)
    config.find_model()
    if store.shard_count(wiki) is not None or store.raw_manifest(snapshot) is None:
        if store.raw_manifest(snapshot) is None:
            mirror.dump_files(snapshot)  # before anything is written for a snapshot that is not on offer
        require_shard_count(config, settings, store)
    with open_instance(settings) as instance:
        outcome = materialize_snapshot(snapshot, config, settings, instance=instance, build=build, until=until)
    for failure in outcome.failures:
        click.echo(f"wiki-assets: {failure}", err=True)
    if outcome.failures:
        sys.exit(FAILED)
    if outcome.nothing_to_do:
        click.echo(f"{snapshot}: nothing to do, {until} is up to date")
        for line in standing(store.pointer(wiki)):
            click.echo(line, err=True)
        return
    made = ", ".join(f"{stage} {count}" for stage, count in outcome.made.items())
    click.echo(f"{snapshot}: made {made} in {time.monotonic() - started:.0f} s")


@click.command()
@click.argument("wiki", required=False)
@click.option("--snapshot", "date", help="YYYYMMDD; every snapshot here, if left out.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for pipes.")
@with_settings
def status(wiki: str | None, date: str | None, as_json: bool, settings: Settings) -> None:
    """Show what is done, by asset and shard, as the manifests prove it; and what each snapshot brought.

    \b
    wiki-assets status simplewiki

    Of a snapshot that came after another: pages added, changed, moved and deleted, and the passages whose vectors were
    taken over from it.
    """
    from wiki_assets.defs.report import snapshot_rows, table, week_table
    from wiki_assets.defs.rollback import standing
    from wiki_assets.resources.store import Store

    store = Store(settings.root)
    wikis = [check_wiki(wiki)] if wiki else store.wikis()
    rows: list[dict[str, Any]] = []
    for name in wikis:
        dates = [check_date(date)] if date else store.dates(name)
        if not dates:
            raise BadRequest(f"{name}: no data under {store.wiki(name).parent}: run wiki-assets materialize {name}")
        rows += [row for each in dates for row in snapshot_rows(Snapshot(name, each), settings, store)]
    if as_json:
        for row in rows:
            click.echo(json.dumps(row, ensure_ascii=False))
    elif rows:
        click.echo(table(rows))
        if week := week_table(rows):
            click.echo(f"\n{week}\n")
        for name in wikis:
            pointer = store.pointer(name)
            click.echo(
                f"{name}: published is {pointer['collection']}, {pointer['passages']:,} passages"
                if pointer
                else f"{name}: nothing is published"
            )
            for line in standing(pointer):
                click.echo(line)
    else:
        click.echo("no data here yet: run wiki-assets materialize WIKI")


@click.command()
@click.option("--port", type=int, default=3000, show_default=True)
@with_settings
def ui(port: int, settings: Settings) -> None:
    """Open the Dagster UI on this machine, with its daemon: materialize, backfill, look at metadata."""
    from wiki_assets.defs.instance import open_instance
    from wiki_assets.files import root_path

    with open_instance(settings):
        pass
    os.environ["WIKI_ASSETS_ROOT"] = str(root_path(settings.root))
    os.environ["WIKI_ASSETS_MIRROR"] = settings.mirror
    workspace = os.path.join(os.environ["DAGSTER_HOME"], "workspace.yaml")
    click.echo(f"http://127.0.0.1:{port}  (Ctrl-C ends it)", err=True)
    os.execv(
        sys.executable,
        [sys.executable, "-m", "dagster", "dev", "-w", workspace, "-h", "127.0.0.1", "-p", str(port)],
    )
