"""Random clusters, cost tables, traces, configurations and policies, as plain data that a case file can hold."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsched_env.config import ClusterConfig, EnvConfig, LimitsConfig, ModelsConfig, RewardConfig, SimConfig
from mmsched_env.costmodel.tables import CostTables
from mmsched_env.workload import RequestTrace

LIMITS = LimitsConfig()  # other sizes compile the kernel anew
LEVELS = np.array(LIMITS.levels)
KNOTS = 4
Rng = np.random.Generator
Array = NDArray[Any]


@dataclass(frozen=True)
class Policy:
    """A seeded random policy: a kind of action by weight, then any legal action of that kind."""

    seed: int
    wait: float
    dispatch: float
    preempt: float
    offload: float
    quiet_after: int  # decisions after which it only dispatches and waits, so that the episode ends


@dataclass(frozen=True)
class Scenario:
    seed: int
    gpu_hosts: tuple[int, ...]
    kv_swap_fraction: float
    tables: dict[str, Array]  # CostTables by field
    trace: dict[str, Array]  # RequestTrace.from_columns by column
    sim: dict[str, Any]  # SimConfig by field
    reward: dict[str, float]
    policy: Policy

    @property
    def num_hosts(self) -> int:
        return len(self.tables["host_bytes"])

    @property
    def num_models(self) -> int:
        return len(self.tables["num_units"])

    def reserved(self) -> Array:
        """T of R7, by request."""
        return self.trace["prompt_tokens"] + self.trace["image_tokens"] + self.trace["max_tokens"]

    def main_bytes(self) -> Array:
        """Main of R9, by GPU: that of its host."""
        swap = (self.kv_swap_fraction * self.tables["host_bytes"]).astype(np.int64)
        return (self.tables["host_bytes"] - swap)[list(self.gpu_hosts)]

    def cost_tables(self) -> CostTables:
        return CostTables(**self.tables, gpu_host=np.array(self.gpu_hosts))

    def request_trace(self) -> RequestTrace:
        return RequestTrace.from_columns(self.config().models.names, **self.trace)

    def config(self) -> EnvConfig:
        """Profile names are placeholders: the tables are given."""
        return EnvConfig(
            cluster=ClusterConfig(
                tuple(f"gpu{g}" for g in range(len(self.gpu_hosts))),
                tuple(f"host{h}" for h in range(self.num_hosts)),
                self.gpu_hosts,
                self.kv_swap_fraction,
            ),
            models=ModelsConfig(tuple(f"model{m}" for m in range(self.num_models))),
            limits=LIMITS,
            sim=SimConfig(**self.sim),
            reward=RewardConfig(**self.reward),
        )

    def first_requests(self, count: int) -> Scenario:
        return dataclasses.replace(self, trace={name: values[:count] for name, values in self.trace.items()})

    def save(self, path: Path, note: str) -> None:
        plain = dataclasses.asdict(self)
        for part in ("tables", "trace"):
            plain[part] = {name: values.tolist() for name, values in plain[part].items()}
        path.write_text(json.dumps({"note": note, **plain}) + "\n")

    @classmethod
    def load(cls, path: Path) -> Scenario:
        plain = json.loads(path.read_text())
        del plain["note"]
        for part in ("tables", "trace"):
            plain[part] = {name: np.array(values) for name, values in plain[part].items()}
        plain["gpu_hosts"] = tuple(plain["gpu_hosts"])
        return cls(**plain | {"policy": Policy(**plain["policy"])})


def random_scenario(seed: int) -> Scenario:
    """The first servable scenario of this seed: every request fits somewhere."""
    for attempt in range(1000):
        rng = np.random.default_rng([seed, attempt])
        scenario = _draw(rng, seed)
        if _servable(scenario):
            return scenario
    raise AssertionError(f"seed {seed}: no servable scenario in 1000 draws")


def _draw(rng: Rng, seed: int) -> Scenario:
    gpus, models = int(rng.integers(1, 5)), int(rng.integers(1, 5))
    hosts = int(rng.integers(1, 3))
    trace = _trace(rng, models)
    tables = _tables(rng, models, gpus, hosts, _longest(trace))
    if rng.random() < 0.3:
        trace, tables = trace_on_grid(trace), tables_on_grid(tables)
    scenario = Scenario(
        seed=seed,
        gpu_hosts=tuple(rng.integers(0, hosts, gpus).tolist()),
        kv_swap_fraction=float(rng.choice([0.0, 0.02, 0.1, 0.25, 0.5])),
        trace=trace,
        tables=tables,
        sim=_sim(rng),
        reward={"flow_time": float(rng.choice([0.0, 1.0])), "slo_miss": 0.7, "slowdown": 0.3},
        policy=_policy(rng),
    )
    # last: these leave the draws above as they are
    scenario = _with_noise(rng, scenario) if rng.random() < 0.3 else scenario
    return dataclasses.replace(scenario, tables=scenario.tables | _side_by_side(rng, gpus, hosts))


def _side_by_side(rng: Rng, g: int, h: int) -> dict[str, Array]:
    """R19: devices that copy themselves, wholly, in part or not at all; GPUs of a host that slow each other."""
    return {
        "operation_share": rng.choice([0.0, 0.0, 0.4, 1.0], g),
        "interference": rng.choice([0.0, 0.0, 0.25], h),
    }


def _with_noise(rng: Rng, s: Scenario) -> Scenario:
    """Memory noise (R31); each GPU shrinks to about the need of some models by the estimates, if all stays servable."""
    s = dataclasses.replace(s, sim=s.sim | {"memory_noise": float(rng.choice([0.05, 0.2, 0.6, 1.0]))})
    t, longest = s.tables, _longest(s.trace)
    need = t["gpu_weight_bytes"] + t["buffer_bytes"][:, None] + longest * t["kv_gpu_bytes"]  # (M, K)
    for g in [*range(len(s.gpu_hosts))] * 3:
        m, k = rng.integers(0, s.num_models), rng.integers(1, len(LEVELS))
        gpu_bytes = s.tables["gpu_bytes"].copy()
        gpu_bytes[g] = min(gpu_bytes[g], int(need[m, k] * rng.choice([1.0, 1.02, 1.2])))
        smaller = dataclasses.replace(s, tables=t | {"gpu_bytes": gpu_bytes})
        s = smaller if _servable(smaller) else s
    return s


def _longest(trace: dict[str, Array]) -> int:
    return int((trace["prompt_tokens"] + trace["image_tokens"] + trace["max_tokens"]).max())


def _servable(s: Scenario) -> bool:
    """As the doc's R8 and R9 have it, with an empty machine."""
    t = s.tables
    main = s.main_bytes()
    for m, tokens in zip(s.trace["model"], s.reserved(), strict=True):
        gpu = t["gpu_weight_bytes"][m] + t["buffer_bytes"][m] + tokens * t["kv_gpu_bytes"][m]
        host = t["cpu_weight_bytes"][m] + tokens * t["kv_cpu_bytes"][m]
        if not ((gpu[None] <= t["gpu_bytes"][:, None]) & (host[None] <= main[:, None])).any():
            return False
    return True


