"""Four tables of figures collected from public sources, each with columns of its own -> cells of a measurement."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from .schema import CPU_ONLY

HEADERS = {
    "decode_prefill": {"gpu", "backend", "test", "n_tokens", "batch", "tokens_per_s", "source_url"},
    "offload_sweeps": {"series_id", "n_gpu_layers", "n_cpu_moe", "usable_for_fit", "tokens_per_s", "source_url"},
    "load_times": {"gpu", "storage", "engine", "operation", "seconds", "source_url"},
    "transfer": {"link", "direction", "pinned", "message_size", "gb_per_s", "source_url"},
}
"""table -> columns by which it is known"""

PULLS = {
    "pull/2059": "2023-07",
    "pull/3776": "2023-10",
    "pull/4766": "2024-01",
    "pull/4812": "2024-01",
    "pull/6017": "2024-03",
    "pull/6083": "2024-03",
    "pull/7676": "2024-06",
    "pull/494": "2025-06",
    "pull/15802": "2025-09",
    "pull/929": "2025-11",
    "pull/17505": "2025-11",
    "llama-bench/README": "2023-09",
}
"""where no date is stated: the month in which the quoted change was proposed"""

CPU_NAME = re.compile(r"(?:Core )?i[3579]-\d+\w*|Ryzen \d\w*(?: \d\w*)?|EPYC \w+")
VERSION = re.compile(r" (b\d+|v?\d+(?:\.\d+)+)$")
TESTS = {"tg": "decode", "pp": "prefill"}


class LeftOut(Exception):
    """A row that cannot be carried over, and why."""


Row = dict[str, str]
Cells = dict[str, str]


def table_of(header: Iterable[str]) -> str | None:
    """Which of the four tables has this header; None: none of them."""
    names = set(header)
    return next((table for table in reversed(HEADERS) if HEADERS[table] <= names), None)


def _throughput(row: Row) -> Cells:
    note = row["note"]
    if "anomalously" in note:
        raise LeftOut("anomalously low in its source")
    if row.get("usable_for_fit") == "0":
        raise LeftOut("VRAM overflow, end points only, or flags not comparable")
    if row["gpu"] == "A40" and row["model"] == "LLaMA-3 70B":
        raise LeftOut("contradicts itself: faster with longer prompts")
    if "automatic split" in note:
        raise LeftOut("the engine chose which layers go to the GPU and does not say which")
    gpu, num_gpus = _gpu(row["gpu"])
    engine = VERSION.sub("", row["backend"])
    version = VERSION.search(row["backend"])
    micro = row["test"] == "pp" and (row["batch"] != "1" or "icro-batch" in note)
    stated = re.search(r"ubatch (\d+)", note)
    experts = re.search(r"n_cpu_moe (\d+)", note)
    no_experts = "999" if "all experts on CPU" in note else ""
    return {
        "series": row.get("series_id", "") or ("kv-in-host-ram" if "no-kv-offload" in note else ""),
        "gpu": gpu,
        # The collector's figure for several GPUs is not that of one of them.
        "gpu_mem_gb": row["gpu_mem_gb"] if num_gpus == "1" else "",
        "num_gpus": num_gpus,
        "host": _host(note),
        "engine": engine,
        "engine_version": version[1] if version else "",
        "model": row["model"],
        "quant": row["quant"],
        "params_b": row["params_b"],
        # Families' layer counts are not always those of the model: the collector marks the doubtful ones.
        "num_layers": "" if "assumed" in note or "family" in note else row["n_layers"],
        "n_gpu_layers": row["n_gpu_layers"],
        "n_cpu_moe": row.get("n_cpu_moe", "") or (experts[1] if experts else no_experts),
        "operation": TESTS[row["test"]],
        "tokens": row["n_tokens"],
        "depth": row["depth"],
        "batch": "1" if micro else row["batch"],
        "ubatch": row["batch"] if micro else (stated[1] if stated and row["test"] == "pp" else ""),
        "value": row["tokens_per_s"],
        "unit": "tokens/s",
        "spread": row["stddev"],
        **_origin(row, "source_date"),
    }


LOADS = (
    ("sleep L1 wake", "wake", "ram"),
    ("sleep L2 wake", "wake", "disk"),
    ("sleep L1 enter", "sleep", "ram"),
    ("sleep L2 enter", "sleep", ""),
    ("full engine start", "start", "disk"),
    ("whole engine", "start", "disk"),
    ("engine start", "start", "disk"),
    ("launch", "start", "disk"),
    ("cold load", "load", "disk"),
    ("weights load", "load", ""),
    ("preemption", "preempt", ""),
    ("read() cold", "disk_read", "disk"),
    ("read cold", "disk_read", "disk"),
    ("read() warm", "disk_read", "page_cache"),
    ("read warm", "disk_read", "page_cache"),
    ("load", "load", ""),
)
"""part of the operation's text, operation, where the bytes come from; the first that fits"""


