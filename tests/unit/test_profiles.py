"""Profiles: shapes against published counts and file sizes, validation, catalogue, hash."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mmsched_env.config import ClusterConfig, ModelsConfig
from mmsched_env.costmodel import profile
from mmsched_env.costmodel.number import PROVENANCES
from mmsched_env.errors import ConfigError

NAMES = profile.catalogue()


@pytest.mark.parametrize("name", NAMES["model"])
def test_parameter_count_matches_the_published_one(name: str) -> None:
    model = profile.load_model(name)
    assert model.params == pytest.approx(model.published_params, rel=0.01)


@pytest.mark.parametrize(
    ("name", "gib"),
    [
        ("qwen2.5-14b-q4_k_m", 8.37),  # stated by sweep S08
        ("qwen2.5-32b-q4_k_m", 18.50),  # S07
        # github.com/Wesley-Jakob-Gilbert/Intel-Arc-GPU-Benchmarks
        ("qwen3-30b-a3b-q4_k_m", 17.35),
        ("llama-3-8b-q5_k_m", 5.33),
        ("llama-3-8b-q8_0", 7.95),
        ("qwen3-8b-q4_k_m", 4.68),
        ("qwen3-14b-q4_k_m", 8.38),
        ("gemma-3-12b-q4_k_m", 6.79),
        ("gemma-3-27b-q4_k_m", 15.40),
        ("mistral-small-24b-q4_k_m", 13.34),
        ("glm-4-32b-q4_k_m", 18.32),
        ("qwen3-32b-q4_k_m", 18.40),
        ("gpt-oss-20b-mxfp4", 11.27),
        ("gpt-oss-120b-mxfp4", 59.02),
    ],
)
def test_file_size_matches_the_measured_one(name: str, gib: float) -> None:
    assert profile.load_model(name).file_bytes / 2**30 == pytest.approx(gib, rel=0.01)


@pytest.mark.parametrize(
    ("name", "billions"),
    [("qwen3-30b-a3b-q4_k_m", 3.3), ("mixtral-8x7b-q4_k_m", 12.9), ("qwen3.5-35b-a3b-q4_k_m", 3.5)],
)
def test_active_parameters_of_experts(name: str, billions: float) -> None:
    """All but the experts that a token is not sent to, as the model cards count (the last one's says A3B)."""
    arch = profile.load_model(name).architecture
    assert arch.experts
    idle = arch.layers * (arch.experts.count - arch.experts.active) * 3 * arch.hidden * arch.ffn
    assert arch.params - idle == pytest.approx(billions * 1e9, rel=0.02)


def test_only_attention_layers_have_a_cache() -> None:
    """Qwen3.5 35B: 10 of 40 layers x (key + value) x 2 heads x 256 x 2 bytes."""
    arch = profile.load_model("qwen3.5-35b-a3b-q4_k_m").architecture
    assert arch.attention_layers * arch.kv_layer_bytes == 20480


def test_more_active_experts_than_there_are_is_refused(tmp_path: Path) -> None:
    shutil.copytree(profile.PROFILES, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "models" / "mixtral-8x7b.yaml"
    path.write_text(path.read_text().replace("active: 2", "active: 9"))
    with pytest.raises(ConfigError, match=r"experts\.active is 9; accepted: 1 to experts\.count=8"):
        profile.load_model("mixtral-8x7b-q4_k_m", tmp_path)


def test_kv_bytes_of_a_token() -> None:
    """Llama 3 8B: 32 layers x (key + value) x 8 heads x 128 x 2 bytes."""
    arch = profile.load_model("llama-3-8b-f16").architecture
    assert arch.layers * arch.kv_layer_bytes == 131072


def test_the_issue_and_default_configuration_are_covered() -> None:
    assert set(ClusterConfig().gpus) <= set(NAMES["gpu"])
    assert set(ClusterConfig().hosts) <= set(NAMES["host"])
    assert set(ModelsConfig().names) <= set(NAMES["model"])
    assert {"rtx-3090-24gb", "rtx-3060-12gb", "h100-pcie-80gb"} <= set(NAMES["gpu"])
    assert {"llama-3-8b-f16", "qwen2.5-14b-f16", "qwen3-8b-f16"} <= set(NAMES["model"])


def test_every_number_says_where_it_comes_from() -> None:
    for row in profile.catalogue_rows():
        assert sum(row["provenance"].values()) > 0, row
        assert set(row["provenance"]) <= set(PROVENANCES), row
        assert row["memory_bytes"] > 0 and all(0 <= e < math.inf for e in row["error"].values()), row


def test_measured_gpus_state_a_left_out_error() -> None:
    for name in ("rtx-a6000-48gb", "rtx-5000-ada-32gb", "rtx-4090-24gb", "rtx-3090-24gb", "h100-pcie-80gb"):
        errors = profile.load_gpu(name).errors
        assert errors["decode"].leave_out < 0.08 and errors["prefill"].leave_out < 0.25, name
    assert "decode" not in profile.load_gpu("rtx-3060-12gb").errors, "nobody measured it"


def test_figures_that_were_fitted_state_a_standard_error() -> None:
    for name in NAMES["gpu"]:
        gpu = profile.load_gpu(name)
        for number in (gpu.layer_s, gpu.kv_read, gpu.hybrid_s, *gpu.read.values(), *gpu.compute.values()):
            assert number.spread is not None and 0 < number.spread < 1, name
    measured, unknown = (profile.load_gpu(name).read["q4_k_m"] for name in ("rtx-3090-24gb", "rtx-3060-12gb"))
    assert measured.spread is not None and unknown.spread is not None and unknown.spread > 3 * measured.spread


def test_the_catalogue_is_wide() -> None:
    shapes = {name.rsplit("-", 1)[0] for name in NAMES["model"]}
    models = {
        shape: profile.load_model(next(n for n in NAMES["model"] if n.startswith(f"{shape}-"))) for shape in shapes
    }
    assert len(NAMES["gpu"]) >= 20 and len(shapes) >= 25
    assert sum(model.vision is not None for model in models.values()) >= 3
    assert sum(model.architecture.experts is not None for model in models.values()) >= 3
    assert min(m.params for m in models.values()) < 0.6e9 and max(m.params for m in models.values()) > 230e9


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("rtx4090", "rtx-4090-24gb"),
        ("RTX 4090", "rtx-4090-24gb"),
        ("rtx-4090", "rtx-4090-24gb"),
        ("a100pcie80gb", "a100-pcie-80gb"),
    ],
)
def test_short_names_stand_for_one_profile(short: str, full: str) -> None:
    assert profile.load_gpu(short) == profile.load_gpu(full)
    assert profile.profile_hash([short], [], []) == profile.profile_hash([full], [], [])