def _policy(rng: Rng) -> Policy:
    heavy = rng.random() < 0.25
    return Policy(
        seed=int(rng.integers(1 << 30)),
        wait=float(rng.choice([0.2, 0.5, 1.0, 3.0])),
        dispatch=float(rng.choice([0.5, 2.0, 6.0])),
        preempt=4.0 if heavy else float(rng.choice([0.0, 0.1, 0.5])),
        offload=4.0 if heavy else float(rng.choice([0.0, 0.1, 0.5])),
        quiet_after=int(rng.choice([60, 150, 300])),
    )


def _sim(rng: Rng) -> dict[str, Any]:
    sim: dict[str, Any] = {
        "prefill_mode": str(rng.choice(["mixed", "mixed", "prefill_first"])),
        "ubatch_tokens": int(rng.choice([5, 16, 64, 512])),
        "preempt_mode": str(rng.choice(["swap", "swap", "recompute", "cheaper", "cheaper"])),
        "resize_mode": str(rng.choice(["reload", "move"])),
        "allow_preempt": bool(rng.random() < 0.9),
        "allow_offload": bool(rng.random() < 0.9),
    }
    if rng.random() < 0.4:
        sim |= {"drop_after": float(rng.uniform(0.3, 4.0)), "drop_penalty": float(rng.choice([0.0, 0.5, 2.0, 8.0]))}
    if rng.random() < 0.1:
        sim["max_time_s"] = float(rng.uniform(0.5, 8.0))
    if rng.random() < 0.05:
        sim["max_steps"] = int(rng.integers(1, 60))
    return sim


