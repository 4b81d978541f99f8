"""Profiles: YAML files under data/profiles, loaded into frozen dataclasses that keep where each number came from.

GPU and host profiles are written by the fit script; model profiles hold published shapes. Nothing here knows a formula.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import numpy as np

from mmsched_env.config import build
from mmsched_env.errors import ConfigError, unknown_name

from .number import PROVENANCES, Curve, Number, check_keys, check_origin, drawn, number_or_curve
from .shapes import RECIPES, Architecture, Vision

PROFILES = Path(__file__).parent.parent / "data" / "profiles"

Profile = TypeVar("Profile", "GpuProfile", "HostProfile")


@dataclass(frozen=True)
class FitError:
    """Relative error on time over `rows` measurements: medians of absolute values, and the worst one left out."""

    rows: int
    in_sample: float
    leave_out: float
    worst: float
    left_out: str
    """what one left-out group is"""


@dataclass(frozen=True)
class GpuProfile:
    """Effective rates of one GPU with the engine that was measured (llama.cpp)."""

    name: str
    capacity: Annotated[Number, "B"]
    reserve: Annotated[Number, "B"]
    read: Annotated[dict[str, Number], "B/s"]
    """weights read in decode, by quantisation"""
    kv_read: Annotated[Number, "B/s"]
    layer_s: Annotated[Number, "s"]
    """launch overhead of one resident layer in one iteration"""
    layer_eager_s: Annotated[Number, "s"]
    """the same in engines that launch each kernel anew (llama.cpp before June 2024): to judge old measurements"""
    linear_launch: Annotated[Number, "relative"]
    """launch overhead of a layer with linear attention, over that of a plain one"""
    expert_launch: Annotated[Number, "relative"]
    """what choosing and gathering experts adds to a layer's launch overhead, over that of a plain one"""
    hybrid_s: Annotated[Number, "s"]
    """constant of an iteration with layers on both sides"""
    expert_entry_s: Annotated[Number, "s"]
    """constant of a layer whose experts alone are on the CPU"""
    cpu_only_s: Annotated[Number, "s"]
    """constant of an iteration with no layer on the GPU"""
    batch: Annotated[Curve, "relative"]
    expert_reach: Annotated[Number, "relative"]
    """how many experts a batch may reach: of `count`, `active` for each token, active (count / active)^this; 1: all"""
    compute: Annotated[dict[str, Number], "FLOP/s"]
    """prefill arithmetic, by quantisation"""
    expert_compute: Annotated[Number, "relative"]
    """prefill arithmetic of a mixture of experts, over that of a dense model"""
    width_exponent: Annotated[Number, "relative"]
    """how the prefill rate grows with the model's width: power of hidden / 4096 (wide matrices use a GPU better)"""
    attention: Annotated[Number, "FLOP/s"]
    attention_eager: Annotated[Number, "FLOP/s"]
    """the same without flash attention: to judge old measurements"""
    stream: Annotated[Number, "B/s"]
    """weights of CPU layers streamed to the GPU in prefill"""
    stream_min_tokens: Annotated[Number, "tokens"]
    link_in: Annotated[Number, "B/s"]
    link_out: Annotated[Number, "B/s"]
    restore: Annotated[Number, "B/s"]
    save: Annotated[Number, "B/s"]
    copy_s: Annotated[Number, "s"]
    """fixed part of one KV save or restore"""
    start_s: Annotated[Number, "s"]
    vocab_s: Annotated[Number, "s"]
    """tokenizer set-up per vocabulary entry"""
    load: Annotated[Number, "B/s"]
    unload_s: Annotated[Number, "s"]
    unload: Annotated[Number, "B/s"]
    operation_share: Annotated[Number, "share"]
    """busy instances that a load, unload, save or restore counts for: 0 where copies run beside kernels, 1 where the
    device's own processor does them (a CPU)"""
    errors: Mapping[str, FitError] = field(default_factory=dict)


