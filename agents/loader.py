"""A learned policy by its file, for evaluation. PyTorch and Stable-Baselines3 are imported only for the files that need them."""

from __future__ import annotations

from pathlib import Path

from mmsched_env.policy import Policy


def load_policy(path: str | Path, stochastic: bool = False, sb3: bool = False) -> Policy:
    """The policy of a file.

    Parameters
    ----------
    path
        A .zip that `mmsched train` wrote, or an .onnx that `mmsched_env.agents.export` wrote. Nothing in them is executed.
    stochastic
        Draw from the policy; false: always the likeliest action.
    sb3
        The .zip is one of `MaskablePPO.save`. Loading it unpickles, and so may execute, what is in it: only for
        files you trust.

    Raises
    ------
    ConfigError
        There is no such file, it is not what it should be, or not one of this version's networks.
    """
    path = Path(path)
    if path.suffix == ".onnx":
        from .onnx_policy import OnnxPolicy

        return OnnxPolicy(path, stochastic)
    if sb3:
        from .sb3_policy import SB3Policy

        return SB3Policy(path, stochastic)
    from .trained import TrainedPolicy

    return TrainedPolicy(path, stochastic)
