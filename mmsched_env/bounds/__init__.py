"""How good any schedule can be: an exact optimum of tiny episodes, a lower bound on large ones.

exact.py    branch and bound over the simulator's own decisions, true lengths known
search.py   the search, compiled over the kernel
fluid.py    one pooled machine with free switching: a lower bound on the weighted mean E2E latency
"""
