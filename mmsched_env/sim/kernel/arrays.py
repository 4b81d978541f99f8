"""Filling and copying, written as loops: Numba's slice assignment takes three to ten times as long."""

from ..jit import compiled


@compiled
def fill(array, value):
    """Every element of a one-dimensional array."""
    for at in range(array.shape[0]):
        array[at] = value


@compiled
def copy(target, source):
    """One-dimensional arrays of one length."""
    for at in range(target.shape[0]):
        target[at] = source[at]
