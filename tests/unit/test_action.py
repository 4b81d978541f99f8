"""The flat action index and back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsched_env.action import WAIT, Action, ActionLayout, Kind
from mmsched_env.config import LimitsConfig
from mmsched_env.sim.state import SCOPE_INSTANCE, SCOPE_REQUEST, Dims

DEFAULT = ActionLayout(Dims.of(LimitsConfig()))
sizes = st.builds(
    Dims,
    Q=st.integers(1, 5),
    G=st.integers(1, 4),
    H=st.just(1),
    M=st.just(1),
    S=st.integers(1, 3),
    B=st.just(1),
    K=st.integers(1, 5),
)


def encode(layout: ActionLayout, action: Action) -> int:
    instance = action.gpu * layout.dims.S + action.slot
    if action.kind == Kind.DISPATCH:
        return layout.dispatch(action.queue_slot, action.gpu, action.level)
    if action.kind == Kind.PREEMPT:
        return layout.preempt(instance, action.scope == SCOPE_INSTANCE)
    return layout.offload(instance, action.level) if action.kind == Kind.OFFLOAD else WAIT


def test_default_layout_is_as_documented() -> None:
    """1 + Q G K + 2 G S + G S K with Q = 16, G = 4, S = 3, K = 5."""
    assert DEFAULT.size == 1 + 16 * 4 * 5 + 2 * 12 + 12 * 5 == 405
    assert DEFAULT.dispatch(0, 0, 0) == 1 and DEFAULT.dispatch(2, 1, 3) == 1 + (2 * 4 + 1) * 5 + 3
    assert DEFAULT.preempt(0) == 321 and DEFAULT.preempt(4, whole_instance=False) == 321 + 9
    assert DEFAULT.offload(0, 0) == 345 and DEFAULT.offload(11, 4) == 404


@settings(max_examples=40, derandomize=True, deadline=None)
@given(sizes)
def test_every_index_is_one_action(dims: Dims) -> None:
    layout = ActionLayout(dims)
    actions = [layout.decode(index) for index in range(layout.size)]
    assert len(set(actions)) == layout.size
    assert [encode(layout, action) for action in actions] == list(range(layout.size))
    for action in actions:
        assert action.queue_slot < dims.Q and action.gpu < dims.G and action.slot < dims.S and action.level < dims.K


def test_fields_that_do_not_belong_are_minus_one() -> None:
    assert DEFAULT.decode(WAIT) == Action(Kind.WAIT)
    assert DEFAULT.decode(DEFAULT.dispatch(3, 2, 1)) == Action(Kind.DISPATCH, queue_slot=3, gpu=2, level=1)
    assert DEFAULT.decode(DEFAULT.preempt(7, False)) == Action(Kind.PREEMPT, gpu=2, slot=1, scope=SCOPE_REQUEST)
    assert DEFAULT.decode(DEFAULT.offload(7, 4)) == Action(Kind.OFFLOAD, gpu=2, slot=1, level=4)


@pytest.mark.parametrize("index", [-1, 405])
def test_outside(index: int) -> None:
    with pytest.raises(IndexError, match=f"action {index} is outside 0..404"):
        DEFAULT.decode(index)


def test_words() -> None:
    texts = [str(DEFAULT.decode(index)) for index in range(DEFAULT.size)]
    assert len(set(texts)) == len(texts)
    assert texts[DEFAULT.dispatch(3, 2, 1)] == "DISPATCH queue slot 3 to GPU 2 at level 1"
    assert texts[DEFAULT.preempt(7)] == "PREEMPT instance 1 on GPU 2"
    assert texts[DEFAULT.preempt(7, False)] == "PREEMPT longest request of instance 1 on GPU 2"
    assert texts[DEFAULT.offload(7, 4)] == "OFFLOAD instance 1 on GPU 2 to level 4"
