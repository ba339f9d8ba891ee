"""What runs the embedding model's forward pass: OpenVINO on CPUs, torch with fp16 on CUDA, torch elsewhere.

An engine is used only after it has embedded a fixed set of texts within a hair of torch in fp32. Converting the
model takes torch and some ten seconds, once per machine; a worker then starts from the converted file in one.
Measured on a CPU with AVX512-BF16: OpenVINO bf16 2.5 times, f32 1.4 times torch, on the same batches.
"""

import logging
import os
import platform
import shutil
import uuid
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wiki_assets.errors import BadRequest, SchemaMismatch
from wiki_assets.files import fingerprint
from wiki_assets.resources.models import EmbeddingModel

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

MIN_COSINE = 0.9999
_CPU_BATCH_PIECES = 1_024  # small batches stay in the cache; best of 1,024 to 8,192
_CUDA_BATCH_PIECES = 65_536
_PROBE = [
    "A llama.",
    "Granite is a coarse-grained rock that forms when magma cools slowly, deep under the surface.",
    "1879 – 1955; E = mc²; 3.14159, 42 % of 17,000 (about 1/4) and so on: numbers & signs!",
    "Рыба, 魚, ปลา, سمك, poisson, Fisch, pez: the model may know few of these words, and must not fail on them.",
    "The lighthouse keeper wrote down the wind, the waves and the ships that passed. " * 4,
    "When the tide turns, water that filled the bay for six hours runs out again through the narrow mouth. " * 9,
]


