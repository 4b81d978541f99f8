"""What a policy sees: one field table, from which the space, the encoder's buffers and the doc page come.

Every block is an array of records with named float32 fields in plain units (seconds, tokens, GB); learners squash
them (`agents/extractors.py`), rules read them by name. Nothing here is more than a real scheduler could know: true
output lengths and future arrivals do not appear.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from .sim.jit import records
from .sim.state import Dims

# block -> (shape letters, meaning of a row, fields (name, letters, unit, meaning))
TABLE: dict[str, tuple[str, str, tuple[tuple[str, str, str, str], ...]]] = {
    "queue": (
        "Q",
        "a waiting request, the oldest first",
        (
            ("present", "", "0/1", "the slot holds a request"),
            ("ready", "", "0/1", "0 while its KV cache is still being saved"),
            ("model", "", "index", "model asked for"),
            ("age_s", "", "s", "since arrival"),
            ("prompt_tokens", "", "tokens", "text of the prompt"),
            ("image_tokens", "", "tokens", "images of the prompt"),
            ("max_tokens", "", "tokens", "output limit, what memory is reserved for"),
            ("predicted_tokens", "", "tokens", "predicted output length"),
            ("generated_tokens", "", "tokens", "already produced, if it was preempted"),
            ("saved_tokens", "", "tokens", "context whose KV is kept in host RAM"),
            ("weight", "", "", "class weight"),
            ("slo_class", "", "index", "request class"),
            ("ttft_slack_s", "", "s", "time left to the TTFT target, 0 once the first token is out"),
            ("e2e_slack_s", "", "s", "time left to the E2E target, which may rest on the predicted length"),
            ("unloaded_s", "", "s", "E2E if predicted right, alone on the best GPU with the model loaded"),
            ("num_preemptions", "", "count", "times taken off an instance"),
        ),
    ),
    "instances": (
        "I",
        "an instance slot, GPU by GPU",
        (
            ("present", "", "0/1", "a model is there (or on its way in or out)"),
            ("model", "", "index", "its model"),
            ("level", "", "index", "its offload level"),
            ("gpu_share", "", "0..1", "share of its layers + head on the GPU"),
            ("loading", "", "0/1", "being loaded"),
            ("ready", "", "0/1", "serving or idle"),
            ("leaving", "", "0/1", "being unloaded"),
            ("resizing", "", "0/1", "changing its level"),
            ("draining", "", "0/1", "an action waits for the end of its iteration"),
            ("saving", "", "0/1", "KV of a preempted request is being saved"),
            (
                "operation_left_s",
                "",
                "s",
                "until load, unload, save or resize ends, with disk, links and GPU to itself",
            ),
            ("num_seated", "", "count", "requests on it"),
            ("num_running", "", "count", "of them in prefill or decoding"),
            ("free_seats", "", "count", "requests it can still take"),
            ("weight_seated", "", "", "sum of their class weights"),
            ("step_s", "", "s", "its present decode iteration, unshared"),
            ("next_finish_s", "", "s", "until its first request ends, as predicted"),
            ("drain_s", "", "s", "until its last request ends, as predicted"),
            ("longest_left_tokens", "", "tokens", "largest predicted remaining length"),
            ("longest_weight", "", "", "class weight of that request"),
            ("gpu_gb", "", "GB", "GPU memory its weights and buffer hold"),
            ("kv_gb", "", "GB", "GPU memory its requests' KV caches hold"),
            ("idle_s", "", "s", "since its last dispatch or completion, 0 while it has requests"),
            ("uses", "", "count", "requests dispatched to it since it was loaded"),
            ("unload_s", "", "s", "to save its requests' KV and unload it"),
            ("reload_s", "", "s", "to load it again as it is, from host RAM"),
            ("level_gb", "K", "GB", "GPU memory it would hold at each level, KV caches included; 0: no such level"),
            ("level_step_s", "K", "s", "its present decode iteration at each level, unshared; 0: no such level"),
            ("resize_s", "K", "s", "to change it to each level; 0: no such level"),
        ),
    ),
    "gpus": (
        "G",
        "a GPU",
        (
            ("present", "", "0/1", "there is such a GPU"),
            ("total_gb", "", "GB", "usable memory"),
            ("free_gb", "", "GB", "free memory"),
            ("free_slots", "", "count", "instance slots"),
            ("num_busy", "", "count", "its instances that have requests"),
            ("host", "", "index", "host it sits in"),
            ("host_busy", "", "count", "instances of the host that have requests and layers on the CPU"),
            ("host_free_gb", "", "GB", "host RAM for weights and CPU-side KV"),
            ("swap_free_gb", "", "GB", "host RAM for saved KV"),
            ("link_gb_per_s", "", "GB/s", "host-to-device link"),
        ),
    ),
    "models": (
        "M",
        "a model",
        (
            ("present", "", "0/1", "there is such a model"),
            ("weights_gb", "", "GB", "all weights"),
            ("kv_gb_per_ktoken", "", "GB", "KV cache of 1000 tokens"),
            ("queued", "", "count", "waiting requests, those beyond the window too"),
            ("queued_weight", "", "", "their class weights"),
            ("num_instances", "", "count", "where it is loaded or being loaded"),
            ("arrivals_per_s", "", "1/s", "recent rate"),
        ),
    ),
    "pairs": (
        "Q,G",
        "a waiting request on a GPU, estimates for each offload level",
        (
            ("load_s", "K", "s", "until the model is there: 0 if ready, rest of a load, or unload-free load time"),
            ("prefill_s", "K", "s", "prefill (or KV restore), alone"),
            ("token_s", "K", "s", "one decode iteration beside those already there"),
            ("gpu_need_gb", "K", "GB", "GPU memory to join there, or to load the model and serve the request"),
            (
                "fits",
                "K",
                "0/1",
                "would fit with nothing else on the GPU; 0 too for a level that is no level of its own",
            ),
        ),
    ),
    "globals": (
        "1",
        "the whole system",
        (
            ("time_s", "", "s", "clock"),
            ("num_in_system", "", "count", "arrived, unfinished requests"),
            ("queue_length", "", "count", "waiting requests"),
            ("beyond_window", "", "count", "waiting requests the queue block has no room for"),
            ("weight_in_system", "", "", "sum of class weights"),
            ("arrivals_per_s", "", "1/s", "recent rate, all models"),
        ),
    ),
}
BLOCKS = tuple(TABLE)
MASK_KEY = "action_mask"


def block_dtype(block: str, dims: Dims) -> np.dtype[np.void]:
    """Record type of one row of a block: float32 fields without padding."""
    sizes = dims.sizes()
    return np.dtype([(name, "f4", tuple(sizes[c] for c in letters)) for name, letters, _, _ in TABLE[block][2]])


def block_shape(block: str, dims: Dims) -> tuple[int, ...]:
    sizes = dims.sizes() | {"1": 1}
    return tuple(sizes[letter] for letter in TABLE[block][0].split(","))


def block_width(block: str, dims: Dims) -> int:
    """Float32 values in one row."""
    return block_dtype(block, dims).itemsize // 4


def observation_dtype(dims: Dims) -> np.dtype[np.void]:
    """Record type of a whole observation: its blocks one after the other."""
    return np.dtype([(block, block_dtype(block, dims), block_shape(block, dims)) for block in BLOCKS])


def space(dims: Dims) -> gym.spaces.Dict:
    """The observation space: a Box per block, shaped (rows..., fields), and the int8 action mask."""
    spaces: dict[str, gym.Space[Any]] = {
        block: gym.spaces.Box(-np.inf, np.inf, (*block_shape(block, dims), block_width(block, dims)), np.float32)
        for block in BLOCKS
    }
    spaces[MASK_KEY] = gym.spaces.Box(0, 1, (dims.A,), np.int8)
    return gym.spaces.Dict(spaces)


def layout_signature(dims: Dims) -> dict[str, Any]:
    """What a checkpoint must agree with: field names and sizes."""
    fields = {block: [name for name, *_ in TABLE[block][2]] for block in BLOCKS}
    return {"fields": fields, "sizes": {letter: getattr(dims, letter) for letter in "QGHMSBK"}}


@dataclass(frozen=True)
class ObservationBuffer:
    """One contiguous float32 array [N, D], an int8 mask [N, A], and views of them by block."""

    dims: Dims
    flat: NDArray[np.float32]
    mask: NDArray[np.int8]
    arrays: dict[str, NDArray[np.float32]]
    """block -> [N, rows..., fields]"""
    records: Any
    """structured array [N], the same memory by block and field name"""

    @classmethod
    def allocate(cls, num_envs: int, dims: Dims) -> ObservationBuffer:
        dtype = observation_dtype(dims)
        flat = np.zeros((num_envs, dtype.itemsize // 4), np.float32)
        rows = records(flat.view(dtype)[:, 0])
        arrays: dict[str, NDArray[np.float32]] = {}
        for block in BLOCKS:
            shape = (*block_shape(block, dims), block_width(block, dims))
            begin = rows.dtype.fields[block][1] // 4
            arrays[block] = flat[:, begin : begin + math.prod(shape)].reshape(num_envs, *shape)
        return cls(dims, flat, np.zeros((num_envs, dims.A), np.int8), arrays, rows)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles have views of their own memory, not copies of the views."""
        return _restored, (self.dims, self.flat, self.mask)

    def observation(self) -> dict[str, NDArray[Any]]:
        """The batch's observation; views, not copies."""
        return {**self.arrays, MASK_KEY: self.mask}


def _restored(dims: Dims, flat: NDArray[np.float32], mask: NDArray[np.int8]) -> ObservationBuffer:
    buffer = ObservationBuffer.allocate(len(flat), dims)
    buffer.flat[:] = flat
    buffer.mask[:] = mask
    return buffer
