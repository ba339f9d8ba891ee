"""Questions that a wiki must answer before a snapshot of it is published: kept under the data root, asked each time.

<wiki>/eval/gate.json           how often the right page must be among the first ten, and of which questions
<wiki>/eval/questions.jsonl     these questions, each with the pages that answer it
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from upath import UPath

from wiki_assets.errors import BadRequest, WikiAssetsError
from wiki_assets.files import read_json, whole_file, write_json
from wiki_assets.resources.store import Store
from wiki_assets.search.build import OpenBuild
from wiki_assets.search.measure import evaluate
from wiki_assets.settings import Settings
from wiki_assets.stages.evaluation import Question

AT_MOST = 500  # questions; asked in some ten seconds


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


def examine_questions(store: Store, pointer: dict[str, Any], settings: Settings) -> tuple[bool, dict[str, Any]]:
    """Ask the kept questions of a build that is not yet published; passes where none are kept."""
    gate = read_json(folder(store, pointer["wiki"]) / "gate.json")
    if not gate:
        return True, {"questions": 0, "note": "none are kept; wiki-assets eval --gate keeps some"}
    build = OpenBuild(pointer, settings)
    try:
        lines = (folder(store, pointer["wiki"]) / "questions.jsonl").read_bytes().splitlines()
        kept = [msgspec.json.decode(line) for line in lines]
        questions = [Question(line["id"], line["question"]) for line in kept]
        qrels = {line["id"]: set(line["pages"]) for line in kept}
        report = evaluate(build, questions, qrels, modes=["hybrid"], source="kept questions")
        found = report["sets"]["all"]["hybrid"]
    except (OSError, ValueError, KeyError, WikiAssetsError) as error:
        return False, {"found": f"the kept questions cannot be asked ({error}): run wiki-assets eval --gate again"}
    finally:
        build.close()
    recall = found["page"]["recall@10"]
    facts = {"questions": len(kept), "floor": gate["recall@10"], **found["page"], **found["latency_ms"]}
    return recall >= gate["recall@10"], facts