def test_short_name_of_two_profiles_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'a100pcie' is one of several; accepted: a100-pcie-40gb, a100-pcie-80gb"):
        profile.load_gpu("a100pcie")


def test_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'rtx-4090-24gb'"):
        profile.load_gpu("rtx-4099")
    with pytest.raises(ConfigError, match="did you mean 'llama-3-8b-q4_k_m'"):
        profile.load_model("llama-3-8b-q4_k")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("provenance: fitted", "provenance: guessed", "provenance is 'guessed'; accepted: measured, imported"),
        ("unit: B/s", "unit: GB/s", "unit is 'GB/s'; accepted: B/s"),
        ("  kv_read:", "  kv_raed:", "kv_read missing"),
        ("reserve: {value: 805306368", "reserve: {value: -1", "reserve.value is -1"),
        ("reserve: {value: 805306368", "reserve: {value: .nan", "reserve.value is nan"),
        ("[[1, 1], [2,", "[[1, 1], [0.5,", "batch.value is"),
        ("name: rtx-4090-24gb", "name: rtx-4080", "name is 'rtx-4080'; accepted: rtx-4090-24gb"),
        ("numbers:", "numbers: [", "not readable as YAML"),
    ],
)
def test_bad_file_names_file_key_and_what_is_accepted(tmp_path: Path, old: str, new: str, message: str) -> None:
    shutil.copytree(profile.PROFILES, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "gpus" / "rtx-4090-24gb.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        profile.load_gpu("rtx-4090-24gb", tmp_path)
    assert message in str(caught.value) and "rtx-4090-24gb.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_hash_follows_the_bytes_of_the_profiles_used(tmp_path: Path) -> None:
    shutil.copytree(profile.PROFILES, tmp_path, dirs_exist_ok=True)

    def used(*models: str) -> str:
        return profile.profile_hash(["rtx-4090-24gb"], ["desktop-ddr5"], models, tmp_path)

    before = used("llama-3-8b-f16")
    assert before == used("llama-3-8b-f16", "llama-3-8b-f16") != used("llama-3-8b-q4_k_m")
    other = tmp_path / "gpus" / "rtx-3090-24gb.yaml"
    other.write_text(other.read_text() + "# note\n")
    assert used("llama-3-8b-f16") == before
    mine = tmp_path / "hosts" / "desktop-ddr5.yaml"
    mine.write_text(mine.read_text() + "# note\n")
    assert used("llama-3-8b-f16") != before


def test_importing_profiles_needs_no_yaml() -> None:
    code = "import sys; sys.modules['yaml'] = None; import mmsched_env.costmodel.tables"
    subprocess.run([sys.executable, "-c", code], check=True)
