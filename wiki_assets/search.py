"""Ask the published index. Reads only through the pointer, so a question sees one whole build."""

from dataclasses import dataclass

import numpy as np

from wiki_assets.defs.wikis import wiki_config
from wiki_assets.errors import SchemaMismatch
from wiki_assets.keys import Snapshot, check_wiki
from wiki_assets.resources.chroma import open_store, published_collection
from wiki_assets.resources.engines import load_engine
from wiki_assets.resources.models import EmbeddingModel, find_model
from wiki_assets.resources.store import Store
from wiki_assets.settings import Settings
from wiki_assets.stages.embeddings import embed_passages
from wiki_assets.stages.index import Hit, check_question, nearest_passages
from wiki_assets.stages.word_pieces import WordPieceTokenizer


@dataclass(frozen=True)
class Questioner:
    """Turns questions into vectors with one model."""

    model: EmbeddingModel
    settings: Settings

    def vector(self, question: str) -> np.ndarray:
        """float32 [dim] of unit length. Of a question longer than the model reads, its beginning."""
        tokenizer = WordPieceTokenizer(self.model.tokenizer_file, max_pieces=self.model.max_pieces)
        ids = tokenizer.wrapped(tokenizer.ids(self.model.query_prompt + question)[: tokenizer.room])
        engine = load_engine(self.model, self.settings.engine, 1, self.settings.cache_folder)
        return embed_passages([np.array(ids, np.int32)], engine, ["the question"])[0]


def ask(question: str, settings: Settings, *, wiki: str | None = None, k: int = 10) -> list[Hit]:
    """The k passages of a published index that are nearest to a question, best first.

    Args:
        question: up to 8 KiB of text.
        settings: where the data is, and the model.
        wiki: which one; None where only one is published.
        k: 1 to 1,000.

    Raises:
        BadRequest: if the question or `k` cannot be asked.
        NotPublished: if there is no index.
        SchemaMismatch: if the model is not the one the index was made with.
    """
    question = check_question(question, k)
    if wiki is not None:
        check_wiki(wiki)
    store = Store(settings.root)
    pointer = store.published(wiki)
    model = find_model(wiki_config(pointer["wiki"], settings, store).model)
    made_with = pointer["model"]
    if model.sha256 != made_with["sha256"]:
        raise SchemaMismatch(
            f"model {model.name!r} ({model.sha256[:12]}…) asked, "
            f"{pointer['collection']} was made with {made_with['name']!r} ({made_with['sha256'][:12]}…): "
            "set WIKI_ASSETS_MODEL to that, or materialize again with yours"
        )
    vector = Questioner(model, settings).vector(question)
    folder = store.build(Snapshot(pointer["wiki"], pointer["snapshot"]), pointer["build"]) / "chroma"
    with open_store(folder, settings.chroma or pointer["server"]) as client:
        return nearest_passages(published_collection(client, pointer["collection"]), vector, k)
