"""evaluation[date]: how well a snapshot's index answers, measured before anybody is sent to it.

The questions that the wiki keeps are asked (`wiki-assets eval --gate`); where it keeps none, sentences and titles of
the snapshot itself, which must lead back to where they stand. `published_index` reads the result: what answers the
kept questions worse than the wiki asks for, or worse than the published build, is not published.

    eval/<date>/report.json     what was asked, and the measures by mode
    eval/<date>/report.md       the same as a table
    eval/<date>/report.svg      and as a picture
    eval/<date>/manifest.json   vouches for these: of which build, which questions
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import dagster as dg

from wiki_assets.claims import claim
from wiki_assets.defs.pointer import draft
from wiki_assets.defs.recipes import Blocked, Cookbook, SnapshotRecipe, code_version
from wiki_assets.errors import WikiAssetsError
from wiki_assets.files import FileRecord, Manifest, fingerprint, whole_file
from wiki_assets.keys import Snapshot
from wiki_assets.resources.store import Store
from wiki_assets.search.build import OpenBuild
from wiki_assets.search.gate import Kept, kept_questions, recall_of
from wiki_assets.search.measure import evaluate, questions_of_its_own
from wiki_assets.settings import Settings
from wiki_assets.stages.evaluation import as_json, markdown, svg
from wiki_assets.stages.fusion import WEIGHTS

ARTIFACT = "evaluation"
_LOOK = "look at what the kept questions find; if it must be, {}"
_EXACT = 50  # questions whose true nearest passages are looked for,
_EXACT_UP_TO = 1_000_000  # in at most so many vectors: every one is read


@dataclass(frozen=True)
class EvaluationRecipe(SnapshotRecipe):
    """What a snapshot's evaluation would be made from now. `pointer` names the build, as `published.json` will."""

    pointer: dict[str, Any]
    kept: Kept | None


def evaluation_recipe(book: Cookbook, snapshot: Snapshot) -> EvaluationRecipe:
    """What a snapshot's evaluation would be made from now.

    Raises:
        Blocked: if the index is not whole; the message names what is missing.
        DamagedArtifact: if the questions that the wiki keeps cannot be read.
    """
    build = book.current_build(snapshot)
    if build is None:
        raise Blocked(f"chroma_collection of {snapshot} is not there: materialize chroma_collection first")
    rows = []
    for shard in book.shards(snapshot):
        manifest = book.store.index_manifest(shard, build)
        if manifest is None:
            raise Blocked(f"chroma_collection of {shard} is not there: materialize chroma_collection first")
        rows.append(manifest)
    words = book.store.lexical_manifest(snapshot)
    if words is None:
        raise Blocked(f"lexical_index of {snapshot} is not there: materialize lexical_index first")
    kept = kept_questions(book.store, snapshot.wiki)
    pages, passages = int(words.counts["pages"]), sum(int(m.counts["indexed"]) for m in rows)
    pointer = draft(book, snapshot, words, build=build, pages=pages, passages=passages)
    inputs = {
        "chroma_collection": fingerprint(pointer["collection"], [m.fingerprint for m in rows]),
        "lexical_index": words.data_version,
    }
    params: dict[str, Any] = {"weights": asdict(WEIGHTS), "collection": pointer["collection"]}
    if kept is not None:
        inputs["questions"] = kept.sha256
    else:
        params["own_questions"] = book.config.own_questions
    return EvaluationRecipe(ARTIFACT, snapshot, code_version(ARTIFACT, book.config), params, inputs, pointer, kept)


def made_evaluation(book: Cookbook, snapshot: Snapshot) -> Manifest | None:
    """The manifest of the evaluation that is there and up to date, else None."""
    manifest = book.store.evaluation_manifest(snapshot)
    try:
        up_to_date = manifest is not None and manifest.fingerprint == evaluation_recipe(book, snapshot).fingerprint
    except (Blocked, WikiAssetsError):
        return None
    return manifest if up_to_date else None


def make_evaluation(
    recipe: EvaluationRecipe,
    store: Store,
    settings: Settings,
    *,
    run: str = "",
    say: Callable[[str], object] = lambda line: None,
) -> Manifest:
    """Ask the questions in every mode, and write the report.

    Raises:
        WikiAssetsError: if the index cannot be asked.
        Superseded: if another run claimed it meanwhile.
    """
    folder = store.evaluation(recipe.snapshot)
    files = [folder / f"report.{ending}" for ending in ("json", "md", "svg")]
    mine = claim(folder / "manifest.json", run, writes=files)
    started = time.perf_counter()
    report = _asked(recipe, store, settings, say)
    records: dict[str, FileRecord] = {}
    for path, text in zip(files, (as_json(report), markdown(report), svg(report)), strict=True):
        with whole_file(path, fence=mine.fence) as out:
            out.write(text.encode())
        records[store.name(path)] = out.record
    by_mode = report["sets"].get("all", {})
    measures = {
        mode: {level: m for level, m in found.items() if level != "latency_ms"} for mode, found in by_mode.items()
    }
    counts = {"questions": report["questions"], "source": report["source"], "measures": measures}
    if "ann" in report:
        counts["ann_recall@10"] = report["ann"]["recall@10"]
    stats = {
        "seconds": round(time.perf_counter() - started, 3),
        "latency_ms": {mode: found["latency_ms"] for mode, found in by_mode.items()},
    }
    return mine.commit(recipe.manifest(records, counts, stats))


