"""Which build is published, and how much of the past is kept."""

import json

import click

from wiki_assets.cli.common import with_settings
from wiki_assets.errors import BadRequest
from wiki_assets.keys import check_wiki
from wiki_assets.settings import Settings


@click.command()
@click.argument("wiki")
@click.option("--undo", is_flag=True, help="Publish again what was rolled back last.")
@with_settings
def rollback(wiki: str, undo: bool, settings: Settings) -> None:
    """Return to the build before the published one, at once.

    \b
    wiki-assets rollback simplewiki
    wiki-assets rollback simplewiki --undo

    The build must still be whole: its collection, lexical index and files are counted first. Questions that are being
    answered end on the build they began on. What is rolled back is not published again by itself; a newer snapshot or
    build is.
    """
    check_wiki(wiki)
    from wiki_assets.defs.instance import existing_instance
    from wiki_assets.defs.rollback import note_in_dagster, standing
    from wiki_assets.defs.rollback import rollback as switch

    pointer = switch(wiki, settings, undo=undo)
    with existing_instance(settings) as instance:
        if instance is not None:
            note_in_dagster(instance, pointer)
    click.echo(
        f"{wiki}: {pointer['collection']} is published, {pointer['passages']:,} passages of {pointer['pages']:,} pages"
    )
    for line in standing(pointer):
        click.echo(line)


@click.command()
@click.argument("wiki", required=False)
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a wiki, for pipes.")
@with_settings
def prune(wiki: str | None, dry_run: bool, as_json: bool, settings: Settings) -> None:
    """Remove what retention does not keep: old snapshots, builds of the index, partitions in Dagster.

    \b
    wiki-assets prune simplewiki --dry-run
    wiki-assets prune

    Publishing does this by itself. The newest snapshots are kept (keep_snapshots in the wikis file, 3), and the newest
    builds (keep_builds, 2); and always what is published, what a rollback needs, what a run works on or a question is
    answered from, and what an unfinished snapshot takes its vectors from.
    """
    from wiki_assets.defs.instance import existing_instance
    from wiki_assets.defs.recipes import Cookbook
    from wiki_assets.defs.upkeep.prune import prune as remove
    from wiki_assets.defs.wikis import wiki_config
    from wiki_assets.resources.store import Store

    store = Store(settings.root)
    if wiki is not None and check_wiki(wiki) not in store.wikis():
        raise BadRequest(f"{wiki}: no data under {settings.root}: run wiki-assets materialize {wiki}")
    with existing_instance(settings) as instance:
        for name in [wiki] if wiki else store.wikis():
            book = Cookbook(wiki_config(name, settings, store), store, settings.chroma)
            found = remove(book, instance, dry_run=dry_run)
            kept = dict(sorted(found.plan.keep.items()))
            if as_json:
                facts = {"wiki": name, "dry_run": dry_run, "removed": found.lines(), "kept": kept}
                click.echo(json.dumps({**facts, "size_bytes": found.plan.size_bytes}, ensure_ascii=False))
                continue
            for line in found.lines():
                click.echo(f"{name}: {'would remove' if dry_run else 'removed'} {line}")
            if not found:
                click.echo(f"{name}: nothing to remove")
            elif found.plan.size_bytes:
                click.echo(f"{name}: {found.plan.size_bytes / 1e6:,.1f} MB")
            for date, why in kept.items():
                click.echo(f"{name}: kept snapshot {date}: {why}")
            if not found.plan.published:
                click.echo(f"{name}: nothing is published, so everything is kept")
