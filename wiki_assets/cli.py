"""wiki-assets: run the pipeline and ask the index from a terminal."""

import json
import logging
import os
import sys
import time
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from wiki_assets.errors import BadRequest, WikiAssetsError
from wiki_assets.keys import Snapshot, check_date, check_wiki
from wiki_assets.settings import Settings

DONE, FAILED, USAGE = 0, 1, 2


def _with_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the deployment's settings, a flag for the usual ones, and one-line errors."""

    @click.option("--root", help="Data root; WIKI_ASSETS_ROOT.")
    @click.option("--mirror", help="Root of the dump server; WIKI_ASSETS_MIRROR.")
    @click.option("--chroma", help="URL of a Chroma server; WIKI_ASSETS_CHROMA.")
    @click.option("--model", help="Embedding model; WIKI_ASSETS_MODEL.")
    @click.option("--shards", type=int, help="Shards of a wiki that has no data yet; WIKI_ASSETS_SHARDS.")
    @wraps(command)
    def run(
        root: str | None, mirror: str | None, chroma: str | None, model: str | None, shards: int | None, **kwargs: Any
    ) -> None:
        try:
            settings = Settings.from_env(root=root, mirror=mirror, chroma=chroma, model=model, shards=shards)
            command(settings=settings, **kwargs)
        except BadRequest as error:
            _fail(str(error), USAGE)
        except WikiAssetsError as error:
            _fail(str(error), FAILED)
        except BrokenPipeError:
            os._exit(FAILED)

    return run


def _fail(message: str, code: int) -> None:
    click.echo(f"wiki-assets: {message}", err=True)
    sys.exit(code)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="wiki_assets")
def main() -> None:
    """Wikipedia's weekly search dumps as clean articles, token ids, passage embeddings and an index that answers.

    \b
    wiki-assets materialize simplewiki
    wiki-assets query "Which animals spit?" --wiki simplewiki
    """


@main.command()
@click.argument("wiki")
@click.option("--snapshot", "date", default="latest", show_default=True, help="YYYYMMDD, or the newest complete one.")
@click.option("--until", default="published_index", show_default=True, help="The last asset to make.")
@_with_settings
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
    from wiki_assets.defs.wikis import require_shard_count, wiki_config
    from wiki_assets.resources.mirror import DumpMirror
    from wiki_assets.resources.store import Store

    _speak()
    store = Store(settings.root)
    mirror = DumpMirror(base_url=settings.mirror, contact=settings.contact)
    snapshot = mirror.latest(wiki) if date == "latest" else Snapshot(wiki, date)
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
        return
    made = ", ".join(f"{stage} {count}" for stage, count in outcome.made.items())
    click.echo(f"{snapshot}: made {made} in {time.monotonic() - started:.0f} s")


@main.command()
@click.argument("question")
@click.option("--wiki", help="Which wiki to ask; may be left out where only one is published.")
@click.option("-k", "k", type=int, default=10, show_default=True, help="How many passages.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for pipes.")
@_with_settings
def query(question: str, wiki: str | None, k: int, as_json: bool, settings: Settings) -> None:
    """Print the passages nearest to QUESTION, from the published index.

    \b
    wiki-assets query "Which animals spit?" --wiki simplewiki -k 3
    """
    from wiki_assets.search import ask

    hits = ask(question, settings, wiki=wiki, k=k)
    for hit in hits:
        if as_json:
            click.echo(json.dumps(hit.as_dict(), ensure_ascii=False))
        else:
            passage = hit.passage if len(hit.passage) <= 220 else hit.passage[:219] + "…"
            click.echo(f"{hit.rank:>3}  {hit.score:.3f}  {click.style(hit.title, bold=True)}: {passage}")


@main.command()
@click.argument("wiki", required=False)
@click.option("--snapshot", "date", help="YYYYMMDD; every snapshot here, if left out.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for pipes.")
@_with_settings
def status(wiki: str | None, date: str | None, as_json: bool, settings: Settings) -> None:
    """Show what is done, by asset and shard, as the manifests prove it.

    \b
    wiki-assets status simplewiki
    """
    from wiki_assets.defs.report import snapshot_rows, table
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
        for name in wikis:
            pointer = store.pointer(name)
            click.echo(
                f"{name}: published is {pointer['collection']}, {pointer['passages']:,} passages"
                if pointer
                else f"{name}: nothing is published"
            )
    else:
        click.echo("no data here yet: run wiki-assets materialize WIKI")


@main.command()
@click.option("--port", type=int, default=3000, show_default=True)
@_with_settings
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


def _speak() -> None:
    """Progress goes to standard error, a line a shard, with the seconds since the start."""
    began = time.monotonic()

    class Elapsed(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            mark = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
            return f"{time.monotonic() - began:7.1f} s  {mark}{record.getMessage()}"

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Elapsed())
    ours = logging.getLogger("wiki_assets")
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    ours.propagate = False


if __name__ == "__main__":
    main(prog_name="wiki-assets")
