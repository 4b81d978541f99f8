"""The decode law: its terms, its parameters and their priors. One fit over all GPUs, models, engines and machines."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .loglinear import Factors, Fit, Key, Line, Prior, Term, fit
from .names import Spec
from .work import Work

SHARP = 4.0
"""how abruptly the slower of two limits takes over: 1 adds their times, infinity takes the larger"""

BYTES_UNDER_WAY = 7.5
"""per cycle and multiprocessor: what a GPU keeps in flight. Without it cards with HBM would be predicted twice too fast
(H200 and B300, of 4.8 and 8 TB/s, decode no faster than an H100 of 3.4)"""

PRIORS: dict[str, Prior] = {
    # shared by all devices
    "memory share": Prior(math.log(0.85), 0.3),
    "quant": Prior(0.0, 0.2),
    "maker quant": Prior(0.0, 0.15),
    "launch": Prior(math.log(60e-6), 1.0),
    "linear layer": Prior(0.0, 0.5),
    "expert layer": Prior(math.log(0.5), 0.7),
    "kv share": Prior(math.log(0.5), 0.7),
    "hop": Prior(math.log(2e-4), 1.0),
    "hybrid": Prior(math.log(1e-3), 1.0),
    "cpu only": Prior(math.log(3e-4), 1.0),
    "cpu quant": Prior(0.0, 0.15),
    "cpu linear layer": Prior(math.log(5e-4), 1.0),
    "cpu kv share": Prior(math.log(0.33), 0.7),
    # of one device: how far it usually is from the above
    "host": Prior(math.log(40e9), 1.0),
    "own read": Prior(0.0, 0.1),
    "own quant": Prior(0.0, 0.05),
    "own kv": Prior(0.0, 0.4),
    "own launch": Prior(0.0, 0.2),
    "own hybrid": Prior(0.0, 0.7),
    "unnamed gpu": Prior(0.0, 1.5),
}
"""kind of parameter -> where the logarithm is without data, and how far it may go"""


def prior(key: Key) -> Prior:
    """Prior of a parameter; the rates are those of F16, so that this quantisation has none of its own."""
    assert isinstance(key, tuple)
    return Prior(0.0, 1e-3) if key[1:] == ("f16",) else PRIORS[key[0]]


def memory_rate(spec: Spec) -> float:
    """Bytes/s by the data sheet: of the memory, or of what the multiprocessors keep in flight, joined smoothly."""
    if spec.vendor != "nvidia" or spec.memory == "unified":
        return spec.gb_per_s * 1e9
    in_flight = BYTES_UNDER_WAY * spec.multiprocessors * spec.boost_ghz * 1e9
    return float(((spec.gb_per_s * 1e9) ** -SHARP + in_flight**-SHARP) ** (-1 / SHARP))


def maker(spec: Spec) -> str:
    """Which cards share a share of their data sheet's rate."""
    return spec.memory if spec.vendor == "nvidia" and spec.memory != "unified" else spec.vendor


def read_term(amount: float, gpu: str | None, quant: str, box: str, specs: dict[str, Spec]) -> Term:
    """Reading `amount` bytes of weights on a GPU."""
    if gpu is None:
        return Term(amount, ((("unnamed gpu", box), 1.0), (("quant", quant), 1.0)), -math.log(UNNAMED_RATE))
    return Term(
        amount,
        (
            (("memory share", maker(specs[gpu])), -1.0),
            (("quant", quant), 1.0),
            (("maker quant", maker(specs[gpu]), quant), 1.0),
            (("own read", gpu), 1.0),
            (("own quant", gpu, quant), 1.0),
        ),
        -math.log(memory_rate(specs[gpu])),
    )


UNNAMED_RATE = 200e9


def kv_term(amount: float, gpu: str | None, box: str, specs: dict[str, Spec]) -> Term:
    """Reading `amount` bytes of KV cache on a GPU."""
    rate = memory_rate(specs[gpu]) if gpu else UNNAMED_RATE
    return Term(amount, ((("kv share",), -1.0), (("own kv", gpu or box), 1.0)), -math.log(rate))


def launch_factors(gpu: str | None, box: str, eager: bool, specs: dict[str, Spec]) -> Factors:
    """Launching one layer: by engine on CUDA GPUs, by maker on others."""
    vendor = specs[gpu].vendor if gpu else "nvidia"
    kind = vendor if vendor != "nvidia" else ("eager" if eager else "graphs")
    return (("launch", kind), 1.0), (("own launch", gpu or box), 1.0)


def terms(item: Work, specs: dict[str, Spec]) -> tuple[Term, ...]:
    """Time of one decode step as a sum."""
    arch, here, there = item.model.architecture, item.here, item.there
    launch = launch_factors(item.gpu, item.box, item.eager, specs)
    expert = float(here.launched) if arch.experts else 0.0
    # Layers on the GPU whose cache is in host RAM: the CPU computes their attention, and each enters it.
    entering = here.attention if item.kv_in_ram else 0
    kv = arch.kv_layer_bytes * item.context
    # One thread computes: its quantisations differ. The machines of the sweeps ran one each.
    cpu_quant: Factors = ((("cpu quant", item.quant), 1.0),) if item.row.num_gpus == 0 else ()
    found = [
        read_term(here.read + here.head, item.gpu, item.quant, item.box, specs),
        kv_term((here.attention - entering) * kv, item.gpu, item.box, specs),
        Term(float(here.attention), launch),
        Term(float(here.linear), (*launch, (("linear layer",), 1.0))),
        Term(expert, (*launch, (("expert layer",), 1.0))),
        Term(there.read + there.head, ((("host", item.box), -1.0), *cpu_quant)),
        Term((there.attention + entering) * kv, ((("host", item.box), -1.0), (("cpu kv share",), -1.0))),
        Term(float(entering), ((("hybrid", "attention"), 1.0),)),
        Term(float(there.linear), ((("cpu linear layer",), 1.0), (("host", item.box), -1.0)), math.log(40e9)),
        Term(
            float(item.cpu_entries),
            ((("hybrid", "experts" if arch.experts else "layers"), 1.0), (("own hybrid", item.box), 1.0)),
        ),
        Term(float(item.all_cpu), ((("cpu only",), 1.0),)),
        Term(float(max(item.row.num_gpus - 1, 0)), ((("hop",), 1.0),)),
    ]
    return tuple(term for term in found if term.amount > 0)


def fit_decode(items: Sequence[Work], specs: dict[str, Spec], near: Fit | None = None) -> Fit:
    """All parameters from all items; `near`: a fit to start from."""
    return fit([Line(item.seconds, terms(item, specs)) for item in items], prior, near)