@dataclass(frozen=True)
class HostProfile:
    """Effective rates of one host: its CPU, memory and disk."""

    name: str
    ram: Annotated[Number, "B"]
    read: Annotated[Number, "B/s"]
    """weights of CPU layers read in decode"""
    linear_layer_s: Annotated[Number, "s"]
    """what a layer with linear attention costs on the CPU besides its weights"""
    kv_read: Annotated[Number, "B/s"]
    compute: Annotated[Number, "FLOP/s"]
    batch: Annotated[Curve, "relative"]
    disk: Annotated[Number, "B/s"]
    """all loads of the host together"""
    disk_load: Annotated[Number, "B/s"]
    """one load"""
    interference: Annotated[Number, "share"]
    """how much longer iterations take for each further GPU of the host that iterates"""
    errors: Mapping[str, FitError] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelProfile:
    """One model in one quantisation. Bytes are computed from the shape."""

    name: str
    quant: str
    architecture: Architecture
    vision: Vision | None
    published_params: int
    provenance: str
    source: str

    @property
    def params(self) -> int:
        encoder = self.vision.params(self.architecture.hidden) if self.vision else 0
        return self.architecture.params + encoder

    @property
    def layer_bytes(self) -> float:
        """Bytes of one layer, experts apart."""
        return self.architecture.layer_bytes(self.quant)

    @property
    def expert_bytes(self) -> float:
        """Bytes of one expert of one layer."""
        return self.architecture.expert_bytes(self.quant)

    @property
    def head_bytes(self) -> float:
        return self.architecture.head_bytes(self.quant)

    @property
    def encoder_bytes(self) -> int:
        """The image encoder: F16 whatever the model's quantisation, always on the GPU (llama.cpp's default)."""
        return 2 * self.vision.params(self.architecture.hidden) if self.vision else 0

    @property
    def file_bytes(self) -> int:
        arch = self.architecture
        text = arch.layers * self.layer_bytes + self.head_bytes + arch.embedding_bytes(self.quant)
        return round(text + arch.layers * arch.num_experts * self.expert_bytes) + self.encoder_bytes


def load_gpu(name: str, root: Path = PROFILES) -> GpuProfile:
    """GPU profile `name`. Raises ConfigError for an unknown name or a bad file."""
    return _load(GpuProfile, "gpu", name, root)


def load_host(name: str, root: Path = PROFILES) -> HostProfile:
    """Host profile `name`. Raises ConfigError for an unknown name or a bad file."""
    return _load(HostProfile, "host", name, root)


def draw(profile: Profile, rng: np.random.Generator) -> Profile:
    """The profile with every figure off by a draw of its own, in the order of the dataclass: one normal number each,
    whether the figure states an error or not."""
    values: dict[str, Any] = {}
    for key in _spec(type(profile)):
        value = getattr(profile, key)
        if isinstance(value, dict):
            values[key] = {name: drawn(number, rng.standard_normal()) for name, number in value.items()}
        else:
            values[key] = drawn(value, rng.standard_normal())
    return dataclasses.replace(profile, **values)


def load_model(name: str, root: Path = PROFILES) -> ModelProfile:
    """Model profile ``<architecture>-<quantisation>``. Raises ConfigError for an unknown name or a bad file."""
    arch = _architecture_of(name, root)
    path = _path("model", arch, root)
    data = _read(path)
    where = f"{path.name}"
    quant = name[len(arch) + 1 :]
    known = {"name", "provenance", "source", "published_params", "architecture", "vision", "quantisations"}
    check_keys(data, known - {"vision"}, known, where)
    check_origin(data, where)
    vision = build(Vision, data["vision"], f"{where}: vision") if "vision" in data else None
    shape = build(Architecture, data["architecture"], f"{where}: architecture")
    return ModelProfile(name, quant, shape, vision, int(data["published_params"]), data["provenance"], data["source"])


def catalogue(root: Path = PROFILES) -> dict[str, list[str]]:
    """Names that `load_gpu`, `load_host` and `load_model` accept, by kind."""
    models = [f"{arch}-{quant}" for arch in _stems("model", root) for quant in _quantisations(arch, root)]
    return {"gpu": _stems("gpu", root), "host": _stems("host", root), "model": models}


def catalogue_rows(root: Path = PROFILES) -> list[dict[str, Any]]:
    """One row per profile: kind, name, memory_bytes, numbers by provenance, stated error (median, left out)."""
    rows: list[dict[str, Any]] = []
    names = catalogue(root)
    for name in names["gpu"]:
        gpu = load_gpu(name, root)
        rows.append(_row("gpu", name, gpu.capacity.value, _provenances(gpu), gpu.errors))
    for name in names["host"]:
        host = load_host(name, root)
        rows.append(_row("host", name, host.ram.value, _provenances(host), host.errors))
    for name in names["model"]:
        model = load_model(name, root)
        count = Counter({model.provenance: sum(value is not None for value in vars(model.architecture).values())})
        rows.append(_row("model", name, model.file_bytes, count, {}))
    return rows


