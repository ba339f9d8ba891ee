"""What must hold of a whole snapshot before queries see it, and the step that shows it to them."""

import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from wiki_assets.defs.census import census, drift, no_passage_twice
from wiki_assets.defs.checks import CHECKS, set_aside, totals
from wiki_assets.defs.evaluation import examine_evaluation
from wiki_assets.defs.lexical import examine_lexical, give_up_lexical, made_lexical
from wiki_assets.defs.pointer import draft
from wiki_assets.defs.recipes import SHARD_ARTIFACTS, Cookbook, collection_name
from wiki_assets.defs.rollback import was_rolled_back, with_history
from wiki_assets.defs.work import splits_of
from wiki_assets.errors import NotPublished
from wiki_assets.files import Manifest
from wiki_assets.keys import Snapshot
from wiki_assets.resources.chroma import open_store, published_collection
from wiki_assets.settings import Settings
from wiki_assets.stages.embeddings import read_vectors
from wiki_assets.stages.index import self_recall

MIN_SELF_RECALL = 0.99
_SAMPLE = 200  # passages asked for by their own vector
GATE = (
    "every_shard_made",
    "documents_conserved",
    "stages_agree",
    "collection_answers",
    "words_answer",
    "no_passage_twice",
    "census",
    "drift",
    "questions_answered",
)


@dataclass
class Gate:
    """The blocking checks of one snapshot: what each found, and whether all passed."""

    results: dict[str, tuple[bool, dict[str, Any]]] = field(default_factory=dict)
    words: Manifest | None = None  # of the lexical index that was examined
    made: dict[str, list[Manifest]] = field(default_factory=dict)  # what was examined, by artifact

    @property
    def passed(self) -> bool:
        """Whether the snapshot may be published."""
        return all(passed for passed, _ in self.results.values())

    @property
    def reasons(self) -> str:
        """The checks that failed and what they found, in one line."""
        failed = [(name, facts) for name, (passed, facts) in self.results.items() if not passed]
        return "; ".join(f"{name}: {facts.get('found') or facts}" for name, facts in failed)


def examine(book: Cookbook, snapshot: Snapshot, settings: Settings) -> Gate:
    """Ask everything of a snapshot that must hold before it is published. Reads manifests and the collection."""
    gate = Gate()
    shards = book.shards(snapshot)
    made = gate.made
    missing: dict[str, list[str]] = {}
    raw = book.store.raw_manifest(snapshot)
    for artifact in SHARD_ARTIFACTS:
        found = [(shard, book.made(artifact, shard, raw)) for shard in shards]
        made[artifact] = [m for _, m in found if m]
        if absent := [shard.name for shard, m in found if m is None]:
            missing[artifact] = absent
    gate.results["every_shard_made"] = (
        not missing,
        {"shards": len(shards), **{f"{name}_missing": f"{len(v)} ({', '.join(v[:5])})" for name, v in missing.items()}},
    )
    gate.results["documents_conserved"] = _documents(book, snapshot, made["articles"])
    gate.results["stages_agree"] = _stages(made)
    gate.results["collection_answers"] = (
        _collection(book, snapshot, settings, made) if not missing else (False, {"found": "nothing to ask yet"})
    )
    gate.words = made_lexical(book, snapshot)
    passages = totals(made["tokens"], "passages")["passages"]
    gate.results["words_answer"] = examine_lexical(book, snapshot, settings, gate.words, passages)
    published = book.store.pointer(snapshot.wiki)
    gate.results["no_passage_twice"] = no_passage_twice(made, gate.results["collection_answers"][1].get("rows"))
    gate.results["census"] = census(book, snapshot, made, published)
    gate.results["drift"] = drift(book, snapshot, made, published)
    gate.results["questions_answered"] = (
        examine_evaluation(book, snapshot, settings, published)
        if gate.passed
        else (False, {"found": "not looked at before all else holds"})
    )
    return gate


def _documents(book: Cookbook, snapshot: Snapshot, articles: list[Manifest]) -> tuple[bool, dict[str, Any]]:
    """Documents in = pages + superseded + filtered + quarantined, over the whole snapshot."""
    documents, lost = 0, Counter[str]()
    for split in splits_of(book.store, book.config, snapshot):
        manifest = split.made()
        if manifest is None:
            return False, {"found": f"{split.name} was not split with today's code: materialize articles"}
        documents += manifest.counts["documents"]
        lost.update(manifest.counts["filtered"])
        lost.update(manifest.counts["quarantined"])
    n = totals(articles, "pages", "superseded")
    facts = {"documents": documents, **n, **lost}
    return documents == n["pages"] + n["superseded"] + sum(lost.values()), facts