def _asked(recipe: EvaluationRecipe, store: Store, settings: Settings, say: Callable[[str], object]) -> dict[str, Any]:
    """The report; one without measures where there is nothing to ask."""
    build = OpenBuild(recipe.pointer, settings)
    try:
        if recipe.kept is not None:
            questions, qrels, source = recipe.kept.questions, recipe.kept.qrels, "kept questions"
        else:
            n = recipe.params["own_questions"]
            questions = questions_of_its_own(build, store, n) if n else []
            qrels, source = None, "sentences and titles of its own"
        few = recipe.pointer["passages"] <= _EXACT_UP_TO
        return evaluate(build, questions, qrels, source=source, neighbours=_EXACT if few else 0, store=store, say=say)
    finally:
        build.close()


def evaluation_facts(manifest: Manifest, store: Store) -> dict[str, Any]:
    """What Dagster shows of an evaluation: the hybrid search's measures by name, the others' in the table."""
    folder = store.evaluation(Snapshot(manifest.wiki, manifest.snapshot))
    facts: dict[str, Any] = {
        "report": dg.MetadataValue.md((folder / "report.md").read_text("utf-8")),
        "collection": manifest.params["collection"],
        **{name: value for name, value in manifest.counts.items() if name != "measures"},
    }
    for level, found in manifest.counts["measures"].get("hybrid", {}).items():
        facts |= {f"{level}_{name}": round(value, 4) for name, value in found.items() if name != "n"}
    facts |= {f"latency_{name}_ms": value for name, value in manifest.stats["latency_ms"].get("hybrid", {}).items()}
    return facts | {
        "seconds": manifest.stats["seconds"],
        "fingerprint": manifest.fingerprint,
        "path": dg.MetadataValue.path(store.name(folder)),
    }


def evaluation_line(manifest: Manifest) -> str:
    """The measure that publishing asks for, for a table of what is there."""
    page = manifest.counts["measures"].get("hybrid", {}).get("page")
    return f"R@10 {page['recall@10']:.3f} of {page['n']:,} questions" if page else "nothing was asked"


def examine_evaluation(
    book: Cookbook, snapshot: Snapshot, settings: Settings, published: dict[str, Any] | None
) -> tuple[bool, dict[str, Any]]:
    """The kept questions are answered as well as the wiki asks for, and not worse than by the published build.

    Args:
        book: the wiki's recipes.
        snapshot: whose current build was evaluated.
        settings: of this deployment.
        published: the pointer as it stands. It is asked the same questions, if it is not newer.
    """
    again = {"next": "materialize evaluation, then published_index"}
    try:
        kept = kept_questions(book.store, snapshot.wiki)
    except WikiAssetsError as error:
        return False, {"found": str(error)} | again
    manifest = made_evaluation(book, snapshot)
    if manifest is None:
        return False, {"found": "its evaluation is not there, or is of another build or other questions"} | again
    facts = {name: manifest.counts[name] for name in ("questions", "source")}
    hybrid = manifest.counts["measures"].get("hybrid", {}).get("page", {})
    facts |= hybrid
    if kept is None:
        return True, facts | {"note": "the wiki keeps no questions; wiki-assets eval --gate keeps some"}
    recall = hybrid["recall@10"]
    facts["floor"] = kept.floor
    if recall < kept.floor:
        found = f"recall@10 of the kept questions is {recall:.3f}: expected {kept.floor} or more"
        return False, facts | {"found": found, "next": _LOOK.format("ask for less with wiki-assets eval --gate")}
    if published is None or published["snapshot"] > snapshot.date:
        return True, facts
    before = recall_of(published, kept, settings)
    if before is None:
        return True, facts | {"note": f"{published['collection']} could not be asked"}
    most = book.config.max_recall_drop
    facts |= {"published": published["collection"], "published_recall@10": before, "most_worse": most}
    if recall >= before - most:
        return True, facts
    found = (
        f"recall@10 is {recall:.3f}, that of {published['collection']} is {before:.3f}: expected at most {most} less"
    )
    return False, facts | {"found": found, "next": _LOOK.format("raise max_recall_drop in the wiki's line")}
