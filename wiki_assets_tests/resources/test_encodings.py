"""The faster engine gives tiktoken's ids, or is not used."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wiki_assets.resources import encodings
from wiki_assets.resources.encodings import FastEncoding
from wiki_assets.resources.models import fastest_encoding
from wiki_assets_tests.tinywiki.build import HERE


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> FastEncoding:
    found = fastest_encoding("cl100k_base", tmp_path_factory.mktemp("ranks"))
    assert isinstance(found, FastEncoding), "both engines are installed and agree on the probes"
    return found


@given(text=st.text() | st.text(alphabet="ab 1'\n\t.<|>éßн漢🙂\u0301\u200d", max_size=200))
def test_ids_are_tiktokens(fast: FastEncoding, encoding, text: str) -> None:
    assert fast.encode_to_numpy(text).tolist() == encoding.encode_ordinary(text)


def test_ids_of_whole_pages_are_tiktokens(fast: FastEncoding, encoding) -> None:
    for page in sorted((HERE / "pages").glob("*.md")):
        text = page.read_text("utf-8")
        assert fast.encode_to_numpy(text).tolist() == encoding.encode_ordinary(text), page.name


def test_a_text_of_unusual_length_goes_to_tiktoken(fast: FastEncoding, encoding) -> None:
    text = "a" * 100_001 + " " * 1_000 + "."
    assert fast.encode_to_numpy(text).tolist() == encoding.encode_ordinary(text)


def test_an_engine_that_differs_is_not_used(
    fast: FastEncoding, encoding, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.setattr(FastEncoding, "encode_to_numpy", lambda self, text, **_: np.zeros(1, np.uint32))
    monkeypatch.setattr(FastEncoding, "__init__", lambda self, reference, ranks: None)
    assert encodings.fastest(encoding, tmp_path) is encoding
