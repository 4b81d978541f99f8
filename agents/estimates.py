"""What each placement of each waiting request is expected to cost: after the composite rule, as tensors.

A network that has to find them in the raw fields spends its training on arithmetic: sums of products, the order in
which instances will leave a GPU, the least over all placements. They follow `baselines/composite.py` as it was
before it counted harm to others and preempted; no test compares the two.
"""

from __future__ import annotations

import torch
from torch import Tensor

FIELDS = ("cost", "wait", "service", "price", "regret", "urgency", "possible", "at_once")
"""of the last axis: cost = wait + load + service, slowed by busy instances, + price; price of the models put out; regret:
cost over that of the request's best placement; urgency: class weight over cost. All but the last two in powers of ten"""
NEVER_S = 1e4
"""seconds that stand for 'it cannot'"""
RETURN_PRICE = 0.5
"""as the composite rule's default"""


class Rows:
    """Named columns of a block's rows (..., F)."""

    def __init__(self, rows: Tensor, columns: dict[str, slice]) -> None:
        self._rows = rows
        self._columns = columns

    def __getitem__(self, name: str) -> Tensor:
        """(...) of a plain field, (..., K) of one with levels."""
        column = self._columns[name]
        chosen = self._rows[..., column]
        return chosen.squeeze(-1) if column.stop - column.start == 1 else chosen


def held_gb(instances: Rows) -> Tensor:
    return instances["gpu_gb"] + instances["kv_gb"]


def idle(instances: Rows) -> Tensor:
    """Loaded, serving nobody, free to be unloaded."""
    still = (instances["num_seated"] == 0) & (instances["draining"] == 0) & (instances["saving"] == 0)
    return (instances["ready"] > 0) & still


def seconds_until_room(need_gb: Tensor, at: Tensor, instances: Rows, gpus: Rows) -> Tensor:
    """Seconds (P, K) until the GPU of row `at` (P,) has `need_gb` (P, K) if its instances leave as soon as they can."""
    drained = instances["operation_left_s"] + instances["drain_s"] + instances["unload_s"]
    until = torch.where(idle(instances), instances["unload_s"], drained)
    until = torch.where(instances["leaving"] > 0, instances["operation_left_s"], until)
    until = until.masked_fill(instances["present"] == 0, NEVER_S)
    until, order = until.sort(-1)
    room = gpus["free_gb"].unsqueeze(-1) + held_gb(instances).gather(-1, order).cumsum(-1)  # (R, S)
    until = torch.cat([torch.zeros_like(until[:, :1]), until], -1)
    now = gpus["free_gb"].masked_fill(gpus["free_slots"] == 0, -1.0).unsqueeze(-1)
    enough = torch.cat([now, room], -1)[at].unsqueeze(1) >= need_gb.unsqueeze(-1)  # (P, K, 1 + S)
    return torch.where(enough, until[at].unsqueeze(1), NEVER_S).amin(-1)


def price_of_room(need_gb: Tensor, busy_s: Tensor, at: Tensor, instances: Rows, rates: Tensor, gpus: Rows) -> Tensor:
    """Seconds (P, K) others are expected to lose by the idle models put out for `need_gb` (P, K) on the GPU of row `at`:
    their reloads, each by the chance that its model, asked for at `rates` (R, S), is wanted again within `busy_s`."""
    leaving = instances["leaving"] > 0
    room = gpus["free_gb"] + (held_gb(instances) * leaving).sum(-1)
    free = gpus["free_slots"] + leaving.sum(-1)
    victims = idle(instances).float()
    size = (instances["gpu_gb"] * victims).sum(-1)
    back = (instances["unload_s"] + instances["reload_s"]) * victims
    again = 1 - torch.exp(-rates[at].unsqueeze(1) * busy_s.unsqueeze(-1))  # (P, K, S)
    missing = (need_gb - room[at].unsqueeze(-1)).clamp(min=0.0)
    share = (missing / size.clamp(min=1e-3)[at].unsqueeze(-1)).clamp(max=1.0)
    needed = (missing > 0) | (free <= 0)[at].unsqueeze(-1)
    return (again * back[at].unsqueeze(1)).sum(-1) * share * needed


def estimates(
    requests: Rows, pairs: Rows, instances: Rows, gpus: Rows, rates: Tensor, request_at: Tensor, at: Tensor
) -> tuple[Tensor, Tensor]:
    """(P, K, len(FIELDS)) of P pairs of a request and a GPU, and the expected cost in seconds (P, K), at most `NEVER_S`.

    Parameters
    ----------
    requests, pairs, instances, gpus
        Rows (N), (P), (R, S) and (R), in plain units.
    rates
        (R, S) arrivals per second of each instance's model.
    request_at, at
        (P,) rows in `requests` and in `gpus`.
    """
    left = (requests["predicted_tokens"] - requests["generated_tokens"]).clamp(min=1.0)
    service = pairs["prefill_s"] + left[request_at].unsqueeze(-1) * pairs["token_s"]
    need = pairs["gpu_need_gb"]

    model = torch.where(instances["present"] > 0, instances["model"], -1.0)
    here = (model[at] == requests["model"][request_at].unsqueeze(-1)).float()  # (P, S), one 1 at most
    resident = here.any(-1, keepdim=True)
    names = ("free_seats", "draining", "next_finish_s", "level", "leaving", "num_seated")
    chosen = (torch.stack([instances[name] for name in names], -1)[at] * here.unsqueeze(-1)).sum(1)
    seats, draining, next_finish, level, leaving, seated = chosen.unsqueeze(1).unbind(-1)  # (P, 1) each
    joins = (seats > 0) & (draining == 0) & (need <= gpus["free_gb"][at].unsqueeze(-1) + 1e-3)
    wait_to_join = torch.where(joins, 0.0, next_finish)
    may_join = (level == torch.arange(need.shape[-1], device=need.device)) & (leaving == 0)
    wait_to_load = seconds_until_room(need, at, instances, gpus)
    wait = torch.where(resident, wait_to_join, wait_to_load)
    possible = (pairs["fits"] > 0) & torch.where(resident, may_join, wait_to_load < NEVER_S)

    price = price_of_room(need, pairs["load_s"] + service, at, instances, rates, gpus) * ~resident
    others = gpus["num_busy"][at].unsqueeze(-1) - (seated > 0).float()
    cost = wait + pairs["load_s"] + service * (1 + others) + RETURN_PRICE * price
    cost = torch.where(possible, cost, NEVER_S).clamp(max=NEVER_S)
    best = torch.full_like(left, NEVER_S).scatter_reduce(0, request_at, cost.amin(-1), "amin")[request_at].unsqueeze(-1)
    weight = requests["weight"].clamp(min=1e-3)[request_at].unsqueeze(-1)
    scales = log1p10(torch.stack([cost, wait.clamp(max=NEVER_S), service, price, best.expand_as(cost)], -1))
    fields = [
        scales[..., :4],
        (scales[..., 0] - scales[..., 4]).unsqueeze(-1),
        torch.log10(weight / cost.clamp(min=1e-3)).unsqueeze(-1),
        torch.stack([possible, possible & (wait <= 0)], -1).float(),
    ]
    return torch.cat(fields, -1), cost


def log1p10(x: Tensor) -> Tensor:
    """sign(x) log10(1 + |x|)."""
    return torch.sign(x) * torch.log1p(torch.abs(x)) * 0.4342944819
