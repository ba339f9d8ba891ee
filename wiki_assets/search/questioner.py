"""Questions to vectors."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from wiki_assets.resources.engines import load_engine
from wiki_assets.resources.models import EmbeddingModel
from wiki_assets.resources.sharing import SharedEncoder
from wiki_assets.settings import Settings
from wiki_assets.stages.embeddings import Encoder, embed_passages
from wiki_assets.stages.word_pieces import WordPieceTokenizer

EncoderOf = Callable[[EmbeddingModel], Encoder]
_REMEMBERED = 2_048  # questions of a model, with their vectors


class Questioner:
    """Turns questions into vectors with one model. Remembers the last ones, for people ask again and page on.

    Args:
        model: whose vectors.
        encoder: runs it; any number of threads may ask at the same time.
    """

    def __init__(self, model: EmbeddingModel, encoder: Encoder) -> None:
        self.model = model
        self.encoder = encoder
        self._tokenizer = WordPieceTokenizer(model.tokenizer_file, max_pieces=model.max_pieces)
        self._known: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()

    def vectors(self, questions: Sequence[str]) -> NDArray[np.float32]:
        """float32 [n, dim] of unit length. Of a question longer than the model reads, its beginning."""
        return self.remembered(questions) if len(questions) == 1 else self.fresh(questions)

    def remembered(self, questions: Sequence[str]) -> NDArray[np.float32]:
        """The same; those that were asked lately are not computed again."""
        with self._lock:
            found = {question: self._known[question] for question in questions if question in self._known}
        fresh = [question for question in dict.fromkeys(questions) if question not in found]
        if fresh:
            found |= {question: row.copy() for question, row in zip(fresh, self.fresh(fresh), strict=True)}
        with self._lock:
            for question in found:
                self._known[question] = found[question]
                self._known.move_to_end(question)
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return np.stack([found[question] for question in questions])

    def fresh(self, questions: Sequence[str]) -> NDArray[np.float32]:
        """The same, computed now."""
        tokenizer, prompt = self._tokenizer, self.model.query_prompt
        ids = [tokenizer.wrapped(tokenizer.ids(prompt + text)[: tokenizer.room]) for text in questions]
        return embed_passages([np.array(row, np.int32) for row in ids], self.encoder, questions)


class Questioners:
    """One questioner for each model, which every build made with that model shares.

    Args:
        settings: the engine.
        encoder_of: what runs a model; an engine of this process, if left out.
    """

    def __init__(self, settings: Settings, encoder_of: EncoderOf | None = None) -> None:
        self._settings = settings
        self._encoder_of = encoder_of or self._own
        self._lock = threading.Lock()
        self._by_model: dict[str, Questioner] = {}

    def of(self, model: EmbeddingModel) -> Questioner:
        """The model's questioner; the model is loaded when it is first asked for."""
        with self._lock:
            found = self._by_model.get(model.sha256)
            if found is None:
                found = self._by_model[model.sha256] = Questioner(model, self._encoder_of(model))
            return found

    def close(self) -> None:
        """Let go of the models."""
        with self._lock:
            for questioner in self._by_model.values():
                if isinstance(questioner.encoder, SharedEncoder):
                    questioner.encoder.close()
            self._by_model.clear()

    def _own(self, model: EmbeddingModel) -> Encoder:
        settings = self._settings
        return SharedEncoder(lambda: load_engine(model, settings.engine, 1, settings.cache_folder))
