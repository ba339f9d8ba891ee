"""Ask the published index, and measure how well it answers."""

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wiki_assets.cli.common import with_settings
from wiki_assets.errors import BadRequest
from wiki_assets.settings import Settings

if TYPE_CHECKING:
    from wiki_assets.stages.index import Hit

_SHOWN_CHARS = 220
_MODES = ("hybrid", "dense", "lexical")
DAY = click.DateTime(["%Y-%m-%d"])


@click.command()
@click.argument("question")
@click.option("--wiki", help="Which wiki to ask; may be left out where only one is published.")
@click.option("-k", "k", type=int, default=10, show_default=True, help="How many passages.")
@click.option(
    "--mode",
    type=click.Choice(_MODES),
    default="hybrid",
    show_default=True,
    help="By meaning (dense), by words (lexical), or both.",
)
@click.option("--category", help="Only pages of this category.")
@click.option("--after", type=DAY, help="Only pages last edited on this day or later, YYYY-MM-DD.")
@click.option("--before", type=DAY, help="Only pages last edited on this day or earlier.")
@click.option("--group", is_flag=True, help="The best passage of each page only.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for pipes.")
@with_settings
def query(
    question: str,
    wiki: str | None,
    k: int,
    mode: Any,
    category: str | None,
    after: datetime | None,
    before: datetime | None,
    group: bool,
    as_json: bool,
    settings: Settings,
) -> None:
    """Print the passages that answer QUESTION best, from the published index.

    \b
    wiki-assets query "Which animals spit?" --wiki simplewiki -k 3
    wiki-assets query "storms" --category Weather --after 2025-01-01 --group
    """
    from wiki_assets.search import Filters, Searcher

    filters = Filters(category, after.date() if after else None, before.date() if before else None)
    searcher = Searcher(settings)
    try:
        answer = searcher.search(question, wiki=wiki, k=k, mode=mode, filters=filters or None, group=group)
    finally:
        searcher.close()
    if answer.note:
        click.echo(f"wiki-assets: {answer.note}", err=True)
    for hit in answer.hits:
        click.echo(json.dumps(hit.as_dict(), ensure_ascii=False) if as_json else _shown(hit))
    if answer.hits and not as_json:
        from wiki_assets.stages.articles import LICENCE

        click.echo(f"{answer.collection}, {answer.mode}, {answer.seconds * 1e3:.0f} ms. {LICENCE}", err=True)


def _shown(hit: "Hit") -> str:
    """A hit for people: rank, score, title and the passage; below it where it stands."""
    passage = " ".join(hit.passage.split())
    passage = passage if len(passage) <= _SHOWN_CHARS else passage[: _SHOWN_CHARS - 1] + "…"
    title = click.style(hit.title, bold=True)
    place = click.style(f"{hit.permalink or hit.url} characters {hit.start}-{hit.end}", dim=True)
    return f"{hit.rank:>3}  {hit.score:.3f}  {title}: {passage}\n            {place}"


@click.command("eval")
@click.option("--wiki", help="Which wiki to ask; may be left out where only one is published.")
@click.option("--questions", "file", type=click.Path(path_type=Path), help="JSON lines: id, question, page_id; or .gz.")
@click.option(
    "--qrels", type=click.Path(path_type=Path), help="Judgements: question id, page id, 1; with tabs between."
)
@click.option("--half", type=click.Choice(["tuning", "report"]), help="Only that half of the questions.")
@click.option("--limit", type=click.IntRange(1), help="Ask so many of the questions, spread evenly.")
@click.option("--mode", "modes", multiple=True, type=click.Choice(_MODES), help="Only this way; may be given again.")
@click.option(
    "--neighbours", type=click.IntRange(0), default=200, show_default=True, help="Questions for exact search."
)
@click.option("--gate", type=float, help="From now on publish only if R@10 of the page is at least this, such as 0.9.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the report; <root>/<wiki>/eval, if not given.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@with_settings
def evaluation(
    wiki: str | None,
    file: Path | None,
    qrels: Path | None,
    half: str | None,
    limit: int | None,
    modes: tuple[Any, ...],
    neighbours: int,
    gate: float | None,
    out: Path | None,
    as_json: bool,
    settings: Settings,
) -> None:
    """Measure the published index: how often the right page and passage come first, and how fast.

    Writes a table (Markdown), the same as JSON, and a plot (SVG). Without questions, sentences and titles of the wiki
    itself are asked; each must lead back to its page.

    \b
    wiki-assets eval --wiki simplewiki
    wiki-assets eval --questions questions.jsonl.gz --qrels qrels.tsv
    wiki-assets eval --questions questions.jsonl --gate 0.9
    """
    from wiki_assets.cli.common import speak
    from wiki_assets.resources.store import Store
    from wiki_assets.search.build import OpenBuild
    from wiki_assets.search.gate import keep_questions
    from wiki_assets.search.measure import evaluate, questions_of_its_own
    from wiki_assets.stages.evaluation import half_of, read_qrels, read_questions, spread

    if gate is not None and file is None:
        raise BadRequest("--gate keeps questions of yours: give them with --questions")
    if gate is not None and not 0 <= gate <= 1:
        raise BadRequest(f"--gate {gate}: expected a share of the questions, 0 to 1, such as 0.9")
    speak()
    store = Store(settings.root)
    questions = read_questions(file) if file else []
    judged = read_qrels(qrels) if qrels else None
    build = OpenBuild(store.published(wiki), settings)
    try:
        if not file:
            questions = questions_of_its_own(build, store, limit or 300)
        if half:
            questions = [question for question in questions if half_of(question.id) == half]
        if limit:
            questions = spread(questions, limit)
        source = file.name if file else "sentences and titles of its own"
        report = evaluate(
            build,
            questions,
            judged,
            source=f"{source}, {half} half" if half else source,
            modes=modes or _MODES,
            neighbours=neighbours,
            store=store,
            say=lambda line: click.echo(line, err=True),
        )
    finally:
        build.close()
    _write(report, out, store, as_json=as_json)
    if gate is not None:
        kept = keep_questions(store, report["wiki"], questions, judged, gate)
        click.echo(
            f"{report['wiki']}: {kept} questions are asked before each publishing; R@10 must be {gate}", err=True
        )


def _write(report: dict[str, Any], out: Path | None, store: Any, *, as_json: bool) -> None:
    from wiki_assets.files import whole_file
    from wiki_assets.search.gate import folder
    from wiki_assets.stages.evaluation import as_json as json_of
    from wiki_assets.stages.evaluation import markdown, svg

    place = out or folder(store, report["wiki"])
    for ending, text in ((".json", json_of(report)), (".md", markdown(report)), (".svg", svg(report))):
        try:
            with whole_file(place / f"{report['collection']}{ending}") as target:
                target.write(text.encode())
        except OSError as error:
            raise BadRequest(f"{place}: cannot be written to ({error.strerror or error}): give --out") from None
    click.echo(json_of(report) if as_json else markdown(report), nl=False)
    click.echo(f"written to {place}/{report['collection']}.md, .json and .svg", err=True)
