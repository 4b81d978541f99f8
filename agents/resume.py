"""All that a training run is made of at the end of an update, so that it goes on as if it had never been stopped.

`capture` gives arrays and plain values, `apply` puts them back: optimiser, reference policy, random generators, reward
statistics, every environment in the middle of its episode. The policy's own weights are the checkpoint's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from mmsched_env.core import Simulation, Snapshot
from mmsched_env.sim.events import EVENT
from mmsched_env.workload.trace import COLUMNS, RequestTrace

from .mixed_vec_env import MixedVecEnv
from .ppo import AnchoredPPO
from .sb3_vec_env import ServingSB3VecEnv

Arrays = dict[str, Tensor]
Values = dict[str, Any]


def capture(model: AnchoredPPO, parts: Sequence[ServingSB3VecEnv]) -> tuple[Arrays, Values]:
    """Tensors by name, and what JSON can hold."""
    state = model.policy.optimizer.state_dict()
    arrays = {f"optimizer/{i}/{name}": x for i, row in state["state"].items() for name, x in row.items()}
    if model.reference is not None:
        arrays |= {f"reference/{name}": x for name, x in model.reference.state_dict().items()}
    generator = np.random.get_state(legacy=False)  # noqa: NPY002  (SB3's buffers shuffle with it)
    assert isinstance(generator, dict) and model._last_episode_starts is not None
    arrays |= {
        "torch_generator": torch.get_rng_state(),
        "numpy_generator": torch.as_tensor(generator["state"]["key"].astype(np.int64)),
        "episode_starts": torch.as_tensor(model._last_episode_starts.astype(np.uint8)),
    }
    if model.device.type == "cuda":  # actions are drawn there
        arrays["cuda_generator"] = torch.cuda.get_rng_state(model.device)
    values: Values = {
        "optimizer": state["param_groups"],
        "numpy_generator": {key: generator[key] for key in ("has_gauss", "gauss")} | {"pos": generator["state"]["pos"]},
        "parts": [],
    }
    for at, part in enumerate(parts):
        own, plain = _capture_part(part)
        arrays |= {f"part/{at}/{name}": x for name, x in own.items()}
        values["parts"].append(plain | _statistics(model, at))
        if isinstance(normaliser := _parts(model)[at], VecNormalize):
            arrays[f"part/{at}/discounted"] = torch.as_tensor(normaliser.returns)
    return {name: x.detach().clone().contiguous() for name, x in arrays.items()}, values


def apply(model: AnchoredPPO, parts: Sequence[ServingSB3VecEnv], arrays: Mapping[str, Tensor], values: Values) -> None:
    """Put a captured state back into a model and environments of the same configuration."""
    rows: dict[int, dict[str, Tensor]] = {}
    for label, x in _under("optimizer/", arrays).items():
        index, key = label.split("/")
        rows.setdefault(int(index), {})[key] = x
    model.policy.optimizer.load_state_dict({"state": rows, "param_groups": values["optimizer"]})
    if "cuda_generator" in arrays and model.device.type == "cuda":
        torch.cuda.set_rng_state(arrays["cuda_generator"], model.device)
    if reference := _under("reference/", arrays):
        model.anchor()
        assert model.reference is not None
        model.reference.load_state_dict(reference)
    for at, (part, plain) in enumerate(zip(parts, values["parts"], strict=True)):
        own = _under(f"part/{at}/", arrays)
        _apply_part(part, own, plain)
        if isinstance(normaliser := _parts(model)[at], VecNormalize):
            normaliser.returns = own["discounted"].numpy().copy()
            for name in ("mean", "var", "count"):
                setattr(normaliser.ret_rms, name, np.float64(plain[name]))
    model._last_obs = {
        key: np.concatenate([part.observation()[key] for part in parts]) for key in parts[0].observation()
    }
    model._last_episode_starts = arrays["episode_starts"].numpy().astype(bool)
    torch.set_rng_state(arrays["torch_generator"])
    saved = values["numpy_generator"]
    state = {"key": arrays["numpy_generator"].numpy().astype(np.uint32), "pos": saved["pos"]}
    gauss = {name: saved[name] for name in ("has_gauss", "gauss")}
    np.random.set_state({"bit_generator": "MT19937", "state": state} | gauss)  # noqa: NPY002


def _parts(model: AnchoredPPO) -> list[Any]:
    assert isinstance(model.env, MixedVecEnv)
    return list(model.env.parts)


def _statistics(model: AnchoredPPO, at: int) -> Values:
    """Running mean, variance and count of the discounted return, if rewards are normalised."""
    part = _parts(model)[at]
    return (
        {n: float(getattr(part.ret_rms, n)) for n in ("mean", "var", "count")} if isinstance(part, VecNormalize) else {}
    )


def _under(prefix: str, arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): x for name, x in arrays.items() if name.startswith(prefix)}


def _capture_part(part: ServingSB3VecEnv) -> tuple[Arrays, Values]:
    simulation = part.serving.simulation
    arrays: Arrays = {
        "returns": torch.as_tensor(part.returns),
        "lengths": torch.as_tensor(part.lengths),
        "ended": torch.as_tensor(part.ended),
        "elapsed_s": torch.as_tensor(part.elapsed_s),
    }
    arrays |= {f"adviser/{at}": _bytes(rule.memory) for at, rule in enumerate(part.view.rules)}
    classes = []
    for env in range(part.num_envs):
        now = simulation.snapshot(env)
        arrays |= {f"{env}/{name}": _bytes(getattr(now, name)) for name in ("state", "requests", "params")}
        arrays |= {f"{env}/trace/{name}": torch.as_tensor(getattr(now.trace, name)) for name in COLUMNS}
        classes.append(now.trace.class_names)
    return arrays, {"generators": [rng.bit_generator.state for rng in part.serving._rngs], "classes": classes}


def _apply_part(part: ServingSB3VecEnv, arrays: Mapping[str, Tensor], values: Values) -> None:
    simulation = part.serving.simulation
    for name, into in (("returns", part.returns), ("lengths", part.lengths)):
        into[:] = arrays[name].numpy()
    if "ended" in arrays:  # files of before `common_traces` have none, and need none
        part.ended[:] = arrays["ended"].numpy()
    part.elapsed_s = arrays["elapsed_s"].numpy().copy()
    for env, (generator, classes) in enumerate(zip(values["generators"], values["classes"], strict=True)):
        simulation.restore(_snapshot(simulation, _under(f"{env}/", arrays), classes), slice(env, env + 1))
        part.serving._rngs[env] = np.random.default_rng()
        part.serving._rngs[env].bit_generator.state = generator
    for at, rule in enumerate(part.view.rules):
        rule.memory[:] = arrays[f"adviser/{at}"].numpy().view(rule.memory.dtype)
    part.serving._started = True


def _snapshot(simulation: Simulation, arrays: Mapping[str, Tensor], classes: Sequence[str]) -> Snapshot:
    if simulation.requests is None:
        simulation._make_room(1)
    kinds = {"state": simulation.state.dtype, "requests": simulation.requests.dtype, "params": simulation.params.dtype}
    records = {name: arrays[name].numpy().view(kind) for name, kind in kinds.items()}
    columns: dict[str, Any] = {name: arrays[f"trace/{name}"].numpy() for name in COLUMNS}
    trace = RequestTrace(**columns, model_names=simulation.config.models.names, class_names=tuple(classes))
    return Snapshot(log=np.zeros(0, EVENT), trace=trace, **records)


def _bytes(records: NDArray[Any]) -> Tensor:
    """The records' memory, with zeros between their fields: what lies there is no state."""
    clean = np.zeros(records.shape, records.dtype)
    for name in records.dtype.names or ():
        clean[name] = records[name]
    return torch.from_numpy(clean.view(np.uint8).reshape(-1))
