"""`mmsched calibrate replay`: hardware in the loop. The same policy drives real servers and the simulator.

scenarios.py  small models, memory for fewer of them, and what is asked of them
moves.py      the simulator's state moved on by what really happened, compiled
mirror.py     a `Simulation` kept so: the observation, the mask and the event log of the real system
real.py       servers, streams of tokens, loads, unloads, saves and restores, driven by a policy
timings.py    measured figures to the cost tables of these very models
intents.py    what real decisions were meant to do, in a simulation at another token
retime.py     the simulator made to take the decisions of a real run
compare.py    errors, and the real runs' own spread beside them
plots.py      scatter and timelines
report.py     all of it in words and tables
kept.py       runs in files, to be compared again
command.py    the command
"""