def _trace(rng: Rng, models: int) -> dict[str, Array]:
    n = int(rng.integers(10, 41))
    gap = _log_uniform(rng, 0.005, 0.5) * rng.exponential(size=n)
    gap[rng.random(n) < rng.choice([0.0, 0.4, 0.9])] = 0.0
    output = rng.integers(1, 1 + int(rng.choice([3, 20, 60])), n)
    image = np.where(rng.random(n) < 0.3, rng.integers(0, 120, n), 0)
    targets = rng.random(n) < 0.5
    return {
        "arrival_s": np.cumsum(gap) - gap[0] * (rng.random() < 0.3),
        "model": rng.integers(0, models, n),
        "prompt_tokens": rng.integers(1, int(rng.choice([10, 80, 300])), n),
        "image_tokens": image,
        "max_tokens": output + rng.integers(0, 30, n),
        "output_tokens": output,
        "predicted_tokens": np.maximum(1, (output * rng.lognormal(0, 0.6, n)).round(int(rng.integers(0, 3)))),
        "slo_class": rng.integers(0, 2, n),
        "weight": rng.choice([0.5, 1.0, 4.0], n),
        "slo_scale": rng.uniform(1, 8, n),
        "slo_ttft_s": np.where(targets, rng.uniform(0.05, 2, n), np.nan),
        "slo_e2e_s": np.where(targets, rng.uniform(0.1, 5, n), np.nan),
    }


def _tables(rng: Rng, m: int, g: int, h: int, longest: int) -> dict[str, Array]:
    """Random magnitudes, with the structure of real tables: parts on the GPU vanish at level 0, on the CPU at level 1."""
    units = rng.choice([1, 2, 3, 5, 9, 33], m)
    on_gpu = np.floor(units[:, None] * LEVELS + 0.5).astype(np.int64)
    share = on_gpu / units[:, None]
    residency = _residency(rng, units, on_gpu, share, longest)
    return {
        "num_units": units,
        "units_on_gpu": on_gpu,
        **residency,
        **_decode(rng, share, g),
        **_prefill(rng, share, g),
        **_loading(rng, residency["file_bytes"], g, h, m, longest * residency["kv_gpu_bytes"].max()),
        **_capacities(rng, residency, g, h, longest),
    }


