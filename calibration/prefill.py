"""The prefill law of a model wholly on GPUs, and what layers on the CPU add to it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mmsched_env.costmodel.roofline import REFERENCE_WIDTH, UBATCH

from . import decode
from .loglinear import Factors, Fit, Key, Line, Prior, Term, fit
from .names import Spec
from .work import Unusable, Work

PRIORS: dict[str, Prior] = {
    "arithmetic share": Prior(math.log(1.5), 0.7),
    "quant": Prior(0.0, 0.2),
    "width": Prior(0.2, 0.2),
    "experts": Prior(math.log(0.5), 0.7),
    "attention": Prior(math.log(0.3), 1.0),
    "own arithmetic": Prior(0.0, 0.25),
    "own quant": Prior(0.0, 0.15),
    "own attention": Prior(0.0, 0.4),
}
"""kind of parameter -> where the logarithm is without data, and how far it may go"""


def prior(key: Key) -> Prior:
    """Prior of a parameter; the rates are those of F16, so that this quantisation has none of its own."""
    assert isinstance(key, tuple)
    return Prior(0.0, 1e-3) if key[1:] == ("f16",) else PRIORS[key[0]]


def arithmetic(gpu: str, quant: str, specs: dict[str, Spec]) -> tuple[Factors, float]:
    """Seconds per floating-point operation at the reference width: parameters and data sheet."""
    factors: Factors = (
        (("arithmetic share", decode.maker(specs[gpu])), -1.0),
        (("quant", quant), 1.0),
        (("own arithmetic", gpu), 1.0),
        (("own quant", gpu, quant), 1.0),
    )
    return factors, -math.log(specs[gpu].fp32_tflops * 1e12)


def attention(gpu: str, eager: bool, specs: dict[str, Spec]) -> tuple[Factors, float]:
    """Seconds per operation of attention scores."""
    key = "without flash attention" if eager else "recent"
    factors: Factors = ((("attention", key), -1.0), (("own attention", gpu), 1.0))
    return factors, -math.log(specs[gpu].fp32_tflops * 1e12)


def usable(item: Work) -> None:
    """Raises Unusable, with the reason, for a row that the law of resident models says nothing about."""
    row = item.row
    if not item.resident:
        raise Unusable("layers on the CPU")
    if item.gpu is None:
        raise Unusable("GPU without data sheet")
    if row.num_gpus > 1 and item.tokens > UBATCH:
        raise Unusable("chunks pipelined over several GPUs")
    if row.ubatch is not None and row.ubatch < UBATCH // 4:
        raise Unusable("micro-batches of few tokens: a batch table")


def terms(item: Work, decoded: Fit, specs: dict[str, Spec]) -> tuple[Term, ...]:
    """Time of a whole prompt: arithmetic, attention, and what every chunk pays as a decode step does."""
    assert item.gpu
    arch, here, row = item.model.architecture, item.here, item.row
    chunks = -(-item.tokens // (row.ubatch or UBATCH))
    step = [
        decode.read_term(here.read + here.head + here.idle, item.gpu, item.quant, item.box, specs),
        Term(float(here.launched), decode.launch_factors(item.gpu, item.box, item.eager, specs)),
    ]
    factors, offset = arithmetic(item.gpu, item.quant, specs)
    width: Factors = ((("width",), -math.log(arch.hidden / REFERENCE_WIDTH)),)
    experts: Factors = ((("experts",), -1.0),) if arch.experts else ()
    pairs = arch.attention_flops * here.attention * item.tokens * ((row.depth or 0) + item.tokens / 2)
    seen, seen_offset = attention(item.gpu, item.eager, specs)
    return (
        Term(float(chunks), (), math.log(decoded.seconds(step))),
        Term(here.flops * item.tokens, (*factors, *width, *experts), offset),
        Term(pairs, seen, seen_offset),
    )


def fit_prefill(items: Sequence[Work], decoded: Fit, specs: dict[str, Spec], near: Fit | None = None) -> Fit:
    """All parameters from all items, which `usable` has let through; `near`: a fit to start from."""
    return fit([Line(item.seconds, terms(item, decoded, specs)) for item in items], prior, near)
