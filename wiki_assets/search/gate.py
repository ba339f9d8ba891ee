"""Questions that a wiki must answer before a snapshot of it is published: kept under the data root, asked each time.

<wiki>/eval/gate.json           how often the right page must be among the first ten, and of which questions
<wiki>/eval/questions.jsonl     these questions, each with the pages that answer it
"""

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from upath import UPath

from wiki_assets.errors import BadRequest, DamagedArtifact, WikiAssetsError
from wiki_assets.files import read_json, whole_file, write_json
from wiki_assets.resources.store import Store
from wiki_assets.search.build import OpenBuild
from wiki_assets.search.measure import evaluate
from wiki_assets.settings import Settings
from wiki_assets.stages.evaluation import Question

AT_MOST = 500  # questions; asked in some ten seconds


@dataclass(frozen=True)
class Kept:
    """A wiki's kept questions, the pages that answer each by its id, and the least recall@10 of a hybrid search."""

    questions: list[Question]
    qrels: dict[str, set[int]]
    floor: float
    sha256: str


def folder(store: Store, wiki: str) -> UPath:
    """Where a wiki's questions and reports are kept."""
    return store.wiki(wiki) / "eval"


def keep_questions(
    store: Store, wiki: str, questions: Sequence[Question], qrels: Mapping[str, set[int]] | None, floor: float
) -> int:
    """From now on, publish a snapshot only if a hybrid search has the right page among the first ten this often.

    Args:
        store: the data root.
        wiki: which one.
        questions: of many, some are chosen, the same ones each time.
        qrels: the pages that answer each.
        floor: 0 to 1.

    Returns:
        How many questions are kept.

    Raises:
        BadRequest: if the floor is none, or no question names its page.
    """
    if not 0 <= floor <= 1:
        raise BadRequest(f"--gate {floor}: expected a share of the questions, 0 to 1, such as 0.9")
    judged = [
        {"id": q.id, "question": q.question, "pages": sorted(pages)}
        for q in questions
        if (pages := (qrels or {}).get(q.id) or ({q.page_id} if q.page_id is not None else set()))
    ]
    if not judged:
        raise BadRequest("none of the questions names its page: give page_id in each, or judgements (--qrels)")
    some = random.Random(wiki).sample(judged, min(AT_MOST, len(judged)))
    with whole_file(folder(store, wiki) / "questions.jsonl") as out:
        for line in some:
            out.write(msgspec.json.encode(line) + b"\n")
    write_json(folder(store, wiki) / "gate.json", {"recall@10": floor, "questions": len(some)})
    return len(some)


def kept_questions(store: Store, wiki: str) -> Kept | None:
    """The questions that a wiki keeps; None where it keeps none.

    Raises:
        DamagedArtifact: if they cannot be read.
    """
    gate = read_json(folder(store, wiki) / "gate.json")
    if not gate:
        return None
    path = folder(store, wiki) / "questions.jsonl"
    try:
        data = path.read_bytes()
        lines = [msgspec.json.decode(line) for line in data.splitlines()]
        if not lines:
            raise ValueError("none is left")
        questions = [Question(line["id"], line["question"]) for line in lines]
        qrels = {line["id"]: set(line["pages"]) for line in lines}
        return Kept(questions, qrels, float(gate["recall@10"]), hashlib.sha256(data).hexdigest())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedArtifact(
            f"{path}: the kept questions cannot be read ({error}): run wiki-assets eval --gate again"
        ) from None


def recall_of(pointer: dict[str, Any], kept: Kept, settings: Settings) -> float | None:
    """How often a hybrid search of a build has a right page of the kept questions among the first ten, 0 to 1; None
    where the build cannot be asked.
    """
    build = OpenBuild(pointer, settings)
    try:
        report = evaluate(build, kept.questions, kept.qrels, modes=["hybrid"], source="kept questions")
    except WikiAssetsError:
        return None
    finally:
        build.close()
    return report["sets"]["all"]["hybrid"]["page"]["recall@10"]
