"""Mooncake, BurstGPT, ServeGen and Parquet readers, and what all recorded traces share: ticks, clients, windows, mapping."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from mmsched_env.errors import ConfigError
from mmsched_env.workload import GeneratorConfig, RequestTrace, source_from
from mmsched_env.workload.mooncake import repeated_block_share
from mmsched_env.workload.replay import spread_ticks
from mmsched_env.workload.servegen import read_clients
from mmsched_env.workload.splits import SEEDS, seed_of, split_of
from mmsched_env.workload.trace import COLUMNS

MODELS = ("a", "b", "c")
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
SIZES = ("qwen3-32b-q4_k_m", "llama-3.2-1b-f16", "llama-3-8b-q4_k_m")


def sample(kind: str, path: Path, seed: int = 0, models: tuple[str, ...] = MODELS, **settings: object) -> RequestTrace:
    return source_from({"kind": kind, "path": str(path), **settings}).sample(seed, models)


@pytest.fixture
def burst(tmp_path: Path) -> Path:
    rows = [
        (5, "GPT-4", 10, 4),
        (5, "ChatGPT", 20, 8),
        (5, "ChatGPT", 9, 0),
        (6, "ChatGPT", 30, 2),
        (9, "GPT-4", 40, 6),
    ]
    path = tmp_path / "burst.csv"
    lines = [f"{t},{m},{p},{o},{p + o},{'API log' if m == 'GPT-4' else 'Conversation log'}\n" for t, m, p, o in rows]
    path.write_text(BURST + "".join(lines))
    return path


@pytest.fixture
def mooncake(tmp_path: Path) -> Path:
    path = tmp_path / "m.jsonl"
    rows = [(0, 5, 2, [0, 1]), (0, 6, 3, [0, 2]), (3000, 7, 4, [0, 1, 3]), (6001, 8, 5, [4])]
    keys = ("timestamp", "input_length", "output_length", "hash_ids")
    path.write_text("".join(json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in rows))
    return path


@pytest.fixture
def servegen(tmp_path: Path) -> Path:
    for i, (rates, pattern) in enumerate([((2.0, 0.0, 1.0), "Gamma,0.25,2.0"), ((0.5, 0.5, 0.5), "Weibull,0.8,1.7")]):
        lines = [f"{600 * w},{r},1,{pattern if r else ',0,0'}\n" for w, r in enumerate(rates)]
        (tmp_path / f"chunk-{i}-trace.csv").write_text("".join(lines))
        kinds = {"input_tokens": f"{{{10 + i}: 0.5, {20 + i}: 0.5}}", "output_tokens": "{7: 1.0}", "reason_ratio": "{}"}
        if i == 1:
            kinds |= {"text_tokens": kinds.pop("input_tokens"), "image_tokens": "{64: 1.0}", "image_count": "{2: 1.0}"}
        later = dict.fromkeys(kinds, "{99: 1.0}")
        (tmp_path / f"chunk-{i}-dataset.json").write_text(json.dumps({"0": kinds, "1200": later if i == 0 else kinds}))
    return tmp_path


def test_burstgpt(burst: Path) -> None:
    trace = sample("burstgpt", burst, tick_s=None)
    assert trace.arrival_s.tolist() == [5, 5, 6, 9] and trace.prompt_tokens.tolist() == [10, 20, 30, 40]
    assert trace.model.tolist() == [0, 1, 1, 0]  # both names twice: the first one found leads
    assert trace.tenant.tolist() == [0, 1, 1, 0]
    assert trace.notes == ("1 of 5 requests without a response left out",)


def test_mapping_rules(burst: Path) -> None:
    burst.write_text(burst.read_text() + "9,ChatGPT,1,1,2,Conversation log\n")  # ChatGPT leads now

    def models(**mapping: object) -> list[int]:
        return sample("burstgpt", burst, models=SIZES, mapping=mapping).model.tolist()

    assert models(rule="rank") == [1, 0, 0, 1, 0]
    assert models(rule="rank", models=[SIZES[2]]) == [2] * 5
    assert models(rule="size") == [2, 1, 1, 2, 1]  # 1B serves the most requested name, 8B the next
    assert models(rule="name", names={"ChatGPT": SIZES[0], "GPT-4": SIZES[2]}) == [2, 0, 0, 2, 0]
    assert models(rule="share", shares=[0, 0, 1]) == [2] * 5
    for mapping, message in (
        ({"rule": "name", "names": {"ChatGPT": SIZES[0]}}, "no model for the recorded name 'GPT-4'"),
        ({"rule": "name", "names": {"ChatGPT": "x", "GPT-4": SIZES[0]}}, "unknown model in workload.mapping.names 'x'"),
        ({"rule": "name"}, "workload.mapping.names is None"),
        ({"rule": "luck"}, "accepted: share or rank or size or name"),
        ({"rule": "share", "shares": [1.0]}, "workload.mapping.shares is .*accepted: 3 numbers"),
        ({"models": ["x"]}, "unknown model in workload.mapping.models 'x'"),
    ):
        with pytest.raises(ConfigError, match=message):
            models(**mapping)


def test_arena_by_size(tmp_path: Path) -> None:
    path = tmp_path / "arena.csv"
    path.write_text(
        "arrival_s,model_id,prompt_tokens,output_tokens\n" + "0,5,1,1\n" * 3 + "1,2,1,1\n" * 2 + "2,0,1,1\n"
    )
    assert sample("arena27", path, models=SIZES, ranked="size").model.tolist() == [1, 1, 1, 2, 2, 0]


def test_mooncake(mooncake: Path) -> None:
    trace = sample("mooncake", mooncake, tick_s=None)
    assert trace.arrival_s.tolist() == [0, 0, 3, 6.001]
    assert trace.prompt_tokens.tolist() == [5, 6, 7, 8] and trace.output_tokens.tolist() == [2, 3, 4, 5]
    assert repeated_block_share(mooncake) == 3 / 8
    spread = sample("mooncake", mooncake).arrival_s
    assert (np.diff(spread) > 0).all() and (np.floor(spread / 3) == [0, 0, 1, 2]).all()


def test_ticks_are_spread_within_themselves_in_order() -> None:
    recorded = np.repeat([0.0, 3.0, 5.0, 60.0], [1000, 1, 1000, 500])
    spread = spread_ticks(recorded, 3.0, np.random.default_rng(0))
    assert (np.diff(spread) >= 0).all()
    assert spread[1000] < 5.0 and spread[1001] >= 5.0  # not past the next time
    assert spread[0] >= 0 and spread[999] < 3 and spread[-1] < 63
    assert np.histogram(spread[:1000], bins=4, range=(0, 3))[0] == pytest.approx(250, abs=60)
    assert spread[2001:].mean() == pytest.approx(61.5, abs=0.2)


def test_servegen_draws_each_clients_rate_and_lengths(servegen: Path) -> None:
    clients = read_clients(servegen)
    assert [client.name for client in clients] == ["chunk-0", "chunk-1"]
    traces = [sample("servegen", servegen, seed, duration_s=None) for seed in range(60)]
    counts = np.mean([[np.sum((t.tenant == c) & (t.arrival_s // 600 == w)) for w in range(3)] for t in traces for c in (0, 1)],
                     axis=0)  # fmt: skip
    per_client = np.array([[np.sum((t.tenant == c) & (t.arrival_s // 600 == w)) for c in (0, 1) for w in range(3)]
                           for t in traces]).mean(axis=0)  # fmt: skip
    assert counts.shape == (3,)
    assert per_client == pytest.approx([1200, 0, 600, 300, 300, 300], rel=0.03)
    one = traces[0]
    early, late = one.arrival_s < 1200, one.arrival_s >= 1200
    assert set(one.prompt_tokens[early & (one.tenant == 0)]) == {10, 20} and set(
        one.prompt_tokens[late & (one.tenant == 0)]
    ) == {99}
    assert set(one.image_tokens[one.tenant == 1]) == {128} and set(one.image_tokens[one.tenant == 0]) == {0}
    assert set(one.max_tokens) == {99}
    gaps = np.concatenate([np.diff(t.arrival_s[(t.tenant == 0) & (t.arrival_s < 600)]) for t in traces])
    assert gaps.std() / gaps.mean() == pytest.approx(2.0, rel=0.05)  # Gamma of shape 1/4


def test_servegen_cut_shifts_no_draw(servegen: Path) -> None:
    whole = sample("servegen", servegen, duration_s=None)
    part = sample("servegen", servegen, start_s=1200.0, duration_s=300.0)
    rows = (whole.arrival_s >= 1200) & (whole.arrival_s < 1500)
    assert part.arrival_s + 1200 == pytest.approx(whole.arrival_s[rows])
    assert (part.prompt_tokens == whole.prompt_tokens[rows]).all() and (part.model == whole.model[rows]).all()


def test_whole_clients_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    tenants = np.random.default_rng(0).choice(20, 5000, p=np.arange(1, 21) / 210)
    rows = "".join(f"{i},a,5,5,{t}\n" for i, t in enumerate(tenants))
    path.write_text("arrival_s,model,prompt_tokens,output_tokens,tenant\n" + rows)
    kept = [sample("file", path, seed, client_share=0.3) for seed in range(5)]
    for trace in kept:
        assert len(trace) / 5000 == pytest.approx(0.3, abs=0.05)  # no client has over 10 %
        for tenant in np.unique(trace.tenant):
            assert (trace.arrival_s[trace.tenant == tenant] == np.flatnonzero(tenants == tenant)).all()
        assert trace.notes[0].endswith(f"of 20 clients kept, {len(trace)} of 5000 requests")
    assert len({tuple(np.unique(trace.tenant)) for trace in kept}) > 1
    path.write_text(path.read_text().replace(",tenant\n", ",other\n"))
    with pytest.raises(ConfigError, match=r"workload\.client_share is 0\.3; accepted: none, .* has one client"):
        sample("file", path, client_share=0.3)


def test_splits_share_no_seed_and_no_window(tmp_path: Path) -> None:
    assert [split_of(seed) for seed in (0, 10**6 - 1, 10**6, 2 * 10**6, 2**62, 2**70)] == [
        "test", "test", "validation", "train", "train", "train",
    ]  # fmt: skip
    assert sum(len(SEEDS[name]) for name in ("test", "validation")) == SEEDS["train"].start
    assert seed_of("validation", 3) == 10**6 + 3
    for split, index in (("test", 10**6), ("test", -1), ("exam", 0)):
        with pytest.raises(ConfigError):
            seed_of(split, index)
    path = tmp_path / "x.csv"
    path.write_text("arrival_s,model,prompt_tokens,output_tokens\n" + "".join(f"{i},a,{i + 1},5\n" for i in range(101)))
    seen = {name: sample("file", path, seed_of(name, 7), windows="by_seed") for name in SEEDS}
    assert [len(seen[name]) for name in ("train", "validation", "test")] == [60, 20, 21]
    assert set(np.concatenate([t.prompt_tokens for t in seen.values()])) == set(range(1, 102))
    cut = sample("file", path, 0, windows="by_seed", start_s=5.0, duration_s=10.0)
    assert cut.prompt_tokens.tolist() == list(range(86, 96)) and cut.arrival_s[0] == 0


@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz", "x.parquet"])
def test_own_formats_keep_every_bit(name: str, tmp_path: Path) -> None:
    trace = GeneratorConfig(num_requests=500, multimodal=("b",)).sample(3, MODELS)
    path = tmp_path / name
    (trace.write_parquet if name.endswith("parquet") else trace.write_csv)(path)
    read = sample("file", path)
    for column in COLUMNS:
        assert getattr(read, column).tobytes() == getattr(trace, column).tobytes(), column
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.slow
def test_a_million_rows_in_ten_seconds(tmp_path: Path) -> None:
    """Every reader; `mooncake` with as many prefix blocks as the published trace has."""
    size = 1_000_000
    arrival = np.sort(np.random.default_rng(0).uniform(0, 1e5, size)).tolist()
    files = {
        "arena27": "arrival_s,model_id,prompt_tokens,output_tokens,req_id\n"
        + "".join(f"{t!r},{i % 27},12,34,{i}\n" for i, t in enumerate(arrival)),
        "burstgpt": BURST
        + "".join(f"{int(t)},{'GPT-4' if i % 3 else 'G'},12,34,46,API log\n" for i, t in enumerate(arrival)),
        "file": "arrival_s,model,prompt_tokens,output_tokens\n" + "".join(f"{t!r},a,12,34\n" for t in arrival),
        "mooncake": "".join(
            f'{{"timestamp": {int(1000 * t)}, "input_length": 9, "output_length": 9, "hash_ids": {[i] * 24}}}\n'
            for i, t in enumerate(arrival)
        ),
    }
    for kind, text in files.items():
        (tmp_path / kind).write_text(text)
        begun = time.process_time()
        trace = sample(kind, tmp_path / kind)
        assert len(trace) == size
        assert time.process_time() - begun < 10, kind
    (tmp_path / "conv.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        + "".join(f"2023-11-16 18:{i // 20_000:02d}:{i % 20_000 / 400:010.7f},12,34\n" for i in range(size))
    )
    trace.write_parquet(tmp_path / "x.parquet")
    begun = time.process_time()
    assert len(sample("azure2023", tmp_path, conv_file="conv.csv", code_file="")) == size
    assert time.process_time() - begun < 10, "azure2023"
    begun = time.process_time()
    assert len(sample("file", tmp_path / "x.parquet", models=trace.model_names)) == size
    assert time.process_time() - begun < 10, "Parquet"