def profile_hash(gpus: Iterable[str], hosts: Iterable[str], models: Iterable[str], root: Path = PROFILES) -> str:
    """sha256 over the bytes of the profiles used, order and repeats not counting; models add their quantisation."""
    paths = {_path("gpu", n, root) for n in gpus} | {_path("host", n, root) for n in hosts}
    models = sorted(set(models))
    paths |= {_path("model", _architecture_of(n, root), root) for n in models}
    digest = hashlib.sha256("\n".join(models).encode())
    for path in sorted(paths):
        digest.update(f"\n{path.parent.name}/{path.name}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _row(kind: str, name: str, memory: float, count: Counter[str], errors: Mapping[str, FitError]) -> dict[str, Any]:
    stated = {key: error.leave_out for key, error in errors.items()}
    provenance = {p: count[p] for p in PROVENANCES if count[p]}
    return {"kind": kind, "name": name, "memory_bytes": int(memory), "provenance": provenance, "error": stated}


def _provenances(profile: GpuProfile | HostProfile) -> Counter[str]:
    values = [getattr(profile, f.name) for f in dataclasses.fields(profile) if f.name not in ("name", "errors")]
    flat = [n for v in values for n in (v.values() if isinstance(v, dict) else [v])]
    return Counter(n.provenance for n in flat)


# -- names and files ---------------------------------------------------------------------------------------------------


def _folder(kind: str, root: Path) -> Path:
    return root / f"{kind}s"


def _stems(kind: str, root: Path) -> list[str]:
    return sorted(p.stem for p in _folder(kind, root).glob("*.yaml"))


def _path(kind: str, name: str, root: Path) -> Path:
    return _folder(kind, root) / f"{full_name(kind, name, _stems(kind, root))}.yaml"


def full_name(kind: str, name: str, known: list[str]) -> str:
    """The profile a name stands for: its own, or a short one without dashes and memory (rtx4090: rtx-4090-24gb).

    Raises
    ------
    ConfigError
        A name that stands for none, or for several (a100pcie: there are two, with 40 and 80 GB).
    """
    if name in known:
        return name
    meant = [stem for stem in known if _plain(name) in (_plain(stem), _plain(re.sub(r"-\d+gb$", "", stem)))]
    if len(meant) > 1:
        raise ConfigError(f"{kind} profile '{name}' is one of several; accepted: {', '.join(meant)}")
    if not meant:
        raise unknown_name(f"{kind} profile", name, known)
    return meant[0]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _architecture_of(name: str, root: Path) -> str:
    for arch in _stems("model", root):
        if name.startswith(f"{arch}-") and name[len(arch) + 1 :] in _quantisations(arch, root):
            return arch
    raise unknown_name("model profile", name, catalogue(root)["model"])


def _quantisations(arch: str, root: Path) -> list[str]:
    path = _path("model", arch, root)
    quants = _read(path).get("quantisations")
    if not isinstance(quants, list) or any(q not in RECIPES for q in quants):
        raise ConfigError(f"{path.name}: quantisations is {quants!r}; accepted: a list of {', '.join(RECIPES)}")
    return quants


def _read(path: Path) -> dict[str, Any]:
    return _parse(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=256)
def _parse(path: Path, _changed_ns: int) -> dict[str, Any]:
    import yaml  # late: importing the package needs gymnasium, numpy and numba alone

    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path.name}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path.name}: accepted: a mapping of keys to values")
    if data.get("name") != path.stem:
        raise ConfigError(f"{path.name}: name is {data.get('name')!r}; accepted: {path.stem}")
    return data


def _load(cls: type[Profile], kind: str, name: str, root: Path) -> Profile:
    path = _path(kind, name, root)
    name = path.stem
    data = _read(path)
    keys = {"kind", "name", "numbers", "errors"}
    check_keys(data, keys, keys, path.name)
    numbers = data["numbers"]
    if not isinstance(numbers, dict) or not isinstance(data["errors"], dict):
        raise ConfigError(f"{path.name}: numbers or errors is no mapping; accepted: keys to values")
    spec = _spec(cls)
    check_keys(numbers, set(spec), set(spec), f"{path.name}: numbers")
    values: dict[str, Any] = {
        key: number_or_curve(kind, unit, numbers[key], f"{path.name}: {key}") for key, (kind, unit) in spec.items()
    }
    errors = {k: build(FitError, v, f"{path.name}: errors.{k}") for k, v in data["errors"].items()}
    return cls(name=name, errors=errors, **values)


def _spec(cls: type[Any]) -> dict[str, tuple[Any, str]]:
    """Type and unit of every figure of a profile class."""
    hints = get_type_hints(cls, include_extras=True)
    return {key: (get_args(h)[0], get_args(h)[1]) for key, h in hints.items() if hasattr(h, "__metadata__")}
