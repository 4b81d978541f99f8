"""The dynamics, compiled: one concern a file, one way in (step.py).

arrays.py     filling and copying
memory.py     bytes on GPUs and hosts, the host's weight cache
logbook.py    writing the event log
waiting.py    the queue of waiting requests and its window
costs.py      seconds of an iteration, from the cost arrays
transfers.py  operations as serial stages; disks and links shared max-min
batching.py   continuous batching: plan, re-time and finish iterations
requests.py   binding a request to an instance, taking it off, finishing it
operations.py load, evict, save and resize: what their stages are and what happens after each
actions.py    which actions are legal, and what they do
clock.py      next event, and everything that happens at one instant
encoder.py    writing the observation
step.py       reset_batch and step_batch
progress.py   how far running requests are, for copies whose hidden facts are redrawn
checks.py     invariants recounted after a step, for debugging

Arguments everywhere: `s` one STATE record, `p` one PARAMS record, `r` the trace's REQUEST records, `log` EVENT rows.
"""
