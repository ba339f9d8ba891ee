"""What the README promises, and which rows of the fault suite show it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Promise:
    """One promise; `rows` are the marks of the tests that would fail if it were broken."""

    title: str
    text: str
    rows: tuple[str, ...]


PROMISES = (
    Promise(
        "Done means durable",
        "A partition shown as done has output whose SHA-256 is in its manifest; `wiki-assets verify` proves it.",
        ("K1", "K2", "K7", "K8"),
    ),
    Promise(
        "Resume, not restart",
        "Kill anything at any time: the next run makes only what was not done. Nothing is published twice.",
        ("K1", "K3", "K4", "K5", "K9"),
    ),
    Promise(
        "Same input, same output",
        "Tokens are identical byte for byte, embeddings bit for bit on one CPU; the index holds exactly the rows.",
        ("K1", "C1", "S3"),
    ),
    Promise(
        "Nothing vanishes silently",
        "Every document is output, filtered or quarantined with a reason; the counts add up or the partition fails.",
        ("P1", "P2", "P3", "D9"),
    ),
    Promise(
        "Bad bytes do not pass",
        "A dump that is cut, spliced, changed or still being uploaded is refused.",
        ("D1", "D3", "D4", "D6", "D7", "D9", "S2"),
    ),
    Promise(
        "Queries never see half an index",
        "Publishing is one atomic switch, and so is going back.",
        ("C2", "C3"),
    ),
    Promise(
        "Deletions arrive",
        "A page that is gone from the snapshot is gone from the published index.",
        ("S3", "S4"),
    ),
    Promise(
        "One writer",
        "Of two runs of one partition one publishes; the other is told by whom it was superseded.",
        ("K3", "K9", "C4", "S1"),
    ),
    Promise(
        "Everything is bounded",
        "Each request, retry, wait and record has a limit; a poisonous record is set aside with its reason.",
        ("K6", "P2", "D2", "D8", "Q1"),
    ),
    Promise(
        "A good neighbour",
        "An honest User-Agent, two connections at most, Retry-After obeyed.",
        ("D2",),
    ),
    Promise(
        "Closed by default",
        "No network but the declared hosts, each address checked on each hop; names cannot leave the data root.",
        ("D5", "Q2", "Q3"),
    ),
    Promise(
        "The index is disposable",
        "Lose Chroma, Dagster's database or both: they are made again from Parquet, and nothing is embedded again.",
        ("R4",),
    ),
)
NOT_PROMISED = (
    "Survival of lost volumes; dumps that Wikimedia has taken down; bit-identical vectors on GPUs; exact nearest "
    "neighbours (recall is measured); Ray's head surviving inside one run (the next one resumes); opening an "
    "embedded index on a disk that is completely full (one that is open goes on answering); behaviour on a real "
    "cluster beyond what was run."
)