def _load(row: Row) -> Cells:
    text = row["operation"]
    if any(word in text for word in ("warm-up", "first inference", "adapter")):
        raise LeftOut("neither a load nor a wake of a model")
    operation, tier = next((o, t) for part, o, t in LOADS if part in text)
    gpu, num_gpus = _gpu(row["gpu"])
    on_host = row["gpu"].startswith("host of ")
    size = row["size_gb"]
    return {
        "gpu": "" if on_host else gpu,
        "gpu_mem_gb": _memory(row["gpu"]),
        "num_gpus": num_gpus,
        "host": row["gpu"] if on_host else "",
        "engine": VERSION.sub("", row["engine"]),
        "engine_version": version[1] if (version := VERSION.search(row["engine"])) else "",
        "model": "" if on_host else row["model"],
        "quant": row["quant"],
        "operation": operation,
        "tier": "network" if row["storage"] == "S3" else tier,
        "size_bytes": str(round(float(size) * 1e9)) if size else "",
        "value": row["seconds"],
        "unit": "s",
        **_origin(row, "source_date", f"{text}; {row['storage']}" if row["storage"] else text),
    }


COPIES = {
    "H2D": "copy_h2d",
    "H2D (CE)": "copy_h2d",
    "D2H": "copy_d2h",
    "disk to host": "disk_read",
    "KV park D2H": "save",
    "KV restore H2D": "restore",
    "KV restore": "restore",
    "single direction KV offload": "save",
}
SCALES = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "MiB": 2.0**20, "GiB": 2.0**30}


def _copy(row: Row) -> Cells:
    if row["direction"] not in COPIES:
        raise LeftOut(f"{row['direction']}: no operation of the cost model")
    if "remote NUMA" in row["note"]:
        raise LeftOut("copied from the memory of another CPU")
    operation = COPIES[row["direction"]]
    size = re.fullmatch(r"([\d.]+) (KB|MB|GB|MiB|GiB)", row["message_size"])
    tokens = re.fullmatch(r"(\d+) tokens", row["message_size"])
    gpu, num_gpus = _gpu(row["gpu"])
    on_host = operation == "disk_read"
    timed = bool(row["seconds"])
    return {
        "gpu": "" if on_host else gpu,
        "num_gpus": num_gpus,
        "host": row["gpu"] if on_host else "",
        "link": row["link"],
        "operation": operation,
        "tier": "disk" if on_host else ("ram" if operation in ("save", "restore") else ""),
        "pinned": row["pinned"],
        "tokens": tokens[1] if tokens else "",
        "size_bytes": str(round(float(size[1]) * SCALES[size[2]])) if size else "",
        "value": row["seconds"] if timed else str(float(row["gb_per_s"]) * 1e9),
        "unit": "s" if timed else "B/s",
        **_origin(row, "date", "" if size or tokens else row["message_size"]),
    }


CARRY: dict[str, Callable[[Row], Cells]] = {
    "decode_prefill": _throughput,
    "offload_sweeps": _throughput,
    "load_times": _load,
    "transfer": _copy,
}


def _gpu(text: str) -> tuple[str, str]:
    """Name without count and memory, and the count."""
    many = re.fullmatch(r"(.+?) \* (\d+)|(\d+)x (.+)", text)
    name = (many[1] or many[4]) if many else text
    name = re.sub(r" \d+ ?GB$| \(AWS .*\)$", "", name)
    count = (many[2] or many[3]) if many else "1"
    return name, "0" if name == CPU_ONLY or text.startswith("host of") else count


def _memory(text: str) -> str:
    found = re.search(r" (\d+) ?GB$", text)
    return found[1] if found else ""


def _host(note: str) -> str:
    found = CPU_NAME.search(note)
    return found[0] if found else ""


def _origin(row: Row, date: str, more: str = "") -> Cells:
    source = row["source_url"]
    known = next((month for part, month in PULLS.items() if source.split("#")[0].endswith(part) or part in source), "")
    note = "; ".join(text for text in (more, row["note"]) if text)
    return {"date": row[date] or known, "source": source, "provenance": "imported", "note": note}