def _residency(rng: Rng, units: Array, on_gpu: Array, share: Array, longest: int) -> dict[str, Array]:
    unit_bytes = _log_uniform(rng, 3e6, 3e8, len(units)).astype(np.int64)
    total = units * unit_bytes
    encoder = np.where(rng.random(len(units)) < 0.5, total // 7, 0)
    kv = 1 + (total / longest * _log_uniform(rng, 0.003, 0.5, len(units))).astype(np.int64)
    kv_gpu = np.round(kv[:, None] * share).astype(np.int64)
    return {
        "gpu_weight_bytes": on_gpu * unit_bytes[:, None] + encoder[:, None],
        "cpu_weight_bytes": (units[:, None] - on_gpu) * unit_bytes[:, None],
        "file_bytes": total + encoder + rng.integers(0, 2, len(units)) * unit_bytes // 3,
        "buffer_bytes": rng.integers(0, 1 + total // 10),
        "kv_gpu_bytes": kv_gpu,
        "kv_cpu_bytes": kv[:, None] - kv_gpu,
    }


def _decode(rng: Rng, share: Array, g: int) -> dict[str, Array]:
    m, k = share.shape
    on_gpu = np.broadcast_to(share[:, None], (m, g, k))
    head = on_gpu == 1
    growth = rng.uniform(0, 0.2, (2, m, g, LIMITS.batch))
    growth[..., 0] = 0
    batch_gpu, batch_cpu = 1 + np.cumsum(growth, axis=-1)
    knots = np.cumsum(_log_uniform(rng, 1, 100, m, g, KNOTS), axis=-1)
    knots[..., 0] = 0
    knots[np.arange(KNOTS) >= rng.integers(1, KNOTS + 1, (m, g, 1))] = np.inf
    return {
        "iter_const": _log_uniform(rng, 1e-4, 5e-3, m, g, k) * rng.integers(0, 2),
        "gpu_base": _log_uniform(rng, 1e-3, 3e-2, m, g, 1) * on_gpu,
        "gpu_head": _log_uniform(rng, 1e-4, 3e-3, m, g, 1) * head,
        "gpu_kv": _log_uniform(rng, 1e-8, 1e-4, m, g, 1) * on_gpu,
        "cpu_base": _log_uniform(rng, 5e-3, 1e-1, m, g, 1) * (1 - on_gpu),
        "cpu_head": _log_uniform(rng, 1e-4, 1e-2, m, g, 1) * ~head,
        "cpu_kv": _log_uniform(rng, 1e-7, 3e-4, m, g, 1) * (1 - on_gpu),
        "batch_gpu": batch_gpu,
        "batch_cpu": batch_cpu,
        "depth_knot": knots,
        "depth_gpu": rng.uniform(0.0, 3.0, (m, g, KNOTS)),
        "depth_cpu": rng.uniform(0.0, 3.0, (m, g, KNOTS)),
    }


def _prefill(rng: Rng, share: Array, g: int) -> dict[str, Array]:
    m, k = share.shape
    on_gpu = np.broadcast_to(share[:, None], (m, g, k))
    token = _log_uniform(rng, 1e-6, 1e-3, m, g, 1)
    return {
        "prefill_gpu": token * on_gpu,
        "prefill_gpu_stream": token * rng.uniform(0.5, 2, k),
        "prefill_cpu": token * (1 - on_gpu) * _log_uniform(rng, 1, 20, m, g, 1),
        "stream_s": _log_uniform(rng, 1e-3, 1e-1, m, g, k),
        "gpu_attn": _log_uniform(rng, 1e-9, 1e-6, m, g, 1) * on_gpu,
        "cpu_attn": _log_uniform(rng, 1e-9, 1e-6, m, g, 1) * (1 - on_gpu),
        "encode_s": _log_uniform(rng, 1e-5, 1e-3, m, g) * rng.integers(0, 2, (m, 1)),
        "stream_min_tokens": rng.choice([1, 8, 32, 1 << 40], g),
    }


def _loading(rng: Rng, file_bytes: Array, g: int, h: int, m: int, kv: float) -> dict[str, Array]:
    """Caps are often far below the rate, or above it, so that transfers do or do not share."""
    biggest = float(file_bytes.max())
    disk = biggest / _log_uniform(rng, 0.05, 2, h)
    link_in, link_out = (biggest / _log_uniform(rng, 0.02, 1, g) for _ in range(2))
    kv_rate = max(kv, 1.0) / _log_uniform(rng, 0.01, 1, 2, g)
    return {
        "init_s": _log_uniform(rng, 1e-3, 5e-1, m, g),
        "unload_s": _log_uniform(rng, 1e-4, 1e-1, m, g, len(LEVELS)),
        "save_s": _log_uniform(rng, 1e-4, 1e-2, g),
        "disk_cap": disk.max() * rng.uniform(0.2, 1.5, (m, g)),
        "link_in_cap": link_in[None] * rng.uniform(0.2, 1.5, (m, g)),
        "kv_in_cap": np.minimum(kv_rate[0], link_in * 1.2),
        "kv_out_cap": np.minimum(kv_rate[1], link_out * 1.2),
        "disk_rate": disk,
        "link_in_rate": link_in,
        "link_out_rate": link_out,
    }


def _capacities(rng: Rng, residency: dict[str, Array], g: int, h: int, longest: int) -> dict[str, Array]:
    """From barely enough for one model to plenty; swap is a share of the host's RAM."""
    one = residency["file_bytes"] + residency["buffer_bytes"]
    one = one + longest * (residency["kv_gpu_bytes"] + residency["kv_cpu_bytes"]).max(axis=1)
    return {
        "gpu_bytes": (one.max() * _log_uniform(rng, 0.4, 4, g)).astype(np.int64),
        "host_bytes": (one.sum() * _log_uniform(rng, 0.3, 3, h)).astype(np.int64),
    }


GRID_S = 2.0**-8
NO_TIME = ("gpu_kv", "cpu_kv", "gpu_attn", "cpu_attn")
PER_TOKEN = ("prefill_gpu", "prefill_gpu_stream", "prefill_cpu", "encode_s")
FIXED = ("iter_const", "gpu_base", "gpu_head", "cpu_base", "cpu_head", "stream_s", "init_s", "unload_s", "save_s")
RATES = ("disk_cap", "link_in_cap", "kv_in_cap", "kv_out_cap", "disk_rate", "link_in_rate", "link_out_rate")
WEIGHTS = ("gpu_weight_bytes", "cpu_weight_bytes", "file_bytes", "buffer_bytes", "gpu_bytes", "host_bytes")


def trace_on_grid(trace: dict[str, Array]) -> dict[str, Array]:
    return trace | {"arrival_s": np.round(trace["arrival_s"] / GRID_S) * GRID_S}


def tables_on_grid(t: dict[str, Array]) -> dict[str, Array]:
    """Times and sizes in powers of two, so that unrelated events often fall on one instant (R2)."""
    return (
        t
        | {name: np.zeros_like(t[name]) for name in NO_TIME}
        | {name: np.ceil(t[name] / GRID_S) * GRID_S for name in FIXED}
        | {name: np.ceil(t[name] / GRID_S * 16) * GRID_S / 16 for name in PER_TOKEN}
        | {name: np.round(t[name]) for name in ("batch_gpu", "batch_cpu")}
        | {name: 2.0 ** np.round(np.log2(t[name])) for name in RATES}
        | {name: -(-t[name] >> 20) << 20 for name in WEIGHTS}
        | {name: -(-t[name] >> 8) << 8 for name in ("kv_gpu_bytes", "kv_cpu_bytes")}
    )


def _log_uniform(rng: Rng, low: float, high: float, *shape: int) -> Any:
    return np.exp(rng.uniform(np.log(low), np.log(high), shape))
