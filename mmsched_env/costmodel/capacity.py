"""How many requests per second a cluster can serve at most: the yardstick of offered load. It depends on no policy.

The fluid limit without switching: models change places at once and for nothing, queues never run dry, and requests are
divided over GPUs, offload levels and batch sizes as is best, in any proportion (a linear programme). What remains are
the resources of docs/dynamics.md (R16, R19): each GPU's seconds, each host CPU's seconds, the instance slots, the seats,
and for each level and batch size the memory for its KV cache. Loads, unloads, KV copies and waiting cost nothing here,
so no policy can serve more in the long run, and with more models than memory every policy serves less.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsched_env.errors import ConfigError

from .tables import CostTables

NUM_BINS = 4
"""sizes into which a model's requests are divided: long ones may fit at other levels than short ones"""

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Engine:
    """What besides the cost tables bounds the work done at once."""

    batch: int = 16
    """seats of an instance"""
    slots: int = 3
    """instances of a GPU"""
    ubatch_tokens: int = 512
    mixed: bool = True
    """a prompt chunk carries a token of each decoding request (prefill_mode mixed)"""
    kv_swap_fraction: float = 0.25


@dataclass(frozen=True)
class _Work:
    """Seconds of GPU, CPU and constants, each [classes or models, G, K, batch sizes], with columns in this order."""

    gpu: FloatArray
    cpu: FloatArray
    constant: FloatArray


def capacity(tables: CostTables, mix: Mapping[str, NDArray[Any]], engine: Engine) -> float:
    """Largest rate, in requests per second over all models, at which the cluster can serve requests like those in `mix`.

    Parameters
    ----------
    mix : columns of a trace
        ``model``, ``prompt_tokens``, ``image_tokens``, ``max_tokens``, ``output_tokens``, [N] each.

    Raises
    ------
    ConfigError
        Requests that fit on no GPU at any level, or SciPy is not installed.
    """
    try:
        from scipy.optimize import linprog
        from scipy.sparse import coo_array
    except ModuleNotFoundError:
        raise ConfigError("workload.rho needs SciPy; run: pip install 'mmsched-env[cli]'") from None
    batches = np.unique([b for b in (1, 2, 4, 8, 16, 32, 64, 128) if b < engine.batch] + [engine.batch])
    classes = _classes(mix)
    model = np.array([int(mix["model"][rows[0]]) for rows in classes])
    share = np.array([len(rows) for rows in classes]) / len(mix["model"])
    serve, chunks, tokens, fits = _serve(tables, mix, classes, model, batches, engine)
    if not fits.any(axis=(1, 2, 3)).all():
        worst = int(np.argmin(fits.any(axis=(1, 2, 3))))
        raise ConfigError(
            f"workload.rho: requests of model {model[worst]} of the mix fit on no GPU at any level; accepted: shorter "
            "prompts or max_tokens, or more memory"
        )
    step = _steps(tables, batches)
    _, types, kind = np.unique(_gpu_keys(tables), return_index=True, return_inverse=True)
    amount = np.bincount(kind)  # GPUs of each type; types[t] is the first of them

    # Columns: r[class, GPU type, level, batch] requests/s, d[model, type, level, batch] decode steps/s, lambda.
    r_at = np.argwhere(fits[:, types])
    d_at = np.unique(np.column_stack([model[r_at[:, 0]], r_at[:, 1:]]), axis=0)
    place = {tuple(at): i for i, at in enumerate(d_at.tolist())}
    pool = np.array([place[(int(model[c]), int(g), int(k), int(b))] for c, g, k, b in r_at])
    num_r, num_d, num_types = len(r_at), len(d_at), len(types)
    r_pick = (r_at[:, 0], types[r_at[:, 1]], r_at[:, 2], r_at[:, 3])
    d_pick = (d_at[:, 0], types[d_at[:, 1]], d_at[:, 2], d_at[:, 3])
    host = tables.gpu_host[types]
    hosts = np.unique(host)
    r_columns, d_columns = np.arange(num_r), num_r + np.arange(num_d)
    entries: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = []

    def add(rows: NDArray[Any], columns: NDArray[Any], values: NDArray[Any]) -> None:
        entries.append((rows, columns, values))

    for at, columns, work, pick in ((r_at, r_columns, serve, r_pick), (d_at, d_columns, step, d_pick)):
        gpu, cpu, constant = work.gpu[pick], work.cpu[pick], work.constant[pick]
        add(at[:, 1], columns, gpu)  # seconds of the GPUs of a type
        add(num_types + at[:, 1], columns, gpu + cpu + constant)  # seconds of their instances
        add(2 * num_types + np.searchsorted(hosts, host[at[:, 1]]), columns, cpu)  # seconds of a host's CPU
    first_pool = 2 * num_types + len(hosts)
    free = (batches[r_at[:, 3]] - 1) * chunks[r_at[:, 0]] if engine.mixed else np.zeros(num_r)
    add(first_pool + pool, r_columns, tokens[r_at[:, 0]] - free)  # tokens that steps must give, less those of chunks
    add(first_pool + np.arange(num_d), d_columns, -batches[d_at[:, 3]].astype(np.float64))
    limit = np.concatenate([amount, engine.slots * amount, np.ones(len(hosts)), np.zeros(num_d)])
    rows, columns, values = (np.concatenate(part) for part in zip(*entries, strict=True))
    size = num_r + num_d + 1
    upper = coo_array((values, (rows, columns)), shape=(len(limit), size)).tocsr()
    served = coo_array(
        (
            np.concatenate([np.ones(num_r), -share]),
            (
                np.concatenate([r_at[:, 0], np.arange(len(share))]),
                np.concatenate([r_columns, np.full(len(share), size - 1)]),
            ),
        ),
        shape=(len(share), size),
    ).tocsr()
    objective = np.zeros(size)
    objective[-1] = -1.0
    solve: Any = linprog
    result = solve(objective, upper, limit, served, np.zeros(len(share)), method="highs")
    if not result.success:
        raise RuntimeError(f"capacity: {result.message}")
    return float(result.x[-1])


