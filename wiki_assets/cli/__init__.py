"""wiki-assets: run the pipeline and ask the index from a terminal. A module a family of commands."""

import click

from wiki_assets.cli.ask import evaluation, query
from wiki_assets.cli.kube import doctor
from wiki_assets.cli.make import materialize, status, ui
from wiki_assets.cli.serve import mcp, serve
from wiki_assets.cli.sources import fetch_pages, import_data
from wiki_assets.cli.switch import prune, rollback
from wiki_assets.cli.upkeep import reap, rebuild_index, reconcile, verify
from wiki_assets.cli.watch import watch, wikis


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="wiki_assets")
def main() -> None:
    """Wikipedia's weekly search dumps as clean articles, token ids, passage embeddings and an index that answers.

    \b
    wiki-assets materialize simplewiki
    wiki-assets query "Which animals spit?" --wiki simplewiki
    """


for command in (
    materialize,
    fetch_pages,
    import_data,
    watch,
    wikis,
    query,
    evaluation,
    serve,
    mcp,
    status,
    ui,
    verify,
    reconcile,
    rebuild_index,
    rollback,
    prune,
    reap,
    doctor,
):
    main.add_command(command)
