"""Whole episodes of a rule in compiled code, no Python between decisions."""

from __future__ import annotations

from pathlib import Path

from mmsched_env.sim.jit import entry_point


def _play_batch(  # type: ignore[no-untyped-def]
    decide,
    step,
    limit,
    knobs,
    memories,
    rewards,
    decisions,
    state,
    params,
    requests,
    logs,
    actions,
    outcomes,
    flat,
    observations,
    masks,
):
    """Let a rule decide for every environment until its episode ends, `limit` times at most.

    `decide` is the rule and `step` the kernel's step_batch, both called by address: they are compiled once, by themselves.
    Adds up the `rewards` (N,) and the number of `decisions` (N,). The rule sees what the kernel writes.
    """
    for e in range(memories.shape[0]):
        one = slice(e, e + 1)
        same = e % params.shape[0]
        p = params[same : same + 1]
        for _ in range(limit):
            if outcomes[e].terminated + outcomes[e].truncated + outcomes[e].stalled > 0:
                break
            decide(observations[one], masks[one], memories[one], knobs, actions[one])
            step(
                state[one],
                p,
                requests[one],
                logs[one],
                actions[one],
                outcomes[one],
                flat[one],
                observations[one],
                masks[one],
            )
            rewards[e] += outcomes[e].reward
            decisions[e] += 1


play_batch = entry_point(_play_batch, (Path(__file__),), makes_arrays=False)
