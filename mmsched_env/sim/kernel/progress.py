"""How far running requests are, and plans that no longer say when they end: for copies whose hidden facts are redrawn."""

from ..jit import kernel_entry_point
from ..state import CHUNK, DECODE, DECODING, MIXED, NO_ITERATION
from .batching import stop_soon


@kernel_entry_point
def forget_plans(state, params, requests, tokens):
    """End every running plan with its present iteration, and write to `tokens` [N, R] how many output tokens each request
    will have by then at least.

    A plan reaches to the end of its shortest request, so it tells a true output length.
    """
    for e in range(state.shape[0]):
        s = state[e]
        p = params[e % params.shape[0]]
        r = requests[e]
        for j in range(s.num_requests):
            tokens[e, j] = r[j].generated
        for i in range(s.it_kind.shape[0]):
            kind = s.it_kind[i]
            if kind == NO_ITERATION:
                continue
            if s.it_share_gpu[i] > 0.0:
                stop_soon(s, i)
            if kind == DECODING or (kind == CHUNK and p.prefill_mode == MIXED):
                for b in range(s.seat.shape[1]):
                    j = s.seat[i, b]
                    if j >= 0 and r[j].phase == DECODE:
                        tokens[e, j] = r[j].generated + s.it_before[i] + s.it_count[i]
            if kind == CHUNK and s.it_request[i] >= 0:
                tokens[e, s.it_request[i]] += 1