def _stages(made: dict[str, list[Manifest]]) -> tuple[bool, dict[str, Any]]:
    """No page, passage or vector was lost between stages but those set aside; each stage's checks hold over all."""
    broken = [
        f"{artifact}.{name}"
        for artifact, checks in CHECKS.items()
        for name, check in checks.items()
        if not check(made[artifact])[0]
    ]
    pages_in, pages = totals(made["articles"], "pages")["pages"], totals(made["tokens"], "pages")["pages"]
    passages, vectors = totals(made["tokens"], "passages")["passages"], totals(made["embeddings"], "vectors")["vectors"]
    indexed = totals(made["chroma_collection"], "indexed")["indexed"]
    aside = {"pages": set_aside(made["tokens"]), "passages": set_aside(made["embeddings"])}
    facts: dict[str, Any] = {"pages": pages, "passages": passages, "vectors": vectors, "indexed": indexed}
    facts |= {f"{name}_quarantined": n for name, n in aside.items() if n}
    if broken:
        facts["broken"] = ", ".join(broken)
    conserved = pages_in == pages + aside["pages"] and passages == vectors + aside["passages"] and vectors == indexed
    return not broken and conserved, facts


def _collection(
    book: Cookbook, snapshot: Snapshot, settings: Settings, made: dict[str, list[Manifest]]
) -> tuple[bool, dict[str, Any]]:
    """A fresh client counts the rows, and finds passages by their own vectors."""
    build = book.current_build(snapshot)
    assert build is not None
    expected = totals(made["chroma_collection"], "indexed")["indexed"]
    ids = _some_ids(book, snapshot)
    try:
        with open_store(book.store.build(snapshot, build) / "chroma", settings.chroma) as client:
            collection = published_collection(client, collection_name(snapshot, build))
            rows, recall = collection.count(), self_recall(collection, ids)
    except NotPublished as error:
        return False, {"found": str(error)}
    facts = {"rows": rows, "expected": expected, "self_recall": recall, "asked": len(ids), "build": build}
    return rows == expected and recall >= MIN_SELF_RECALL, facts


def _some_ids(book: Cookbook, snapshot: Snapshot) -> list[str]:
    """Passage ids from a few shards, the same ones each time."""
    rng = random.Random(str(snapshot))
    shards = book.shards(snapshot)
    ids: list[str] = []
    for shard in rng.sample(shards, min(4, len(shards))):
        with book.store.file("embeddings", shard).open("rb") as source:
            ids += read_vectors(source)[0]
    return rng.sample(ids, min(_SAMPLE, len(ids)))


def refuse(book: Cookbook, snapshot: Snapshot, gate: Gate) -> str:
    """What to do about a gate that did not open. An index that lost passages is given up, so that it is made again."""
    build = book.current_build(snapshot)
    whole, (answers, facts) = gate.results["every_shard_made"][0], gate.results["collection_answers"]
    if build is not None and whole and not answers:
        book.give_up_build(snapshot, build, str(facts))
        return f"build {build} is given up; materialize chroma_collection again, it makes another"
    if gate.words is not None and whole and not gate.results["words_answer"][0]:
        give_up_lexical(book.store, snapshot)
        return "the lexical index is given up; materialize lexical_index again, it makes another"
    moves = [facts["next"] for passed, facts in gate.results.values() if not passed and "next" in facts]
    if whole and moves:
        return "; ".join(moves)
    return "materialize what is missing, then publish again"


def publish(book: Cookbook, snapshot: Snapshot, gate: Gate) -> dict[str, Any]:
    """Move the wiki's pointer to this snapshot's build; keep what it pointed to, for a rollback.

    The pointer never moves to an older snapshot, nor to a build that was rolled back: that is asked for as such, by
    `wiki-assets rollback`.

    Returns:
        The pointer as it stands now.

    Raises:
        Superseded: if another run moves the pointer at this moment.
    """
    assert gate.passed, gate.reasons
    build = book.current_build(snapshot)
    assert build is not None, "the gate asks for a whole build"
    assert gate.words is not None, "the gate asks for a lexical index"
    n = gate.results["stages_agree"][1]
    pointer = draft(book, snapshot, gate.words, build=build, pages=n["pages"], passages=n["indexed"])
    old = book.store.pointer(snapshot.wiki)
    if old is not None and (old["snapshot"] > snapshot.date or was_rolled_back(old, pointer["collection"])):
        return old
    pointer["published_at"] = datetime.now(UTC).isoformat(timespec="seconds")
    same = old is not None and old["collection"] == pointer["collection"]
    pointer["previous"] = (old or {}).get("previous") if same else with_history(old, book.config.keep_builds - 1)
    book.store.publish(snapshot.wiki, pointer, instead_of=old)
    return pointer
