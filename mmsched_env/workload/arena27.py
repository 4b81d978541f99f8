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

from mmsched_env.errors import ConfigError

from .checks import require, require_models
from .lines import Stamp, file_stamp
from .mapping import by_popularity, by_size, pick
from .replay import ReplayConfig
from .table import Field, Ids, Numbers, number_field, read_columns, token_field
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
    rank r served by model r modulo the number of models, in the order that `ranked` says"""
    ranked: str = "listed"
    """listed: the most requested id goes to the first of models.names; size: to the smallest model"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.ranked in ("listed", "size"), "workload.ranked", self.ranked, "listed or size")

    def sample(self, seed: int, model_names: tuple[str, ...]) -> RequestTrace:
        """The recorded requests; see `TraceSource.sample`."""
        require_models(model_names)
        path = self.folder_or_file("the arena27 CSV file")
        columns = dict(_read(path, file_stamp(path), self.min_tokens))
        ids = columns.pop("model_id")
        return self.replay(seed, model_names, str(path), {**columns, "model": self._model_of(ids, model_names)[ids]})

    def _model_of(self, ids: NDArray[np.int64], model_names: tuple[str, ...]) -> NDArray[np.int64]:
        """[largest id + 1] index of the model that serves each id."""
        models = pick(self.models_of_ids, model_names, "workload.models_of_ids")
        if not self.models_of_ids:
            models = by_size(models, model_names) if self.ranked == "size" else models
            return models[by_popularity(ids, len(models))]
        largest = int(ids.max())
        if len(models) <= largest:
            raise ConfigError(
                f"workload.models_of_ids has {len(models)} names; accepted: {largest + 1}, one for each id 0..{largest}"
            )
        return models


@lru_cache(maxsize=8)
def _read(path: Path, stamp: Stamp, min_tokens: int) -> dict[str, NDArray[Any]]:
    """The columns of the file; a changed file has another stamp and is read anew."""
    fields: dict[str, Field] = {
        "arrival_s": number_field("arrival_s", rising=True),
        "model_id": Numbers(MODEL_ID),
        "prompt_tokens": token_field(min_tokens),
        "output_tokens": token_field(min_tokens),
        "req_id": Ids(),
    }
    columns = read_columns(path, fields, optional=("req_id",))
    columns.pop("req_id", None)
    return columns | {"model_id": columns["model_id"].astype(np.int64)}