def _classes(mix: Mapping[str, NDArray[Any]]) -> list[NDArray[np.int64]]:
    """Rows of each class: a model's requests by reserved tokens, in `NUM_BINS` parts of equal number."""
    reserved = _reserved(mix)
    out = []
    for m in np.unique(mix["model"]):
        rows = np.flatnonzero(mix["model"] == m)
        rows = rows[np.argsort(reserved[rows], kind="stable")]
        out += [part for part in np.array_split(rows, NUM_BINS) if len(part)]
    return out


def _reserved(mix: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
    columns = ("prompt_tokens", "image_tokens", "max_tokens")
    total: NDArray[np.int64] = np.sum([np.asarray(mix[name], np.int64) for name in columns], axis=0)
    return total


def _serve(
    tables: CostTables,
    mix: Mapping[str, NDArray[Any]],
    classes: list[NDArray[np.int64]],
    model: NDArray[np.int64],
    batches: NDArray[np.int64],
    engine: Engine,
) -> tuple[_Work, FloatArray, FloatArray, NDArray[np.bool_]]:
    """Of the mean request of each class: its work without decode steps [C, G, K, B], chunks [C], tokens that decode
    steps must give [C], and where it fits."""
    context = np.asarray(mix["prompt_tokens"], np.float64) + mix["image_tokens"]
    steps = np.maximum(np.asarray(mix["output_tokens"], np.float64) - 1, 0)
    middle = context + (steps + 1) / 2
    reserved = _reserved(mix)
    parts: dict[str, list[FloatArray]] = {"gpu": [], "cpu": [], "constant": []}
    for m, rows in zip(model, classes, strict=True):
        gpu, cpu, constant = _prefill(tables, int(m), context[rows], engine.ubatch_tokens)
        gpu = gpu + np.asarray(mix["image_tokens"], np.float64)[rows].mean() * tables.encode_s[m][:, None]
        for g in range(gpu.shape[0]):
            deep = [
                (steps[rows] * _depth(middle[rows], tables.depth_knot[m, g], slopes[m, g])).mean()
                for slopes in (tables.depth_gpu, tables.depth_cpu)
            ]
            gpu[g] += tables.gpu_kv[m, g] * deep[0]
            cpu[g] += tables.cpu_kv[m, g] * deep[1]
        for name, value in (("gpu", gpu), ("cpu", cpu), ("constant", constant)):
            parts[name].append(np.repeat(value[..., None], len(batches), axis=-1))
    work = _Work(*(np.array(parts[name]) for name in ("gpu", "cpu", "constant")))
    chunks = np.array([np.ceil(context[rows] / engine.ubatch_tokens).mean() for rows in classes])
    tokens = np.array([steps[rows].mean() for rows in classes])
    mean_reserved = np.array([reserved[rows].mean() for rows in classes])
    return work, chunks, tokens, _fits(tables, model, mean_reserved[:, None] * batches, engine.kv_swap_fraction)


def _fits(
    tables: CostTables, model: NDArray[np.int64], kv_tokens: FloatArray, kv_swap_fraction: float
) -> NDArray[np.bool_]:
    """bool [C, G, K, B]: weights, buffer and `kv_tokens` [C, B] of KV cache fit; levels of the same units once."""
    kv = kv_tokens[:, None, :]
    gpu_need = (tables.gpu_weight_bytes + tables.buffer_bytes[:, None])[model][..., None] + kv * tables.kv_gpu_bytes[
        model
    ][..., None]
    host_need = tables.cpu_weight_bytes[model][..., None] + kv * tables.kv_cpu_bytes[model][..., None]
    host_room = (1 - kv_swap_fraction) * tables.host_bytes[tables.gpu_host]
    fits = (gpu_need[:, None] <= tables.gpu_bytes[:, None, None]) & (host_need[:, None] <= host_room[:, None, None])
    own = np.diff(tables.units_on_gpu, axis=1, prepend=-1) > 0
    out: NDArray[np.bool_] = fits & own[model][:, None, :, None]
    return out


def _prefill(tables: CostTables, m: int, context: FloatArray, ubatch: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """GPU, CPU and constant seconds [G, K] of a mean prefill, as in latency.py but apart."""
    whole, rest = np.floor_divide(context, ubatch), np.mod(context, ubatch)
    at_least = tables.stream_min_tokens[:, None]
    last = (rest > 0).astype(np.float64)
    chunks = (whole + last).mean()
    streamed = (whole * (ubatch >= at_least) + last * (rest >= at_least)).mean(axis=1)[:, None]
    tokens = (whole * ubatch * (ubatch >= at_least) + rest * (rest >= at_least)).mean(axis=1)[:, None]
    other, pairs = context.mean() - tokens, (context**2).mean() / 2
    gpu = (
        chunks * (tables.gpu_base[m] + tables.gpu_head[m])
        + tokens * tables.prefill_gpu_stream[m]
        + other * tables.prefill_gpu[m]
        + pairs * tables.gpu_attn[m]
    )
    cpu = (
        chunks * tables.cpu_head[m]
        + (chunks - streamed) * tables.cpu_base[m]
        + other * tables.prefill_cpu[m]
        + pairs * tables.cpu_attn[m]
    )
    return gpu, cpu, chunks * tables.iter_const[m] + streamed * tables.stream_s[m]


def _depth(context: FloatArray, knots: FloatArray, slopes: FloatArray) -> FloatArray:
    """F of docs/dynamics.md R16 at each context."""
    total, before = np.zeros_like(context), 0.0
    for knot, slope in zip(knots, slopes, strict=True):
        if np.isfinite(knot):
            total = total + (slope - before) * np.maximum(context - knot, 0)
            before = slope
    return total


def _steps(tables: CostTables, batches: NDArray[np.int64]) -> _Work:
    """Seconds of a decode step at each batch size, without its KV term: [M, G, K, B]."""
    grow_gpu = tables.batch_gpu[:, :, None, batches - 1]
    grow_cpu = tables.batch_cpu[:, :, None, batches - 1]
    gpu = tables.gpu_base[..., None] * grow_gpu + tables.gpu_head[..., None]
    cpu = tables.cpu_base[..., None] * grow_cpu + tables.cpu_head[..., None]
    return _Work(gpu, cpu, np.broadcast_to(tables.iter_const[..., None], gpu.shape))


def _gpu_keys(tables: CostTables) -> NDArray[np.str_]:
    """[G] equal for GPUs that are the same to the programme: same costs, same memory, same host."""
    timed = (tables.gpu_base, tables.prefill_gpu, tables.iter_const, tables.cpu_base, tables.encode_s)
    keys = [
        b"".join(np.ascontiguousarray(array[:, g]).tobytes() for array in timed).hex()
        + f"|{tables.gpu_bytes[g]}|{tables.gpu_host[g]}"
        for g in range(tables.gpu_bytes.size)
    ]
    return np.array(keys)
