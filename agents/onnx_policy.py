"""An exported policy as an `mmsched_env.policy.Policy`: NumPy and onnxruntime, no PyTorch.

``<name>.onnx`` holds the network from raw observation to masked logits, for the padded sizes it was exported for, and says in
its metadata what they are (`export.py` writes it).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsched_env.action import ActionLayout
from mmsched_env.errors import ConfigError
from mmsched_env.observation import layout_signature

from .learner import SingleView

LAYOUT_KEY, ADVISERS_KEY = "mmsched_layout", "mmsched_advisers"


class OnnxPolicy:
    """Takes the likeliest legal action, or draws one if `stochastic`.

    Raises
    ------
    ConfigError
        There is no such file, or `mmsched_env.agents.export` did not write it.
    """

    def __init__(self, path: str | Path, stochastic: bool = False) -> None:
        import onnxruntime

        self.path = Path(path)
        if not self.path.is_file():
            raise ConfigError(f"{path}: no such file; accepted: an .onnx file written by mmsched_env.agents.export")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # one decision is too little work to share
        try:
            self._session = onnxruntime.InferenceSession(
                self.path.read_bytes(), options, providers=["CPUExecutionProvider"]
            )
            facts = self._session.get_modelmeta().custom_metadata_map
            self.layout, advisers = json.loads(facts[LAYOUT_KEY]), json.loads(facts[ADVISERS_KEY])
        except Exception as error:  # onnxruntime's own exceptions share no base class of their own
            raise ConfigError(f"{path}: no exported policy; accepted: what mmsched_env.agents.export wrote") from error
        self.stochastic = stochastic
        self._view = SingleView(advisers)
        self._rng = np.random.default_rng(0)

    def reset(self, layout: ActionLayout, seed: int) -> None:
        """Get ready for an environment.

        Raises
        ------
        ConfigError
            Its observation is laid out otherwise than the file was exported for.
        """
        if layout_signature(layout.dims) != self.layout:
            sizes = ", ".join(f"{letter}={size}" for letter, size in self.layout["sizes"].items())
            raise ConfigError(f"{self.path} was exported for {sizes}; accepted: such an environment, or another export")
        self._view.reset(layout, seed)
        self._rng = np.random.default_rng(seed)

    def logits(self, observation: Mapping[str, NDArray[Any]], mask: NDArray[Any]) -> NDArray[np.float32]:
        """(A,) masked logits; blocks (rows..., fields), mask (A,)."""
        seen = self._view.observation(observation, mask)
        found = self._session.run(None, {key: np.asarray(x, np.float32)[None] for key, x in seen.items()})[0]
        return np.asarray(found[0], np.float32)

    def act(self, observation: Mapping[str, NDArray[Any]], mask: NDArray[Any]) -> int:
        """Index of the action to take."""
        logits = self.logits(observation, mask)
        if not self.stochastic:
            return int(logits.argmax())
        chances = np.exp(logits.astype(np.float64) - logits.max())
        return int(self._rng.choice(len(chances), p=chances / chances.sum()))
