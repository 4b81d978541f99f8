"""What each placement of each waiting request is expected to cost, as the composite rule reckons it, as tensors.

A network that has to find this in the raw fields spends its training on arithmetic: sums of products, the order in
which instances will leave a GPU, the least over all placements. The rule owns the formulas (`baselines/composite.py`, with
conf/policy's settings); this is their translation into what PyTorch and ONNX can run, and a test holds the two against each other.
One thing is not in the observation: the clock by which the rule's eviction ages what was used long ago (`keep_value`).
"""

from __future__ import annotations

import torch
from torch import Tensor

FIELDS = (
    *("cost", "wait", "service", "price", "harm", "regret", "others", "lead", "urgency"),
    *("possible", "now", "chosen", "first"),
)
"""of the last axis. Seconds in powers of ten: cost = wait + load + service, slowed by busy instances and other loads, + price; price of the
models put out; harm to the requests beside it, over its weight; regret: cost over that of the rule's choice for this
request; others: cost + harm over that; urgency: class weight over the cost of the rule's choice, lead: over the most urgent
request's. 0 or 1: possible; now: something can be done for it at once; chosen: the rule's choice for this request; first: and
this request is the most urgent"""
NEVER_S = 1e6
"""seconds that stand for 'it cannot'"""
LONG_S = 1e4
"""a network sees no difference between more seconds than this"""
SHARING, RETURN_PRICE, HARM, LOADING = 1.0, 0.5, 0.5, 0.5
"""conf/policy/composite.yaml; a test compares"""


class Rows:
    """Named columns of a block's rows (..., F), each picked once: for few rows that costs as much as reckoning with it."""

    def __init__(self, rows: Tensor, columns: dict[str, slice]) -> None:
        self.rows = rows
        self.columns = columns
        self._picked: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        """(...) of a plain field, (..., K) of one with levels."""
        if name not in self._picked:
            column = self.columns[name]
            chosen = self.rows[..., column]
            self._picked[name] = chosen.squeeze(-1) if column.stop - column.start == 1 else chosen
        return self._picked[name]


