"""What must be true before anyone uses an artifact, from the counts in its manifests.

Each check is a claim about some shards of one artifact. The stages refuse to commit a shard that breaks them;
here the same claims are shown to a person, and `published_index` asks them of the whole snapshot.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from wiki_assets.files import Manifest

Check = Callable[[Sequence[Manifest]], tuple[bool, dict[str, Any]]]


def totals(manifests: Sequence[Manifest], *names: str) -> dict[str, int]:
    """Sums of some counts over manifests."""
    return {name: sum(int(m.counts.get(name, 0)) for m in manifests) for name in names}


def set_aside(manifests: Sequence[Manifest]) -> int:
    """How many rows were quarantined, for whatever reason."""
    return sum(sum(m.counts.get("quarantined", {}).values()) for m in manifests)


def pages_conserved(shards: Sequence[Manifest]) -> tuple[bool, dict[str, Any]]:
    """Every page that the split found is in its shard, or was superseded by a newer revision."""
    n = totals(shards, "pages_in", "pages", "superseded")
    return n["pages_in"] == n["pages"] + n["superseded"], {**n, "redirects": totals(shards, "redirects")["redirects"]}


def no_page_twice(shards: Sequence[Manifest]) -> tuple[bool, dict[str, Any]]:
    """A page id appears once; a repeat would be two answers to one question.

    Ids were seen to rise strictly when each file was re-opened, and a page id has one shard; so it is enough
    that no shard is counted twice.
    """
    numbers = [(m.snapshot, m.shard) for m in shards]
    return len(set(numbers)) == len(numbers), {"pages": totals(shards, "pages")["pages"], "shards": len(numbers)}


def pages_tokenized(shards: Sequence[Manifest]) -> tuple[bool, dict[str, Any]]:
    """Every page has token ids and passages, or was set aside with its reason."""
    n = totals(shards, "pages")
    n["pages_in"] = sum(int(m.counts.get("pages_in", m.counts["pages"])) for m in shards)
    return n["pages_in"] == n["pages"] + set_aside(shards), {**n, "quarantined": set_aside(shards)}


def text_covered(shards: Sequence[Manifest]) -> tuple[bool, dict[str, Any]]:
    """Every character of every page that has token ids is in exactly one passage."""
    n = totals(shards, "pages", "text_chars", "covered_chars", "passages", "tokens")
    return n["text_chars"] == n["covered_chars"], n


def nothing_truncated(shards: Sequence[Manifest]) -> tuple[bool, dict[str, Any]]:
    """No passage is longer than the model reads, title and special pieces included."""
    n = totals(shards, "truncated", "passages", "word_pieces", "unknown_pieces")
    return n["truncated"] == 0, n


def vector_for_each_passage(shards: Sequence[Manifest]) -> tuple[bool, dict[str, Any]]:
    """Every passage has a vector, made now or taken from an earlier snapshot, or was set aside with its reason."""
    n = totals(shards, "passages", "vectors", "passages_reused", "passages_embedded")
    whole = n["vectors"] == n["passages_reused"] + n["passages_embedded"]
    return whole and n["passages"] == n["vectors"] + set_aside(shards), {**n, "quarantined": set_aside(shards)}


def unit_norms(shards: Sequence[Manifest]) -> tuple[bool, dict[str, Any]]:
    """Vectors have length one, so that cosine and inner product rank alike."""
    worst = max((float(m.counts["max_norm_error"]) for m in shards), default=0.0)
    return worst <= 1e-3, {"max_norm_error": worst}


def vectors_indexed(shards: Sequence[Manifest]) -> tuple[bool, dict[str, Any]]:
    """Every vector was read back from the collection, with its text and metadata."""
    n = totals(shards, "vectors", "indexed", "verified")
    return n["vectors"] == n["indexed"] == n["verified"], n


CHECKS: Mapping[str, Mapping[str, Check]] = {
    "articles": {"pages_conserved": pages_conserved, "no_page_twice": no_page_twice},
    "tokens": {
        "pages_tokenized": pages_tokenized,
        "text_covered": text_covered,
        "nothing_truncated": nothing_truncated,
    },
    "embeddings": {"vector_for_each_passage": vector_for_each_passage, "unit_norms": unit_norms},
    "chroma_collection": {"vectors_indexed": vectors_indexed},
}
