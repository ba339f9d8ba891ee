"""Pages from elsewhere than a dump: the live API, and tables of one's own."""

import logging
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from wiki_assets.cli.common import speak, with_settings
from wiki_assets.errors import BadRequest
from wiki_assets.files import Manifest
from wiki_assets.keys import Snapshot, check_date, check_wiki, own_date
from wiki_assets.settings import Settings

logger = logging.getLogger(__name__)

_PAGE_BYTES = 3_500  # of a dump, about: with it a wiki has the shards that its dump would give it


def _snapshot(wiki: str, date: str | None) -> Snapshot:
    """The snapshot to make: today's, if none is named."""
    check_wiki(wiki)
    today = own_date(datetime.now(UTC).date())
    snapshot = Snapshot(wiki, check_date(date) if date else today)
    if not snapshot.is_own:
        raise BadRequest(
            f"--snapshot {date}: dumps have such dates; what is made here is dated a thousand years back, as in "
            f"{today}, so that it never takes a dump's place: leave it out, or take {int(date or 0) - 10_000_000:08d}"
        )
    return snapshot


@click.command("fetch-pages")
@click.argument("wiki")
@click.argument("titles", nargs=-1)
@click.option("--titles", "list_file", type=click.Path(), help="A file with one title a line; - for standard input.")
@click.option("--snapshot", "date", help="Under which to keep them; today's, a thousand years back, if left out.")
@click.option("--api", "url", help="The wiki's api.php, where its name does not tell; plain http only for loopback.")
@with_settings
def fetch_pages(
    wiki: str, titles: tuple[str, ...], list_file: str | None, date: str | None, url: str | None, settings: Settings
) -> None:
    """Fetch pages by their TITLES from the live API, laid out as a dump is.

    \b
    wiki-assets fetch-pages simplewiki Llama "Lake Baikal"
    wiki-assets fetch-pages simplewiki --titles titles.txt
    wiki-assets materialize simplewiki --snapshot 10260905

    One request at a time, 50 titles in each. Redirects are followed; titles without a page are counted by reason and
    listed in left_out.jsonl. Run it again after an interruption: it goes on where it was.
    """
    snapshot = _snapshot(wiki, date)
    wanted = [*titles, *_read_titles(list_file)]
    if not wanted:
        raise BadRequest("no titles: name some, or a file with one a line (--titles FILE)")
    from wiki_assets.defs.own import fetch_pages as fetch
    from wiki_assets.defs.wikis import require_shard_count, wiki_config
    from wiki_assets.resources.api import WikiApi
    from wiki_assets.resources.mirror import DumpMirror
    from wiki_assets.resources.store import Store
    from wiki_assets.stages.addresses import site_of

    speak()
    store = Store(settings.root)
    api = WikiApi(url or site_of(wiki), DumpMirror(contact=settings.contact).user_agent)
    known = store.shard_count(wiki) is not None
    config = wiki_config(wiki, settings, store, dump_bytes=0 if known else api.articles() * _PAGE_BYTES)
    if known:
        require_shard_count(config, settings, store)
    manifest = fetch(
        snapshot, wanted, api, store, logger.info, on_size=lambda _: require_shard_count(config, settings, store)
    )
    _report(snapshot, manifest, "titles", store)


@click.command("import")
@click.argument("wiki")
@click.argument("paths", nargs=-1, required=True)
@click.option("--map", "maps", multiple=True, help="FIELD=COLUMN[,FIELD=COLUMN], e.g. page_id=id,title=name,text=body.")
@click.option("--snapshot", "date", help="Under which to keep them; today's, a thousand years back, if left out.")
@with_settings
def import_data(wiki: str, paths: tuple[str, ...], maps: tuple[str, ...], date: str | None, settings: Settings) -> None:
    """Take rows of one's own for pages: Parquet, Arrow or JSON-lines files, or the folder of a data set.

    \b
    wiki-assets import mydocs articles.parquet --map page_id=id,title=headline,text=body,url=link
    wiki-assets import simplewiki wikipedia/20231101.simple
    wiki-assets materialize mydocs --snapshot 10260905

    The columns of the Wikipedia sets on the Hub and on Kaggle need no --map. An id that is no positive number becomes
    one by a hash, the same each time. Rows without id, title or text are counted by reason and listed in
    left_out.jsonl.
    """
    snapshot = _snapshot(wiki, date)
    from wiki_assets.defs.own import import_tables
    from wiki_assets.defs.wikis import require_shard_count, wiki_config
    from wiki_assets.resources.store import Store
    from wiki_assets.stages.tables import read_mapping

    speak()
    store = Store(settings.root)

    def fix_shards(size_bytes: int) -> None:
        require_shard_count(wiki_config(wiki, settings, store, dump_bytes=size_bytes), settings, store)

    if store.shard_count(wiki) is not None:
        fix_shards(0)
    manifest = import_tables(snapshot, paths, read_mapping(",".join(maps)), store, logger.info, on_size=fix_shards)
    _report(snapshot, manifest, "rows", store)


def _read_titles(path: str | None) -> list[str]:
    """The lines of a file that are not blank."""
    if path is None:
        return []
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).expanduser().read_bytes()
        lines = data.decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"--titles {path}: {error}; expected a text file in UTF-8, a title a line") from None
    return [line.strip() for line in lines if line.strip()]


def _report(snapshot: Snapshot, manifest: Manifest, unit: str, store: Any) -> None:
    ledger = manifest.counts["ledger"]
    left_out = ", ".join(f"{reason} {number:,}" for reason, number in sorted(ledger["left_out"].items()))
    click.echo(
        f"{snapshot}: {ledger['pages']:,} pages of {ledger[unit]:,} {unit}; left out: {left_out or 'nothing'}"
        + (f" (see {store.raw(snapshot) / 'left_out.jsonl'})" if left_out else "")
    )
    click.echo(f"next: wiki-assets materialize {snapshot.wiki} --snapshot {snapshot.date}")
