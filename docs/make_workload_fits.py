"""Fits the named workloads (conf/workload/<name>.yaml) to the recorded traces and writes docs/workload_fits.md:
``python docs/make_workload_fits.py FOLDER``.

FOLDER holds the traces in the folders named below (none is shipped). Same traces, same files.
"""

from __future__ import annotations

import dataclasses
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mmsched_env.workload import Arena27Config, AzureTraceConfig, GeneratorConfig, MooncakeConfig, RequestTrace
from mmsched_env.workload.fit import Row, compare, fit_clients, fit_generator, yaml_of
from mmsched_env.workload.servegen import Client, ServeGenConfig, read_clients

ROOT = Path(__file__).parents[1]
DRAWS = 200
HOUR_S = 3600.0
IDS = tuple(f"id-{i}" for i in range(27))

Fitted = tuple[RequestTrace, GeneratorConfig, str, list[Row]]


def recorded(trace: RequestTrace, source: str) -> Fitted:
    """A record and the generator fitted to all of it."""
    config = fit_generator(trace)
    return trace, config, source, compare(trace, config, DRAWS)


def azure(folder: Path, leave_out: str, service: str) -> Fitted:
    trace = AzureTraceConfig(path=str(folder / "azure_llm_2023"), **{leave_out: ""}).sample(0, ("m",))
    return recorded(trace, f"Azure LLM inference trace 2023, {service} service (CC-BY 4.0; Splitwise, ISCA 2024)")


def arena27(folder: Path) -> Fitted:
    path = folder / "arena27_slora_vtc_prism" / "arena27_requests.csv"
    source = "27 models of a chat arena (Apache-2.0; as published with Prism, VTC and S-LoRA), time rescaled by them"
    return recorded(Arena27Config(path=str(path)).sample(0, IDS), source)


def mooncake(folder: Path) -> Fitted:
    path = folder / "mooncake_fast25" / "conversation_trace.jsonl"
    source = "Mooncake conversation trace (Apache-2.0; FAST 2025), times spread over their 3 s ticks"
    return recorded(MooncakeConfig(path=str(path)).sample(0, ("m",)), source)


def servegen(folder: Path, model: str) -> Fitted:
    """The client tables of one hour: clients with their own rate and CV, or if these miss the CV or the Fano factor of
    the hour, one process with bursts."""
    with tempfile.TemporaryDirectory() as temporary:
        with tarfile.open(folder / "servegen" / "raw_windows" / f"{model}.tar.xz") as archive:
            archive.extractall(temporary, filter="data")
        path = next(Path(temporary).rglob("chunk-0-trace.csv")).parent
        clients = read_clients(path)
        hour = typical_hour(clients)
        config = ServeGenConfig(path=str(path), start_s=hour * HOUR_S, duration_s=HOUR_S)
        trace = config.sample(0, ("m",))
    source = f"ServeGen {model} (Apache-2.0; arXiv 2505.09999), one draw of its clients in hour {hour} of the day"
    rate, many = fit_clients(clients, hour * HOUR_S, (hour + 1) * HOUR_S)
    single = fit_generator(trace)
    decomposed = dataclasses.replace(single, rate_per_s=round(rate, 3), arrivals="gamma", bursts=(), clients=many)
    rows = compare(trace, decomposed, DRAWS)
    missed = [row for row in rows if row.accepted == "band" and not row.ok]
    if not missed:
        return trace, decomposed, f"{source}; {many.count} clients", rows
    tried = ", ".join(f"{row.figure} {row.low:.2f} to {row.high:.2f} beside {row.real:.2f}" for row in missed)
    note = f"{source}; one process: {many.count} clients of constant rate missed {tried}"
    return trace, single, note, compare(trace, single, DRAWS)


def typical_hour(clients: tuple[Client, ...]) -> int:
    """The hour whose rate and rate-weighted CV are nearest to the day's, both by their ratio."""
    rate = np.array([client.lines["rate_per_s"] for client in clients])
    bursty = rate * np.array([client.lines["cv"] for client in clients])
    hours, bursty_hours = (x.reshape(len(clients), -1, 6).sum(axis=(0, 2)) for x in (rate, bursty))
    off = np.abs(np.log(hours / hours.mean())) + np.abs(np.log(bursty_hours / hours * rate.sum() / bursty.sum()))
    return int(off.argmin())


SETS: dict[str, Callable[[Path], Fitted]] = {
    "azure-conv-2023": lambda folder: azure(folder, "code_file", "chat"),
    "azure-code-2023": lambda folder: azure(folder, "conv_file", "code completion"),
    "arena27-fit": arena27,
    "mooncake-conv": mooncake,
    "servegen-deepseek-r1": lambda folder: servegen(folder, "deepseek-r1"),
    "servegen-mm-image": lambda folder: servegen(folder, "mm-image"),
}

PAGE = f"""# Named workloads and how well they fit

Written by `python docs/make_workload_fits.py FOLDER` from traces that are not shipped. Each workload
(`conf/workload/<name>.yaml`, use it as `workload=<name>`) is the generator with settings fitted to one trace; below, the
trace beside {DRAWS} draws of as many requests. The fit and the comparison use the same trace: this says how well the
generator's form can follow it, not how well it foretells another day. CV, Fano factors and popularity are per draw
(mean, and the band that holds 95 % of draws); the rate is that of all draws together. Asked for: rate within 2 %, 50th
and 95th percentile of lengths within 5 %, real CV and Fano factor of 60 s inside the band. Fano factors leave out the
last, cut-off window.

Settings: arrivals are Poisson, sped up and slowed down by the on/off sources in `bursts`, except where clients are
named. Lengths are histograms with edges at the trace's quantiles. Rates and shares can be overridden
(`workload.rate_per_s`, `workload.rho`, `workload.shares`).
"""


def table(name: str, source: str, trace: RequestTrace, config: GeneratorConfig, rows: list[Row]) -> str:
    bursts = "; ".join(f"on {b.on_s:g} s, off {b.off_s:g} s at {100 * b.off_rate:.3g} %" for b in config.bursts)
    lines = [f"\n## {name}\n", f"{source}. {len(trace)} requests.", f"Bursts: {bursts or 'none'}.\n"]
    lines += ["| figure | real | generated, mean | 95 % of draws | asked for | |", "|---|---|---|---|---|---|"]
    for row in rows:
        verdict = "" if not row.accepted else "met" if row.ok else "**missed**"
        cells = (number(row.real), number(row.mean), f"{number(row.low)} to {number(row.high)}", row.accepted, verdict)
        lines.append(f"| {row.figure} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def number(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"


def main(folder: Path) -> None:
    page, judged, missed = PAGE, 0, []
    for name, make in SETS.items():
        trace, config, source, rows = make(folder)
        page += table(name, source, trace, config, rows)
        judged += sum(bool(row.accepted) for row in rows)
        missed += [f"{name}: {row.figure}" for row in rows if not row.ok]
        written = dataclasses.replace(config, multimodal=GeneratorConfig().multimodal)
        comment = f"Fitted to: {source}.\nWritten by docs/make_workload_fits.py; errors in docs/workload_fits.md."
        (ROOT / "conf" / "workload" / f"{name}.yaml").write_text(yaml_of(written, comment))
        print(name, "missed:", [row for row in rows if not row.ok] or "nothing", flush=True)
    page += f"\n{judged - len(missed)} of {judged} figures met" + (
        f"; missed: {', '.join(missed)}.\n" if missed else ".\n"
    )
    (ROOT / "docs" / "workload_fits.md").write_text(page)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
