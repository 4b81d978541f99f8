"""Writing the event log."""

from ..jit import compiled


@compiled
def record(s, log, kind, request, instance, model, level, value):
    """Append a row if the episode is logged. The caller of step_batch sees to it that there is room."""
    if s.logging == 0:
        return
    row = log[s.log_length]
    row.time_s = s.now
    row.value = value
    row.kind = kind
    row.request = request
    row.instance = instance
    row.model = model
    row.level = level
    row.seq = s.log_length
    s.log_length += 1
