"""Prove what is there, mend what does not agree, rebuild the index, fail runs that died."""

import json
import sys
import time

import click

from wiki_assets.cli.common import DONE, FAILED, speak, with_settings
from wiki_assets.errors import BadRequest
from wiki_assets.keys import check_date, check_wiki
from wiki_assets.settings import Settings

no_index = click.option("--no-index", "index", is_flag=True, flag_value=False, default=True, help="Leave Chroma out.")
as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for pipes.")


@click.command()
@click.argument("wiki", required=False)
@click.option("--snapshot", "date", help="YYYYMMDD; every snapshot here, if left out.")
@no_index
@as_json
@with_settings
def verify(wiki: str | None, date: str | None, index: bool, as_json: bool, settings: Settings) -> None:
    """Prove offline that what is shown as done is there, byte for byte.

    \b
    wiki-assets verify simplewiki
    wiki-assets verify --no-index

    Reads and hashes every file, and compares every row of the index with the file it was made from. Changes nothing.
    Exit code 1, and a line each, if a partition is damaged, or Dagster shows it as made and nothing vouches for it.
    """
    from wiki_assets.defs.instance import existing_instance
    from wiki_assets.defs.upkeep import verify as verifying
    from wiki_assets.defs.upkeep.status import known_wikis
    from wiki_assets.resources.store import Store

    if date:
        check_date(date)
    store = Store(settings.root)
    bad: list[str] = []
    with existing_instance(settings) as instance:
        known = {*store.wikis(), *(known_wikis(instance) if instance else ())}
        for name in _wikis(wiki, known, settings):
            report = verifying.verify(name, settings, store, instance=instance, date=date, index=index)
            rows = verifying.rows(report)
            if as_json:
                for row in rows:
                    click.echo(json.dumps(row, ensure_ascii=False))
            elif rows:
                click.echo(verifying.table(rows))
            bad += verifying.problems(report)
            if untold := report.untold():
                click.echo(
                    f"wiki-assets: {name}: {len(untold)} proven partitions are not shown in Dagster: "
                    f"run wiki-assets reconcile {name}",
                    err=True,
                )
            if instance is None:
                click.echo(f"wiki-assets: no Dagster instance in {settings.dagster_home}: manifests alone", err=True)
    for problem in bad:
        click.echo(f"wiki-assets: {problem}", err=True)
    if bad:
        names = sorted({problem.split(" ", 1)[0] for problem in bad})
        moves = "; ".join(f"wiki-assets reconcile {name}, then wiki-assets materialize {name}" for name in names)
        click.echo(f"wiki-assets: not as it should be: {len(bad)}. Run {moves}", err=True)
    sys.exit(FAILED if bad else DONE)


@click.command()
@click.argument("wiki", required=False)
@click.option("--dry-run", is_flag=True, help="Only say what would be changed.")
@no_index
@with_settings
def reconcile(wiki: str | None, dry_run: bool, index: bool, settings: Settings) -> None:
    """Make Dagster's status and the files agree, in both directions.

    \b
    wiki-assets reconcile simplewiki --dry-run
    wiki-assets reconcile simplewiki

    After a lost Dagster database, a restored backup or a deleted file. Everything is verified first; what is proven
    is shown to Dagster, what is not is forgotten by it, and what vouches for damaged files is set aside. Nothing is
    deleted or computed; materialize makes again what is missing. Done twice, the second time changes nothing.
    """
    from wiki_assets.defs.instance import open_instance
    from wiki_assets.defs.upkeep.reap import reap as reap_runs
    from wiki_assets.defs.upkeep.reconcile import reconcile as mend
    from wiki_assets.defs.upkeep.status import known_wikis
    from wiki_assets.resources.store import Store

    store = Store(settings.root)
    with open_instance(settings) as instance:
        reap_runs(instance, dry_run=dry_run)
        for name in _wikis(wiki, {*store.wikis(), *known_wikis(instance)}, settings):
            report, changes = mend(name, settings, store, instance=instance, index=index, dry_run=dry_run)
            for line in changes.lines():
                click.echo(f"{name}: {line}")
            if not changes:
                click.echo(f"{name}: nothing to change, Dagster and the files agree")
            elif not report.whole:
                click.echo(f"{name}: what was damaged is made again by wiki-assets materialize {name}")


@click.command("rebuild-index")
@click.argument("wiki")
@click.option("--snapshot", "date", help="YYYYMMDD; the published one, if left out.")
@with_settings
def rebuild_index(wiki: str, date: str | None, settings: Settings) -> None:
    """Rebuild an index from its Parquet files, without embedding again, and publish it.

    \b
    wiki-assets rebuild-index simplewiki

    After its folder or the Chroma server's data was lost. The published build goes on answering until the new one has
    passed every check.
    """
    check_wiki(wiki)
    if date:
        check_date(date)
    started = time.monotonic()
    from wiki_assets.definitions import build
    from wiki_assets.defs.instance import open_instance
    from wiki_assets.defs.upkeep.rebuild import rebuild_index as rebuild
    from wiki_assets.defs.upkeep.rebuild import snapshot_to_rebuild
    from wiki_assets.defs.wikis import wiki_config
    from wiki_assets.resources.store import Store

    speak()
    store = Store(settings.root)
    snapshot = snapshot_to_rebuild(wiki, date, store)
    config = wiki_config(wiki, settings, store)
    with open_instance(settings) as instance:
        outcome = rebuild(snapshot, config, settings, instance=instance, build=build)
    for failure in outcome.failures:
        click.echo(f"wiki-assets: {failure}", err=True)
    if outcome.failures:
        sys.exit(FAILED)
    pointer = store.pointer(wiki) or {}
    click.echo(
        f"{snapshot}: {pointer['collection']} is published, {pointer['passages']:,} passages put in again, "
        f"0 embedded again, in {time.monotonic() - started:.0f} s"
    )


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say which.")
@as_json
@with_settings
def reap(dry_run: bool, as_json: bool, settings: Settings) -> None:
    """Fail runs whose process is gone, which Dagster would show as started for ever.

    \b
    wiki-assets reap

    Every command that makes something does this first, and Dagster's daemon every minute (sensor reap_dead_runs). Runs
    of other machines are left to them.
    """
    from wiki_assets.defs.instance import existing_instance
    from wiki_assets.defs.upkeep.reap import reap as reap_runs

    with existing_instance(settings) as instance:
        if instance is None:
            raise BadRequest(f"no Dagster instance in {settings.dagster_home}: set DAGSTER_HOME or WIKI_ASSETS_ROOT")
        dead = reap_runs(instance, dry_run=dry_run)
    for run in dead:
        line = {"run": run.run_id, "was": run.status, "reason": run.reason}
        click.echo(json.dumps(line) if as_json else f"{run.run_id}  {run.status}  {run.reason}")
    if not dead and not as_json:
        click.echo("every unfinished run has its process")


def _wikis(wiki: str | None, known: set[str], settings: Settings) -> list[str]:
    """The wiki that was named, if there is anything of it; else every one."""
    if wiki is None:
        if not known:
            click.echo("no data here yet: run wiki-assets materialize WIKI")
        return sorted(known)
    check_wiki(wiki)
    if wiki not in known:
        raise BadRequest(f"{wiki}: no data under {settings.root}: run wiki-assets materialize {wiki}")
    return [wiki]
