"""llama-bench ``-o json|jsonl|csv|sql`` of llama.cpp, from 2023 on (fields: its README).

A test repeats one thing: a prompt (``n_prompt``), a generation (``n_gen``), or both in one time, which no row can hold.
"""

from __future__ import annotations

import csv
import io
import re
import statistics

from mmsched_env.errors import ConfigError

from ..schema import ALL_LAYERS, CPU_ONLY
from .base import Fields, Importer, Reading, has_keys, json_objects, noted
from .names import gpu_name, model_of_file, model_of_type

SETTINGS = (
    *("n_threads", "n_batch", "type_k", "type_v", "f16_kv", "flash_attn", "no_kv_offload", "no_op_offload"),
    *("split_mode", "tensor_split", "tensor_buft_overrides", "load_mode", "use_mmap", "repack", "embeddings"),
    *("moe_cache", "mul_mat_q"),
)
"""fields kept in the note: they bear on the figure and have no column"""

OLD_BACKENDS = ("cuda", "opencl", "vulkan", "kompute", "metal", "sycl", "rpc")
"""true or false each, before there was `backends`"""

REASONS = {
    **dict.fromkeys(("avg_ns", "stddev_ns", "samples_ns"), "the same repeats as avg_ts, as times"),
    **dict.fromkeys(("cpu_mask", "cpu_strict", "poll", "main_gpu", "devices", "no_host"), "a setting without a column"),
    **dict.fromkeys(("lazy_mode", "use_direct_io", "fit_target", "fit_min_ctx"), "a setting without a column"),
    **dict.fromkeys(("n_gen_warmup", "gpu_blas", "blas"), "a setting without a column"),
}

HEADER = re.compile(r'^"?build_commit"?,.*\bavg_ts\b', re.MULTILINE)
INSERT = re.compile(r"INSERT INTO (?:llama_bench|test) \(([^)]*)\)\s*VALUES\s*\((.*)\);\s*$")


def recognises(text: str) -> bool:
    """By fields every version writes."""
    if text.lstrip().startswith(("[", "{")):
        return has_keys(text, "build_commit", "model_filename")
    return bool(HEADER.match(text)) or "CREATE TABLE IF NOT EXISTS llama_bench" in text or bool(_old_sql(text))


def _old_sql(text: str) -> bool:
    return "CREATE TABLE IF NOT EXISTS test" in text and "avg_ts" in text


def read(text: str) -> Reading:
    """One row a test. Raises ConfigError."""
    reading = Reading()
    for fields in _tests(text):
        _test(fields, reading)
    return reading


def _tests(text: str) -> list[Fields]:
    if text.lstrip().startswith(("[", "{")):
        return json_objects(text, "test")
    if "CREATE TABLE" in text:
        return _sql(text)
    return _csv(text)


def _csv(text: str) -> list[Fields]:
    lines = [cells for cells in csv.reader(io.StringIO(text), strict=False) if cells]
    header, *rows = lines
    for number, cells in enumerate(rows, start=2):
        _require_width(cells, header, f"row {number}")
    return _some([Fields(dict(zip(header, cells, strict=True)), f"row {i}") for i, cells in enumerate(rows, start=2)])


def _sql(text: str) -> list[Fields]:
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.startswith("INSERT"):
            continue
        match = INSERT.match(line)
        if match is None:
            raise ConfigError(f"line {number} is not as llama-bench writes it; accepted: INSERT INTO ... VALUES (...);")
        names = [name.strip() for name in match[1].split(",")]
        cells = next(csv.reader([match[2]], quotechar="'", skipinitialspace=True))
        _require_width(cells, names, f"line {number}")
        found.append(Fields(dict(zip(names, cells, strict=True)), f"line {number}"))
    return _some(found)


def _require_width(cells: list[str], header: list[str], where: str) -> None:
    if len(cells) != len(header):
        raise ConfigError(f"{where} has {len(cells)} values; accepted: {len(header)}, one a field")


