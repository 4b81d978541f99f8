"""A checkpoint's policy as an ONNX file: ``python -m mmsched_env.agents.export CHECKPOINT.zip POLICY.onnx [key=value ...]``.

The sizes it is exported for are those of the environments it was trained on, or of the configuration that the overrides
make (``scenario=steady limits.gpus=8``).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mmsched_env import hydra_app
from mmsched_env.observation import BLOCKS, MASK_KEY, block_shape, block_width, layout_signature
from mmsched_env.sim.state import Dims

from .checkpoint import read_checkpoint
from .learner import ADVICE_KEY
from .onnx_policy import ADVISERS_KEY, LAYOUT_KEY
from .ppo import logits_and_values
from .trained import dims_of, network

OPSET = 18
"""the first with ScatterElements by maximum and minimum"""


class _Logits(nn.Module):
    """What a learner sees, in a fixed order, to masked logits."""

    def __init__(self, policy: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.policy, self.names = policy, names

    def forward(self, *inputs: Tensor) -> Tensor:
        seen = dict(zip(self.names, inputs, strict=True))
        return logits_and_values(self.policy, seen, seen[MASK_KEY])[0]  # type: ignore[arg-type]


def export(checkpoint: str | Path, path: str | Path, dims: Dims | None = None) -> Path:
    """Write the policy of `checkpoint` for observations of the sizes `dims` (default: those it was trained on).

    Raises
    ------
    ConfigError
        No such checkpoint, or its network cannot be built for these sizes.
    """
    import onnx

    found = read_checkpoint(checkpoint)
    dims = dims or dims_of(Path(checkpoint), found)
    advisers = list(found.agent["advisers"])
    inputs = {block: torch.zeros(1, *block_shape(block, dims), block_width(block, dims)) for block in BLOCKS}
    for rows in inputs.values():  # something in every row: an export without any would leave out what is done with it
        rows[..., 0] = 1.0
    inputs[MASK_KEY] = torch.ones(1, dims.A)
    if advisers:
        inputs[ADVICE_KEY] = torch.zeros(1, len(advisers))
    module = _Logits(network(Path(checkpoint), found, dims), list(inputs)).eval()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            str(temporary),
            input_names=list(inputs),
            output_names=["logits"],
            opset_version=OPSET,
            dynamo=False,
        )
        model = onnx.load(str(temporary))
        model.metadata_props.add(key=LAYOUT_KEY, value=json.dumps(layout_signature(dims)))
        model.metadata_props.add(key=ADVISERS_KEY, value=json.dumps(advisers))
        onnx.save(model, str(temporary))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def main(arguments: Sequence[str]) -> None:
    if len(arguments) < 2 or not arguments[1].endswith(".onnx"):
        hydra_app.fail(
            "export needs CHECKPOINT.zip POLICY.onnx, and may be given key=value settings of the environment"
        )

    def run() -> None:
        checkpoint, path, *overrides = arguments
        dims = None
        if overrides:
            dims = Dims.of(hydra_app.env_config_of(hydra_app.composed("evaluate", overrides, "export")).limits)
        print(f"wrote {export(checkpoint, path, dims)}")

    hydra_app.with_one_line_errors(run)


if __name__ == "__main__":
    main(sys.argv[1:])
