"""The simulator: records (state.py), event log (events.py) and the compiled dynamics (kernel/)."""
