"""Everything that is proven of a snapshot, in one place."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from wiki_assets.defs.evaluation import evaluation_recipe
from wiki_assets.defs.lexical import lexical_recipe
from wiki_assets.defs.recipes import Blocked, Cookbook
from wiki_assets.defs.upkeep.file_proofs import FileProofs
from wiki_assets.defs.upkeep.index_proofs import FILE_ARTIFACTS, IndexProofs
from wiki_assets.defs.upkeep.proof import Evidence, Proof, State
from wiki_assets.errors import BadRequest, WikiAssetsError
from wiki_assets.keys import Snapshot

_OF_DATE = {"lexical_index": lexical_recipe, "evaluation": evaluation_recipe}


def snapshots_of(book: Cookbook) -> list[Snapshot]:
    """Every snapshot of which anything lies in the store, oldest first."""
    wiki = book.config.wiki
    dates: set[str] = set()
    for artifact in ("raw", "articles", "tokens", "passages", "embeddings", "index"):
        folder = book.store.wiki(wiki) / artifact
        names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        dates |= {name[:8] for name in names if name[:8].isdecimal() and name[8:9] in ("", "-")}
    found = []
    for date in sorted(dates):
        try:
            found.append(Snapshot(wiki, date))
        except BadRequest:  # a folder of somebody else's
            continue
    return found


def gather(book: Cookbook, snapshot: Snapshot, *, index: bool = True) -> Evidence:
    """Read and hash everything of a snapshot.

    Args:
        book: the wiki's recipes; its `chroma` is the server, if there is one.
        snapshot: which one.
        index: also compare every row of the collection with the files it was made from.

    Raises:
        SourceUnavailable: if the Chroma server does not answer.
    """
    evidence = Evidence(snapshot)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        reader = FileProofs(book, snapshot, pool)
        raw = reader.raw()
        cells = {artifact: reader.cells(artifact) for artifact in FILE_ARTIFACTS}
        words, measured = reader.words(), reader.evaluation()
        reader.answer_for_splits(raw, cells["articles"])
    rows = IndexProofs(book, snapshot, cells, evidence)
    indexed = rows.cells(compare=index)
    evidence.proofs = [raw, *(proof for proofs in cells.values() for proof in proofs), words, *indexed, measured]
    evidence.proofs.append(rows.published(indexed, compare=index))
    evidence.proofs = [_with_staleness(book, proof) for proof in evidence.proofs]
    evidence.unvouched = list(_unvouched(book, snapshot, cells))
    return evidence


def _with_staleness(book: Cookbook, proof: Proof) -> Proof:
    """Whether today's recipe would make something else of the same inputs."""
    if proof.state is not State.PROVEN or proof.manifest is None:
        return proof
    try:
        if proof.shard is not None:
            recipe = book.recipe(proof.artifact, proof.shard)
        elif of_date := _OF_DATE.get(proof.artifact):
            recipe = of_date(book, proof.snapshot)
        else:
            return proof
    except (Blocked, WikiAssetsError):  # its input is not there, or the model is not on this machine
        return proof
    return replace(proof, stale=recipe.fingerprint != proof.manifest.fingerprint)


def _unvouched(book: Cookbook, snapshot: Snapshot, cells: dict[str, list[Proof]]) -> Iterator[str]:
    """Data files that no manifest names: left by a killed run, or robbed of their manifest."""
    named = {name for proofs in cells.values() for p in proofs if p.manifest for name in p.manifest.files}
    for artifact in ("articles", "tokens", "passages", "embeddings"):
        folder = book.store.wiki(snapshot.wiki) / artifact / snapshot.date
        for path in sorted(folder.glob("*.parquet")) if folder.is_dir() else ():
            name = f"{artifact}/{snapshot.date}/{path.name}"
            if name not in named:
                yield name