class TorchEngine:
    """The model as sentence-transformers runs it: fp32 on a CPU, fp16 on CUDA."""

    def __init__(self, model: EmbeddingModel, *, device: str, threads: int) -> None:
        import torch

        self._torch = torch
        self.device = device
        if device == "cpu":
            torch.set_num_threads(threads)
        self._module = _module(model, device=device, half=device == "cuda")
        self.dim = model.dim
        self.engine = "torch-fp16" if device == "cuda" else "torch-fp32"
        self.batch_pieces = _CUDA_BATCH_PIECES if device == "cuda" else _CPU_BATCH_PIECES

    def encode(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Vectors of one padded batch: int64 [n, length] ids and mask to float32 [n, dim]."""
        torch = self._torch
        with torch.inference_mode():
            ids, mask = (torch.from_numpy(a).to(self.device) for a in (input_ids, attention_mask))
            return self._module(ids, mask).float().cpu().numpy()


class OpenVinoEngine:
    """The converted model on this machine's CPU, in `f32` or `bf16`."""

    device = "cpu"

    def __init__(self, model: EmbeddingModel, converted: Path, *, precision: str, threads: int) -> None:
        import openvino

        core = openvino.Core()
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise SchemaMismatch("this CPU has no native bf16")
        compiled = core.compile_model(
            str(converted / "model.xml"),
            "CPU",
            {
                "INFERENCE_NUM_THREADS": threads,
                "INFERENCE_PRECISION_HINT": precision,
                "NUM_STREAMS": 1,
                "ENABLE_CPU_PINNING": False,  # every worker of a machine would be pinned to its first CPU
            },
        )
        self._request = compiled.create_infer_request()
        self._output = compiled.output(0)
        self.dim = model.dim
        self.engine = f"openvino-{precision}"
        self.batch_pieces = _CPU_BATCH_PIECES

    def encode(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Vectors of one padded batch: int64 [n, length] ids and mask to float32 [n, dim]."""
        found = self._request.infer({"input_ids": input_ids, "attention_mask": attention_mask})
        return np.array(found[self._output], np.float32)


Engine = TorchEngine | OpenVinoEngine


@lru_cache(maxsize=2)
def load_engine(model: EmbeddingModel, choice: str, threads: int, cache: Path) -> Engine:
    """The fastest engine of this worker that agrees with fp32; loaded once per process.

    Args:
        model: which one.
        choice: `auto`, or the name of one engine.
        threads: of the CPU; ignored on CUDA.
        cache: where converted models are kept.

    Raises:
        BadRequest: if `choice` names no engine.
        SchemaMismatch: if the engine that was asked for disagrees with fp32.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    if choice == "auto" and _cuda_visible():
        return _tested(TorchEngine(model, device="cuda", threads=threads), reference(model, cache, threads))
    order = {"auto": ["openvino-bf16", "openvino-f32", "torch"]}.get(choice, [choice])
    refused: list[str] = []
    for name in order:
        try:
            if name == "torch":
                return TorchEngine(model, device="cuda" if _cuda_visible() else "cpu", threads=threads)
            if name not in ("openvino-bf16", "openvino-f32"):
                raise BadRequest(f"engine {name!r}: expected auto, openvino-bf16, openvino-f32 or torch")
            probe = reference(model, cache, threads)
            engine = OpenVinoEngine(
                model, _converted(model, cache), precision=name.removeprefix("openvino-"), threads=threads
            )
            return _tested(engine, probe)
        except (ImportError, RuntimeError, SchemaMismatch) as error:
            refused.append(f"{name}: {str(error).splitlines()[0][:160]}")
            logger.info("engine %s is not used: %s", name, error)
    raise SchemaMismatch(
        f"no engine embeds {model.name} as fp32 does ({'; '.join(refused)}): set WIKI_ASSETS_ENGINE=torch"
    )


def _cuda_visible() -> bool:
    """Whether this worker was given a GPU, without importing torch where there is plainly none."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", None) == "" or not (
        Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi")
    ):
        return False
    import torch

    return torch.cuda.is_available()


def _tested(engine: Engine, probe: dict[str, NDArray[Any]]) -> Engine:
    """Return the engine if it embeds the probe as fp32 does.

    Raises:
        SchemaMismatch: if the cosine to fp32 falls short for any text.
    """
    found = engine.encode(probe["input_ids"], probe["attention_mask"])
    expected = probe["vectors"]
    cosine = (found * expected).sum(1) / (np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1))
    if not cosine.min() >= MIN_COSINE:
        raise SchemaMismatch(
            f"{engine.engine} is {cosine.min():.5f} from fp32 in cosine, expected at least {MIN_COSINE}"
        )
    return engine


def reference(model: EmbeddingModel, cache: Path, threads: int = 1) -> dict[str, NDArray[Any]]:
    """The probe texts' ids, mask and fp32 vectors; made once per machine together with the converted model."""
    with np.load(_converted(model, cache, threads) / "probe.npz") as stored:
        return {name: stored[name] for name in stored.files}


def _converted(model: EmbeddingModel, cache: Path, threads: int = 1) -> Path:
    """The folder of the converted model; converts it if this machine has not yet done so."""
    from filelock import FileLock

    folder = (
        cache / "engines" / f"{Path(model.name).name}-{fingerprint(model.sha256, _versions(), platform.machine())[:16]}"
    )
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock", timeout=600):
            if not folder.exists():
                _convert(model, folder, threads)
    return folder


def _versions() -> list[str]:
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for package in ("openvino", "torch", "transformers", "sentence-transformers"):
        try:
            found.append(f"{package}={version(package)}")
        except PackageNotFoundError:
            found.append(f"{package}=none")
    return found


def _convert(model: EmbeddingModel, folder: Path, threads: int) -> None:
    """Write probe vectors, and the model in OpenVINO's format where OpenVINO is installed."""
    import torch

    logger.info("preparing %s for this machine (once)", model.name)
    torch.set_num_threads(threads)
    module = _module(model, device="cpu", half=False)
    ids, mask = _probe_batch(model)
    with torch.inference_mode():
        vectors = module(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
    working = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
    working.mkdir()
    try:
        np.savez(working / "probe.npz", input_ids=ids, attention_mask=mask, vectors=vectors)
        try:
            _export(module, ids, mask, working)
        except ImportError:
            logger.info("OpenVINO is not installed; torch will be used")
        working.rename(folder)
    finally:
        shutil.rmtree(working, ignore_errors=True)


def _export(module: "torch.nn.Module", ids: NDArray[np.int64], mask: NDArray[np.int64], folder: Path) -> None:
    import warnings

    import openvino
    import torch

    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # the tracer remarks on branches that the model's shape decides
        example = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        converted = openvino.convert_model(module, example_input=example)
    openvino.save_model(converted, folder / "model.xml", compress_to_fp16=False)


def _probe_batch(model: EmbeddingModel) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model.tokenizer_file))
    tokenizer.enable_truncation(model.max_pieces)
    tokenizer.enable_padding()
    rows = tokenizer.encode_batch(_PROBE)
    return np.array([r.ids for r in rows], np.int64), np.array([r.attention_mask for r in rows], np.int64)


def _module(model: EmbeddingModel, *, device: str, half: bool) -> "torch.nn.Module":
    """The whole sentence-transformers model, pooling included, as one function of ids and mask."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    loaded = SentenceTransformer(
        model.folder,
        device=device,
        local_files_only=True,
        trust_remote_code=False,
        model_kwargs={"use_safetensors": True, "attn_implementation": "eager" if device == "cpu" else "sdpa"},
    )

    class Whole(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.inner({"input_ids": input_ids, "attention_mask": attention_mask})["sentence_embedding"]

    whole = Whole(loaded).eval()
    return whole.half() if half else whole
