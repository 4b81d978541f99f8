"""Reader of a trace that names the model of every request: 27 anonymous models of a chat arena.

One CSV file with columns arrival_s, model_id, prompt_tokens, output_tokens (others are ignored): Chatbot Arena logs as
published with the Prism, VTC and S-LoRA code (Apache-2.0), time rescaled by them to 600 s.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsched_env.errors import ConfigError, unknown_name

from .checks import require_models
from .replay import ReplayConfig
from .table import Stamp, file_stamp, read_table
from .trace import Column, RequestTrace

MODEL_ID = Column(np.int32, 0, "a whole number >= 0")


@dataclass(frozen=True)
class Arena27Config(ReplayConfig):
    """The recorded requests with each model id mapped to a served model; a `TraceSource`.

    ``path`` is the file. The seed draws classes and prediction errors; times, models and lengths are the record's.

    Raises
    ------
    ConfigError
        A value that cannot be used, with its full key and what is accepted.
    """

    models_of_ids: tuple[str, ...] = ()
    """the model that serves id 0, id 1, ...; empty: ids ranked by requests in the whole file (ties: lower id first),
    rank r served by model r modulo the number of models"""

    def sample(self, seed: int, model_names: tuple[str, ...]) -> RequestTrace:
        """The recorded requests; see `TraceSource.sample`."""
        require_models(model_names)
        path = self.folder_or_file("the arena27 CSV file")
        columns = dict(_read(path, file_stamp(path), self.min_tokens))
        ids = columns.pop("model_id")
        return self.replay(seed, model_names, str(path), {**columns, "model": self._model_of(ids, model_names)[ids]})

    def _model_of(self, ids: NDArray[np.int64], model_names: tuple[str, ...]) -> NDArray[np.int64]:
        """[largest id + 1] index of the model that serves each id."""
        requests = np.bincount(ids)
        if not self.models_of_ids:
            rank = np.empty(len(requests), np.int64)
            rank[np.argsort(-requests, kind="stable")] = np.arange(len(requests))
            return rank % len(model_names)
        for name in self.models_of_ids:
            if name not in model_names:
                raise unknown_name("model in workload.models_of_ids", name, model_names)
        if len(self.models_of_ids) < len(requests):
            raise ConfigError(
                f"workload.models_of_ids has {len(self.models_of_ids)} names; accepted: {len(requests)}, "
                f"one for each id 0..{len(requests) - 1}"
            )
        return np.array([model_names.index(name) for name in self.models_of_ids])


@lru_cache(maxsize=8)
def _read(path: Path, stamp: Stamp, min_tokens: int) -> dict[str, NDArray[Any]]:
    """The columns of the file; a changed file has another stamp and is read anew."""
    table = read_table(path, ("arrival_s", "model_id", "prompt_tokens", "output_tokens"))
    arrival_s = table.numbers("arrival_s")
    table.refuse_unsorted("arrival_s", arrival_s)
    return {
        "arrival_s": arrival_s,
        "model_id": table.numbers("model_id", MODEL_ID).astype(np.int64),
        "prompt_tokens": table.tokens("prompt_tokens", min_tokens),
        "output_tokens": table.tokens("output_tokens", min_tokens),
    }
