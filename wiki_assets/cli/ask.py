"""Ask the published index."""

import json

import click

from wiki_assets.cli.common import with_settings
from wiki_assets.settings import Settings


@click.command()
@click.argument("question")
@click.option("--wiki", help="Which wiki to ask; may be left out where only one is published.")
@click.option("-k", "k", type=int, default=10, show_default=True, help="How many passages.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for pipes.")
@with_settings
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
