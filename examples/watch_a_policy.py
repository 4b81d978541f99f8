"""Watch a rule think: print the text view now and then, and save a Gantt chart of the episode.

python examples/watch_a_policy.py mect gantt.png
"""

from __future__ import annotations

import sys

import gymnasium
from matplotlib.image import imsave

import mmsched_env  # noqa: F401  (registers mmsched/Serving-v0)
from mmsched_env.evaluation.policies import make_policy


def main(policy_name: str, picture: str) -> None:
    config = {"workload": {"kind": "generator", "num_requests": 120, "rate_per_s": 1.0}}
    env = gymnasium.make("mmsched/Serving-v0", config=config, render_mode="rgb_array")
    text = gymnasium.make("mmsched/Serving-v0", config=config, render_mode="ansi")
    _, policy = make_policy(policy_name)
    for view in (env, text):
        view.reset(seed=7)
    observation, info = env.reset(seed=7)
    policy.reset(env.unwrapped.layout, seed=0)
    done, steps = False, 0
    while not done:
        action = policy.act(observation, observation["action_mask"])
        observation, _, terminated, truncated, info = env.step(action)
        text.step(action)
        done = terminated or truncated
        steps += 1
        if steps % 150 == 0:
            print(text.render())
    imsave(picture, env.render())
    print({name: round(info["metrics"][name], 3) for name in ("mean_ttft_ms", "mean_e2e_ms", "slo_attainment")})


if __name__ == "__main__":
    main(*sys.argv[1:])