class GpuState:
    """R GPUs with S instances each, `num_gpus` of them an observation: what is there, what is about to be free.

    Parameters
    ----------
    instances, gpus
        Rows (R, S) and (R), in plain units.
    rates
        (R, S) arrivals per second of each instance's model.
    unloads
        (R, S) 1 where PREEMPT of the whole instance is legal.
    """

    def __init__(self, instances: Rows, gpus: Rows, rates: Tensor, unloads: Tensor, num_gpus: int) -> None:
        self.instances, self.gpus, self.rates = instances, gpus, rates
        still = (instances["num_seated"] == 0) & (instances["draining"] == 0) & (instances["saving"] == 0)
        self.idle = (instances["ready"] > 0) & still
        self.victims = self.idle & (unloads > 0)
        leaving = instances["leaving"] > 0
        self.held_gb = instances["gpu_gb"] + instances["kv_gb"]
        self.left_gb = gpus["free_gb"] + (self.held_gb * leaving).sum(-1)
        self.left_slots = gpus["free_slots"] + leaving.sum(-1)
        soon = leaving | self.idle
        self.cleared_gb = gpus["free_gb"] + (self.held_gb * soon).sum(-1)
        self.cleared_slots = gpus["free_slots"] + soon.sum(-1)
        self.back_s = instances["unload_s"] + instances["reload_s"]
        width = num_gpus * rates.shape[1]
        self._num_gpus = num_gpus
        self._host_of = gpus["host"].unsqueeze(-1).expand_as(rates).reshape(-1, width)  # (B, I)
        self._loads_s = (instances["operation_left_s"] * instances["loading"]).reshape(-1, width)
        self._weights = instances["weight_seated"].reshape(-1, width)

    def seconds_until_room(self, need_gb: Tensor, at: Tensor) -> Tensor:
        """Seconds (P, K) until the GPU of row `at` (P,) has `need_gb` (P, K) if its instances leave as soon as they can."""
        rows, gpus = self.instances, self.gpus
        quiet = (rows["ready"] > 0) & (rows["num_seated"] == 0)
        drained = rows["operation_left_s"] + rows["drain_s"] + rows["unload_s"]
        until = torch.where(quiet, rows["unload_s"], drained)
        until = torch.where(rows["leaving"] > 0, rows["operation_left_s"], until)
        until, order = until.masked_fill(rows["present"] == 0, NEVER_S).sort(-1)
        room = gpus["free_gb"].unsqueeze(-1) + self.held_gb.gather(-1, order).cumsum(-1)  # (R, S)
        until = torch.cat([torch.zeros_like(until[:, :1]), until], -1)
        now = gpus["free_gb"].masked_fill(gpus["free_slots"] == 0, -1.0).unsqueeze(-1)
        enough = torch.cat([now, room], -1)[at].unsqueeze(1) >= need_gb.unsqueeze(-1)  # (P, K, 1 + S)
        return torch.where(enough, until[at].unsqueeze(1), NEVER_S).amin(-1)

    def price_of_room(self, need_gb: Tensor, busy_s: Tensor, at: Tensor) -> Tensor:
        """Seconds (P, K) others are expected to lose by the idle models put out for `need_gb` (P, K) on the GPU of row
        `at`: their reloads, each by the chance that its model is asked for within `busy_s`."""
        idle = self.idle.float()
        size = (self.instances["gpu_gb"] * idle).sum(-1)
        again = 1 - torch.exp(-self.rates[at].unsqueeze(1) * busy_s.unsqueeze(-1))  # (P, K, S)
        missing = (need_gb - self.left_gb[at].unsqueeze(-1)).clamp(min=0.0)
        share = (missing / size.clamp(min=1e-3)[at].unsqueeze(-1)).clamp(max=1.0)
        needed = (missing > 0) | (self.left_slots <= 0)[at].unsqueeze(-1)
        return (again * (self.back_s * idle)[at].unsqueeze(1)).sum(-1) * share * needed

    def loads_slowed(self, load_s: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """(P, K) seconds, and weighted ones: what loads of `load_s` (P, K) on the GPUs of rows `at` and the loads under way on
        their hosts take longer by each other; the second for the requests that wait for those."""
        env = at // self._num_gpus
        same = self._host_of[env] == self.gpus["host"][at].unsqueeze(-1)  # (P, I)
        both = torch.minimum(load_s.unsqueeze(-1), (self._loads_s[env] * same).unsqueeze(1))  # (P, K, I)
        return both.sum(-1), (both * self._weights[env].unsqueeze(1)).sum(-1)

    def can_clear(self, need_gb: Tensor, at: Tensor) -> Tensor:
        """(P, K) unloading idle models gives room, and is what it takes."""
        there = (self.left_gb[at].unsqueeze(-1) >= need_gb) & (self.left_slots > 0)[at].unsqueeze(-1)
        enough = (self.cleared_gb[at].unsqueeze(-1) >= need_gb) & (self.cleared_slots > 0)[at].unsqueeze(-1)
        return ~there & enough & self.victims.any(-1)[at].unsqueeze(-1)

    def keep_value(self) -> Tensor:
        """(R, S) what an eviction by greedy-dual-size-frequency goes by, but for its clock: uses x reload seconds / GB."""
        rows = self.instances
        return rows["uses"] * rows["reload_s"] / rows["gpu_gb"].clamp(min=1e-3)


class Own:
    """Each pair's own instance: that of the request's model on the GPU, if there is one."""

    def __init__(self, gpus: GpuState, model: Tensor, at: Tensor) -> None:
        there = Rows(gpus.instances.rows[at], gpus.instances.columns)  # (P, S, F)
        self.here = (there["present"] > 0) & (there["model"] == model.unsqueeze(-1))  # (P, S), one at most
        self.resident = self.here.any(-1, keepdim=True)
        self._own = Rows((there.rows * self.here.unsqueeze(-1)).sum(-2, keepdim=True), there.columns)

    def __getitem__(self, name: str) -> Tensor:
        """(P, 1) of a plain field, zero where there is none."""
        return self._own[name]


def estimates(
    requests: Rows, pairs: Rows, gpus: GpuState, legal: Tensor, request_at: Tensor, at: Tensor, env: Tensor, count: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """(P, K, len(FIELDS)) of P pairs of a request and a GPU, and some of it in plain units.

    Parameters
    ----------
    requests, pairs
        Rows (N) and (P), in plain units.
    legal
        (P, K) 1 where DISPATCH is.
    request_at, at
        (P,) rows in `requests` and `gpus`.
    env, count
        (N,) which of the `count` observations a request is of.
    """
    legal = legal > 0
    need = pairs["gpu_need_gb"]
    left = (requests["predicted_tokens"] - requests["generated_tokens"]).clamp(min=1.0)[request_at].unsqueeze(-1)
    weight = requests["weight"].clamp(min=1e-3)[request_at].unsqueeze(-1)
    service = pairs["prefill_s"] + left * pairs["token_s"]
    waiting = env.shape[0]  # not len(): an export would take the number for a constant
    own = Own(gpus, requests["model"][request_at], at)
    level = torch.arange(need.shape[1], device=need.device)
    may_join = (own["level"] == level) & (own["leaving"] == 0)
    wait_to_join = torch.where(may_join, own["next_finish_s"], NEVER_S)
    wait = torch.where(own.resident, wait_to_join, gpus.seconds_until_room(need, at))
    wait = wait.masked_fill(legal, 0.0)
    fits = pairs["fits"] > 0
    unload, seconds = _in_the_way(own, gpus, fits & ~legal & (own["level"] == level), need, service, at)
    reach = torch.minimum(wait + pairs["load_s"] + service, torch.where(unload, seconds, NEVER_S))
    busy = gpus.gpus["num_busy"][at].unsqueeze(-1) - (own["num_seated"] > 0).float()
    price = gpus.price_of_room(need, pairs["load_s"] + service, at) * ~own.resident
    possible = fits & (wait < NEVER_S) | unload
    mine, theirs = gpus.loads_slowed(pairs["load_s"], at)
    mine = mine - torch.minimum(pairs["load_s"], own["operation_left_s"] * own["loading"])
    cost = reach + SHARING * busy * service + LOADING * mine + RETURN_PRICE * price
    cost = torch.where(possible, cost, NEVER_S)
    now = possible & (unload | legal | ~own.resident & gpus.can_clear(need, at))
    harm = _harm(own, gpus, pairs, left, service, at) + LOADING * theirs * ~own.resident
    kind = cost + HARM * harm / weight
    chosen = _choice(cost, kind, now, possible & _allowed(fits, own.resident, request_at, waiting), request_at, waiting)
    best = sums((cost * chosen).sum(-1), request_at, waiting)
    served = sums(chosen.sum(-1).float(), request_at, waiting) > 0
    best = torch.where(served, best, NEVER_S)
    urgency = torch.log10(requests["weight"].clamp(min=1e-3) / best.clamp(min=1e-3))
    ready = served & (requests["ready"] > 0)
    most = urgency.new_full((count,), -9.0).scatter_reduce(0, env, urgency.masked_fill(~ready, -9.0), "amax")[env]
    first = (ready & (urgency >= most))[request_at].unsqueeze(-1) & chosen
    least = best[request_at].unsqueeze(-1).expand_as(cost)
    in_seconds = torch.stack([cost, wait, service, price, harm / weight, kind, least], -1)
    *fields, decades_kind, least = log1p10(in_seconds.clamp(max=LONG_S)).unbind(-1)
    fields += [fields[0] - least, decades_kind - least]
    fields += [x[request_at].unsqueeze(-1).expand_as(cost) for x in (urgency - most, urgency)]
    fields += [x.float() for x in (possible, now, chosen, first)]
    return torch.stack(fields, -1), {"cost": cost, "harm": harm, "now": now, "chosen": chosen}


def _in_the_way(
    own: Own, gpus: GpuState, wanted: Tensor, need: Tensor, service: Tensor, at: Tensor
) -> tuple[Tensor, Tensor]:
    """(P, K) an idle model is to be unloaded so that the request can join its instance, and the seconds it takes then."""
    open_to_join = (own["ready"] > 0) & (own["draining"] == 0) & (own["free_seats"] > 0) & (own["num_seated"] > 0)
    short = (gpus.left_gb[at].unsqueeze(-1) < need) & (gpus.cleared_gb[at].unsqueeze(-1) >= need)
    others = gpus.victims[at] & ~own.here  # (P, S)
    value = torch.where(others, gpus.keep_value()[at], torch.inf)
    victim = value.argmin(-1, keepdim=True)
    rate, back = gpus.rates[at].gather(1, victim), gpus.back_s[at].gather(1, victim)
    price = (1 - torch.exp(-rate * service)) * back
    seconds = gpus.instances["unload_s"][at].gather(1, victim) + service + RETURN_PRICE * price
    better = seconds < own["next_finish_s"] + service
    return wanted & open_to_join & short & others.any(-1, keepdim=True) & better, seconds


def _harm(own: Own, gpus: GpuState, pairs: Rows, left: Tensor, service: Tensor, at: Tensor) -> Tensor:
    """Weighted seconds (P, K) that the requests beside it lose: those of its own instance by a larger batch and its
    prefill, those of others by one more that is busy."""
    seated = own["num_seated"] > 0
    tokens = torch.minimum(left, own["longest_left_tokens"])
    slower = pairs["prefill_s"] + tokens * (pairs["token_s"] - own["step_s"]).clamp(min=0.0)
    alone = torch.where(seated, (service - own["drain_s"]).clamp(min=0.0), service)
    weights = gpus.instances["weight_seated"][at] * ~own.here
    beside = torch.minimum(alone.unsqueeze(-1), gpus.instances["drain_s"][at].unsqueeze(1)) * weights.unsqueeze(1)
    return own["weight_seated"] * seated * slower + beside.sum(-1)


def _allowed(fits: Tensor, resident: Tensor, request_at: Tensor, count: int) -> Tensor:
    """(P, K) levels at which the rule would load: whole where some GPU holds the model whole, else as deep as it goes."""
    levels = fits.shape[1]
    number = torch.arange(levels, device=fits.device)
    deepest = torch.where(fits, number, -1).amax(-1, keepdim=True)
    whole = sums(fits[:, -1].float(), request_at, count) > 0
    spills = (deepest == levels - 1) | ~whole[request_at].unsqueeze(-1)
    return resident | (spills & (number >= deepest))


def _choice(cost: Tensor, kind: Tensor, now: Tensor, allowed: Tensor, request_at: Tensor, count: int) -> Tensor:
    """(P, K) true at one place of each request, its least costly; where that is one at which it need not wait, the one of
    these that is kindest to others too."""
    soonest = _least(cost, allowed, request_at, count)
    waits = sums((soonest & ~now).sum(-1).float(), request_at, count) > 0
    waiting = waits[request_at].unsqueeze(-1)
    return (soonest & waiting) | (_least(kind, allowed & now, request_at, count) & ~waiting)


def _least(cost: Tensor, among: Tensor, request_at: Tensor, count: int) -> Tensor:
    """(P, K) true at the first of the least costs of each request."""
    cost = torch.where(among, cost, torch.inf)
    least = cost.new_full((count,), torch.inf).scatter_reduce(0, request_at, cost.amin(-1), "amin")
    places = torch.arange(cost.numel(), device=cost.device, dtype=torch.float32).view_as(cost)
    places = torch.where(among & (cost <= least[request_at].unsqueeze(-1)), places, torch.inf)
    first = cost.new_full((count,), torch.inf).scatter_reduce(0, request_at, places.amin(-1), "amin")
    return among & (places == first[request_at].unsqueeze(-1))


def sums(rows: Tensor, at: Tensor, count: int) -> Tensor:
    """Sums (count, ...) of the rows (P, ...) that belong to each place `at` (P,). Not by index_add: ONNX has none."""
    where = at.view(-1, *[1] * (rows.dim() - 1)).expand_as(rows)
    return rows.new_zeros(count, *rows.shape[1:]).scatter_add(0, where, rows)


def log1p10(x: Tensor) -> Tensor:
    """sign(x) log10(1 + |x|)."""
    return torch.sign(x) * torch.log1p(torch.abs(x)) * 0.4342944819
