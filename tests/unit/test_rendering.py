"""Timeline, text view and Gantt chart: they say what the log and the state say."""

import subprocess
import sys
from collections import Counter
from functools import cache
from itertools import pairwise

import gymnasium as gym
import numpy as np
import pytest

import mmsched_env  # noqa: F401 (registers the environment)
from mmsched_env.config import EnvConfig
from mmsched_env.core import Simulation
from mmsched_env.errors import ConfigError, MmschedError
from mmsched_env.rendering import render
from mmsched_env.rendering.ansi import WIDTH, render_ansi
from mmsched_env.rendering.gantt import MIN_SPAN_S, gantt_array, gantt_figure
from mmsched_env.rendering.timeline import Activity, Interval, Transfer, read_log, timeline
from mmsched_env.sim import events
from mmsched_env.sim.state import EVICTING, LOADING, READY, RESIZING
from mmsched_env.workload import GeneratorConfig

ACTIVITY_OF = {LOADING: Activity.LOADING, EVICTING: Activity.UNLOADING, RESIZING: Activity.RESIZING}


def random_episode(seed: int, steps: int) -> Simulation:
    """An episode of random legal actions, with WAIT half of the time: it loads, preempts and resizes a lot."""
    simulation = Simulation(EnvConfig(), 1, logging=True)
    workload = GeneratorConfig(num_requests=60, rate_per_s=2.0)
    simulation.reset(0, workload.sample(seed, simulation.config.models.names))
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        legal = np.flatnonzero(simulation.current.mask[0])
        action = 0 if legal[0] == 0 and rng.random() < 0.5 else rng.choice(legal)
        outcome = simulation.step(np.array([action]))[0]
        if outcome.terminated:
            break
    return simulation


@cache
def episode(seed: int = 0, steps: int = 400) -> Simulation:
    return random_episode(seed, steps)


@pytest.mark.parametrize(("seed", "steps"), [(0, 0), (0, 400), (1, 37), (2, 111), (3, 250)])
def test_timeline_agrees_with_the_state(seed: int, steps: int) -> None:
    simulation = episode(seed, steps)
    state = simulation.state[0]
    story = timeline(simulation, 0)
    count = Counter(interval.activity for interval in story.intervals)
    assert count[Activity.LOADING] == state["num_loads"]
    assert count[Activity.UNLOADING] == state["num_unloads"]
    assert count[Activity.RESIZING] == state["num_resizes"]
    assert story.end_s == state["now"]
    assert story.queued.at(story.end_s).tolist() == state["model_queued"].tolist()
    assert story.queued.values.min(initial=0) >= 0 and story.seated.values.min(initial=0) >= 0


def test_a_picture_before_the_first_arrival() -> None:
    simulation = Simulation(EnvConfig(), 1, logging=True)
    picture = gantt_array(simulation, 0)
    assert picture.ndim == 3 and picture.std() > 0


@pytest.mark.parametrize(("seed", "steps"), [(0, 400), (1, 37), (2, 111), (3, 250)])
def test_intervals_of_a_slot_never_overlap_and_end_as_the_state_is(seed: int, steps: int) -> None:
    simulation = episode(seed, steps)
    state = simulation.state[0]
    story = timeline(simulation, 0)
    assert story.intervals == tuple(sorted(story.intervals, key=lambda interval: (interval.instance, interval.start_s)))
    for first, second in pairwise(story.intervals):
        assert first.instance < second.instance or first.end_s <= second.start_s
    last = {interval.instance: interval for interval in story.intervals}
    for i, phase in enumerate(state["inst_phase"]):
        if phase in ACTIVITY_OF:
            assert last[i].activity == ACTIVITY_OF[phase]
            assert (last[i].model, last[i].end_s) == (state["inst_model"][i], story.end_s)
        elif phase == READY and last[i].end_s == story.end_s:
            assert last[i].model == state["inst_model"][i]


