"""What the server of `children` imports, so that no child has to load it: see there."""

import gc
import tempfile
from pathlib import Path

import chromadb.api.rust  # noqa: F401

import wiki_assets_tests.chaos.checks_compute
import wiki_assets_tests.chaos.checks_index  # noqa: F401
from wiki_assets_tests.chaos.plain import PARQUET_STEPS, Plain

with tempfile.TemporaryDirectory() as folder:
    plain = Plain.laid_out(Path(folder) / "wiki")
    for name in PARQUET_STEPS:
        plain.step(name)
gc.freeze()  # children share this memory as long as nobody touches it
