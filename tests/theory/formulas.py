"""Mean values of queues, from the textbooks named in README.md. Rates per second, moments of the service time."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np


def pollaczek_khinchine(rate: float, first: float, second: float) -> float:
    """Mean wait of M/G/1, first come first served."""
    return rate * second / (2 * (1 - rate * first))


def erlang_c(servers: int, offered: float) -> float:
    """Probability that a request of M/M/c waits."""
    terms = [offered**n / math.factorial(n) for n in range(servers)]
    last = offered**servers / math.factorial(servers) * servers / (servers - offered)
    return last / (sum(terms) + last)


def poisson(mean: float, n: int) -> float:
    return math.exp(-mean) * mean**n / math.factorial(n)


def cyclic_polling(rates: np.ndarray, first: np.ndarray, second: np.ndarray, switch_s: float) -> float:
    """Sum of rho_i E[W_i] of queues served exhaustively in a cycle, `switch_s` the switch-over times of a cycle in all.

    The pseudo-conservation law for constant switch-over times. The server goes on cycling when all queues are empty.
    """
    load = rates * first
    rho = load.sum()
    without = rho * (rates * second).sum() / (2 * (1 - rho))
    return float(without + rho * switch_s / 2 + switch_s / (2 * (1 - rho)) * (rho**2 - (load**2).sum()))


def patient_polling(rate: float, first: float, second: float, lst: Callable[[float], float], switch_s: float) -> float:
    """Mean wait of two equal queues, served exhaustively by a server that stays where it is while both are empty.

    `rate` is of both queues together, `lst` the Laplace transform of the service time, `switch_s` each switch. Work
    decomposition: E[W] = Pollaczek-Khinchine + E[Y] / rho, Y the work in the system while the server does not serve.
    Let X >= 1 be the requests of the queue switched to when the switch begins, G its generating function, a = rate / 2,
    b(z) = E[exp(-a (1 - z) P)] for a busy period P of one queue. Arrivals at the queue left alone from the beginning of
    a switch to the end of the visit have the generating function h(z) G(b(z)), h(z) = exp(-a D (1 - z + 1 - b(z))). If
    there are none (probability p), the server idles until an arrival at the other queue, or one at its own, whose busy
    period may bring some: I(z) = (z + b(z) - b(0)) / (2 - b(0)). So G(z) = h(z) G(b(z)) - p (1 - I(z)), which with
    G(0) = 0, iterated from z = 0 towards 1, gives p, and by its derivative at 1 the mean of X.
    """
    a, rho = rate / 2, rate * first

    def b(z: float) -> float:
        value = 0.0
        for _ in range(10_000):
            value = lst(a * (1 - z) + a * (1 - value))
        return value

    b0 = b(0.0)
    product, total, z = 1.0, 0.0, 0.0
    while 1 - z > 1e-13:
        after = b(z)
        total += product * (1 - (z + after - b0) / (2 - b0))
        product *= math.exp(-a * switch_s * (1 - z + 1 - after))
        z = after
    empty = product / total
    slope = (rho / 2) / (1 - rho / 2)  # b'(1)
    waiting = (a * switch_s * (1 + slope) + empty * (1 + slope) / (2 - b0)) / (1 - slope)
    idle_s = empty * 2 / (2 - b0) / rate  # per switch
    work = switch_s / (switch_s + idle_s) * (waiting * first + rho * switch_s / 2)
    return pollaczek_khinchine(rate, first, second) + work / rho