def _some(tests: list[Fields]) -> list[Fields]:
    if not tests:
        raise ConfigError("holds no test; accepted: at least one")
    return tests


def _test(fields: Fields, reading: Reading) -> None:
    prompt, generated = fields.whole("n_prompt"), fields.whole("n_gen")
    value, spread = fields.positive("avg_ts"), fields.number("stddev_ts", None, low=0)
    samples = fields.numbers("samples_ts", None)
    if samples and abs(statistics.fmean(samples) / value - 1) > 0.01:
        raise fields.error("avg_ts", f"the mean of samples_ts, {statistics.fmean(samples):g}")
    columns = {**_hardware(fields), **_model(fields)}
    columns["date"] = fields.text("test_time", "")[:10]
    ubatch, batch = fields.whole("n_ubatch", None, low=1), fields.whole("n_batch", None, low=1)
    depth = fields.whole("n_depth", 0)
    columns["note"] = noted((key, _setting(fields.get(key, None))) for key in SETTINGS)
    reading.ignore_rest(fields, REASONS)
    if (prompt > 0) == (generated > 0):
        reading.ignore(f"test pp{prompt}+tg{generated}", "one time for prompt and generation together")
        return
    reading.row(
        fields.where,
        operation="prefill" if prompt else "decode",
        tokens=prompt or generated,
        depth=depth,
        batch=1,
        # llama.cpp cuts a micro-batch at the batch
        ubatch=min(filter(None, (ubatch, batch)), default=None),
        value=value,
        unit="tokens/s",
        spread=spread,
        repeats=len(samples) if samples else None,
        **columns,
    )


def _setting(value: object) -> object:
    """The same in every format: true is 1."""
    return int(value) if isinstance(value, bool) else value


def _hardware(fields: Fields) -> dict[str, object]:
    backend = _backend(fields)
    layers = fields.whole("n_gpu_layers", ALL_LAYERS, low=-2)
    columns: dict[str, object] = {
        "host": fields.text("cpu_info", ""),
        "engine": f"llama.cpp {backend}".strip(),
        "engine_version": _version(fields),
        "n_gpu_layers": max(layers, ALL_LAYERS),
        "n_cpu_moe": fields.whole("n_cpu_moe", None),
    }
    names = [gpu_name(name) for name in re.split(r",\s*|(?<=\w)/(?=NVIDIA|AMD)", fields.text("gpu_info", "")) if name]
    if fields.text("split_mode", "") == "none" and names:
        names = [names[min(fields.whole("main_gpu", 0), len(names) - 1)]]
    if backend in ("CPU", "BLAS"):
        columns.update(gpu=CPU_ONLY, num_gpus=0, n_gpu_layers=0)
    elif names:
        columns.update(gpu=" + ".join(dict.fromkeys(names)), num_gpus=len(names))
    return columns


def _version(fields: Fields) -> str:
    """Build and commit, as llama.cpp itself joins them."""
    build, commit = fields.whole("build_number", None), fields.text("build_commit", "")
    return "-".join(part for part in (f"b{build}" if build else "", commit) if part)


def _backend(fields: Fields) -> str:
    """As the new versions write it; the old ones have a true or false for each."""
    old = [name for name in OLD_BACKENDS if fields.flag(name, False)]
    new: str = fields.text("backends", "")
    if new or any(name in fields for name in OLD_BACKENDS):
        return new or ",".join("CUDA" if name == "cuda" else name.capitalize() for name in old) or "CPU"
    return ""


def _model(fields: Fields) -> dict[str, object]:
    described, quant = model_of_type(fields.text("model_type", ""))
    named, named_quant = model_of_file(fields.text("model_filename", ""))
    params, size = fields.positive("model_n_params", None), fields.whole("model_size", None, low=1)
    return {
        "model": named or described,
        "quant": named_quant or quant,
        "params_b": params / 1e9 if params else None,
        "size_bytes": size,
    }


IMPORTER = Importer("llama-bench", recognises, read)
