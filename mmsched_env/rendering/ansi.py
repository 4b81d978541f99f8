"""The present instant as text, at most 100 columns: clock, GPUs with their instances, hosts, the oldest requests.

It shows what the policy observes, so it needs no event log.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..core import Simulation

WIDTH = 100
BAR = 30
QUEUE_ROWS = 10
GB = 1e9


def render_ansi(simulation: Simulation, env: int) -> str:
    """Text view of environment `env`; every line at most 100 columns, no colour codes."""
    view = _View(simulation, env)
    lines = [*view.clock(), ""]
    for gpu in range(len(view.gpu_names)):
        lines += view.gpu(gpu)
    lines += ["", *view.hosts(), "", *view.queue()]
    return "\n".join(line[:WIDTH].rstrip() for line in lines) + "\n"


class _View:
    """One environment's record and observation, with the configuration's names."""

    def __init__(self, simulation: Simulation, env: int) -> None:
        self.state: Any = simulation.state[env]
        self.params: Any = simulation.params[0]
        self.seen: Any = simulation.current.records[env]
        self.slots = simulation.dims.S
        self.seats = simulation.dims.B
        cluster = simulation.config.cluster
        self.gpu_names, self.host_names, self.gpu_hosts = cluster.gpus, cluster.hosts, cluster.gpu_hosts
        self.model_names = simulation.config.models.names
        trace = simulation.traces[env]
        self.class_names = trace.class_names if trace is not None else ()

    def clock(self) -> list[str]:
        s = self.state
        return [
            f"t = {s['now']:.3f} s   step {s['num_steps']}   arrived {s['num_arrived']} of {s['num_requests']}"
            f"   done {s['num_done']}   in system {s['num_in_system']}   waiting {s['queue_length']}",
            f"loads {s['num_loads']}   unloads {s['num_unloads']}   level changes {s['num_resizes']}"
            f"   preempted requests {s['num_preempted']}",
        ]

    # ------------------------------------------------------------ GPUs

    def gpu(self, g: int) -> Iterator[str]:
        """A memory bar, and a line for every slot, so that lines keep their place."""
        used, total = self.state["gpu_used"][g] / GB, self.params["gpu_bytes"][g] / GB
        name = f"GPU {g} {self.gpu_names[g]}"
        yield f"{name:<30.30} {_bar(used, total)} {used:5.1f} / {total:.1f} GB   host {self.gpu_hosts[g]}"
        for slot in range(self.slots):
            yield f"  {slot}  {self.instance(g * self.slots + slot)}"

    def instance(self, i: int) -> str:
        row = self.seen["instances"][i]
        if not row["present"]:
            return "-"
        model, level = int(row["model"]), int(row["level"])
        layers = f"{self.params['units_on_gpu'][model, level]}/{self.params['num_units'][model]} on GPU"
        seated, running = int(row["num_seated"]), int(row["num_running"])
        requests = (
            f"{running:2d} run {seated - running:2d} wait {self.seats - seated:2d} free   KV {row['kv_gb']:.2f} GB"
        )
        return f"{self.model(model):<22.22} {layers:<13} {self.activity(i):<22} {requests}"

    def activity(self, i: int) -> str:
        """What the instance does; of an operation the time left (with disk and links to itself)."""
        row = self.seen["instances"][i]
        left = f", {row['operation_left_s']:.2f} s left"
        if row["loading"]:
            return "loading" + left
        if row["leaving"]:
            return "unloading" + left
        if row["resizing"]:
            new = self.params["units_on_gpu"][int(row["model"]), self.state["inst_new_level"][i]]
            return f"to {new}{left}"
        if row["draining"]:
            return "draining"
        if row["saving"]:
            return "saving KV" + left
        return f"busy {1e3 * row['step_s']:.1f} ms/step" if row["num_running"] else f"idle {row['idle_s']:.1f} s"

    # ------------------------------------------------------------ hosts

    def hosts(self) -> Iterator[str]:
        for h, name in enumerate(self.host_names):
            s, p = self.state, self.params
            yield (
                f"host {h} {name:<24.24} weights cached {s['cached'][h].sum() / GB:.1f} GB"
                f" (pinned {s['host_pinned'][h] / GB:.1f})   KV {s['host_kv'][h] / GB:.2f}"
                f"   of {p['host_main_bytes'][h] / GB:.0f} GB"
            )
            yield f"{'':31} saved KV {s['host_swap'][h] / GB:.2f} of {p['host_swap_bytes'][h] / GB:.0f} GB"

    # ------------------------------------------------------------ queue

    def queue(self) -> Iterator[str]:
        waiting = int(self.state["queue_length"])
        if waiting == 0:
            yield "queue empty"
            return
        head = ("request", "model", "age s", "prompt", "image", "predicted", "class", "progress")
        yield "queue " + "{:>8}  {:<22} {:>7} {:>7} {:>6} {:>9}  {:<12} {}".format(*head)
        shown = min(waiting, QUEUE_ROWS, len(self.seen["queue"]))
        for q in range(shown):
            yield self.request(q)
        if waiting > shown:
            beyond = max(0, waiting - len(self.seen["queue"]))
            yield f"      and {waiting - shown} more, {beyond} of them beyond the policy's window"

    def request(self, q: int) -> str:
        row = self.seen["queue"][q]
        name, model = f"#{self.state['window'][q]}", self.model(int(row["model"]))
        return (
            f"{q:>5} {name:>8}  {model:<22.22} {row['age_s']:7.1f}"
            f" {row['prompt_tokens']:7.0f} {row['image_tokens']:6.0f} {row['predicted_tokens']:9.0f}"
            f"  {self.class_names[int(row['slo_class'])]:<12.12} {_progress(row)}"
        )

    def model(self, index: int) -> str:
        return self.model_names[index]


def _bar(used: float, total: float) -> str:
    filled = round(BAR * min(1.0, used / total)) if total > 0 else 0
    return "█" * filled + "░" * (BAR - filled)


def _progress(row: Any) -> str:
    """What a preempted request keeps: tokens produced, and its context if that is in host RAM."""
    if not row["num_preemptions"]:
        return ""
    kept = "saving" if not row["ready"] else "saved" if row["saved_tokens"] else "no KV"
    return f"{row['generated_tokens']:.0f} out, {kept}"
