"""wiki-assets: run the pipeline and ask the index from a terminal. A module a family of commands."""

import click

from wiki_assets.cli.ask import query
from wiki_assets.cli.make import materialize, status, ui


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="wiki_assets")
def main() -> None:
    """Wikipedia's weekly search dumps as clean articles, token ids, passage embeddings and an index that answers.

    \b
    wiki-assets materialize simplewiki
    wiki-assets query "Which animals spit?" --wiki simplewiki
    """


for command in (materialize, query, status, ui):
    main.add_command(command)