def test_busy_intervals_cover_the_gpu_busy_seconds() -> None:
    simulation = episode()
    story = timeline(simulation, 0)
    slots = simulation.dims.S
    for gpu in range(simulation.dims.G):
        busy = [i for i in story.intervals if i.instance // slots == gpu and i.activity == Activity.BUSY]
        covered, reached = 0.0, 0.0
        for interval in sorted(busy, key=lambda i: i.start_s):
            covered += max(0.0, interval.end_s - max(reached, interval.start_s))
            reached = max(reached, interval.end_s)
        # The counter leaves out instances that run on the host CPU alone.
        assert covered >= simulation.state["gpu_busy_s"][0, gpu] - 1e-6


def log_of(*rows: tuple[float, int, int, int, int, int, float]) -> np.ndarray:
    """EVENT rows from (time_s, kind, request, instance, model, level, value)."""
    log = np.zeros(len(rows), events.EVENT)
    for at, row in enumerate(rows):
        for name, value in zip(("time_s", "kind", "request", "instance", "model", "level", "value"), row, strict=True):
            log[name][at] = value
    log["seq"] = np.arange(len(rows))
    return log


def test_a_known_log() -> None:
    log = log_of(
        (1.0, events.ARRIVE, 0, -1, 2, -1, 0),
        (1.0, events.LOAD_START, -1, 1, 2, 4, 0),
        (1.0, events.DISPATCH, 0, 1, 2, 4, 0),
        (3.0, events.LOAD_END, -1, 1, 2, 4, 0),
        (3.0, events.START, 0, 1, 2, 4, 0),
        (3.0, events.BUSY_START, 0, 1, 2, 4, 0),
        (5.0, events.UNLOAD_START, -1, 1, 2, 4, 0),
        (5.0, events.PREEMPT, 0, 1, 2, 4, 70),
        (5.0, events.BUSY_END, -1, 1, 2, 4, 0),  # logged only before time moves on
        (5.5, events.SAVE_END, 0, 1, 2, 4, 70),
        (6.0, events.UNLOAD_END, -1, 1, 2, 4, 0),
        (7.0, events.LOAD_START, -1, 1, 0, 3, 0),
        (8.0, events.LOAD_END, -1, 1, 0, 3, 0),
        (9.0, events.RESIZE_START, -1, 1, 0, 3, 1),
    )
    story = read_log(log, 10.0, num_instances=3, num_models=3)
    assert story.intervals == (
        Interval(1, Activity.LOADING, 2, 4, 1.0, 3.0),
        Interval(1, Activity.BUSY, 2, 4, 3.0, 5.0),
        Interval(1, Activity.UNLOADING, 2, 4, 5.0, 6.0),
        Interval(1, Activity.LOADING, 0, 3, 7.0, 8.0),
        Interval(1, Activity.IDLE, 0, 3, 8.0, 9.0),
        Interval(1, Activity.RESIZING, 0, 1, 9.0, 10.0),
    )
    assert story.transfers == (Transfer(1, 0, True, 70, 5.0, 5.5),)
    assert story.queued.times_s.tolist() == [1.0, 5.0]
    assert story.queued.values.tolist() == [[0, 0, 0], [0, 0, 1]]
    assert story.seated.at(4.0).tolist() == [0, 1, 0]
    assert story.seated.at(0.5).tolist() == [0, 0, 0]
    assert story.start_s == 1.0


def test_an_empty_log() -> None:
    story = read_log(np.zeros(0, events.EVENT), 2.0, num_instances=1, num_models=2)
    assert (story.start_s, story.intervals, story.transfers) == (2.0, (), ())
    assert story.queued.at(1.0).tolist() == [0, 0]


def test_a_simulation_without_log() -> None:
    simulation = Simulation(EnvConfig(), 1, logging=False)
    with pytest.raises(MmschedError, match="keeps no event log"):
        timeline(simulation, 0)


@pytest.mark.parametrize("steps", [0, 37, 400])
def test_ansi(steps: int) -> None:
    simulation = episode(0, steps)
    text = render_ansi(simulation, 0)
    state = simulation.state[0]
    assert max(len(line) for line in text.splitlines()) <= WIDTH
    assert f"t = {state['now']:.3f} s" in text
    assert "\x1b" not in text
    for name in (*simulation.config.cluster.gpus, *simulation.config.cluster.hosts):
        assert name in text
    for model in state["inst_model"][state["inst_model"] >= 0]:
        assert simulation.config.models.names[model] in text
    oldest = state["window"][0]
    assert f"#{oldest} " in text if oldest >= 0 else "queue empty" in text


def test_gantt_keeps_its_size_and_leaves_the_simulation_alone() -> None:
    early, late = episode(0, 0), episode(0, 400)
    before = late.state.tobytes()
    frame = gantt_array(late, 0)
    assert frame.dtype == np.uint8 and frame.shape[2] == 3
    assert frame.shape == gantt_array(early, 0).shape
    assert frame.shape[0] % 2 == 0 and frame.shape[1] % 2 == 0
    assert gantt_array(late, 0, width=1001, height=503).shape == (503, 1001, 3)
    assert late.state.tobytes() == before
    assert np.array_equal(frame, gantt_array(late, 0))
    assert (frame != 255).mean() > 0.05


def test_gantt_window() -> None:
    simulation = episode()
    lanes, queue = gantt_figure(simulation, 0, start_s=20.0, end_s=50.0).axes
    assert lanes.get_xlim() == queue.get_xlim() == (20.0, 50.0)
    lanes, _ = gantt_figure(episode(0, 0), 0).axes
    assert np.diff(lanes.get_xlim())[0] == pytest.approx(MIN_SPAN_S)


def test_gantt_names_everything() -> None:
    simulation = episode()
    figure = gantt_figure(simulation, 0)
    legends = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert set(simulation.config.models.names) <= set(legends)
    labels = " ".join(text.get_text() for text in figure.axes[0].texts)
    assert all(name in labels for name in simulation.config.cluster.gpus)


def test_env_renders_both_modes() -> None:
    for mode, kind in (("ansi", str), ("rgb_array", np.ndarray)):
        env = gym.make("mmsched/Serving-v0", render_mode=mode)
        env.reset(seed=1)
        assert isinstance(env.render(), kind)
        env.close()


def test_unknown_mode() -> None:
    with pytest.raises(ConfigError, match="unknown render mode 'rgb'"):
        render(episode(0, 0), 0, "rgb")


def test_matplotlib_is_needed_only_by_the_chart() -> None:
    program = """
import sys
sys.modules["matplotlib"] = None
from mmsched_env.config import EnvConfig
from mmsched_env.core import Simulation
from mmsched_env.errors import ConfigError
from mmsched_env.rendering import render
from mmsched_env.workload import GeneratorConfig
simulation = Simulation(EnvConfig(), 1, logging=True)
simulation.reset(0, GeneratorConfig(num_requests=3).sample(0, simulation.config.models.names))
assert "queue" in render(simulation, 0, "ansi")
try:
    render(simulation, 0, "rgb_array")
except ConfigError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install 'mmsched-env[render]'" in done.stdout
