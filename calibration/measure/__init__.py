"""`mmsched calibrate measure`: what one box can do, measured on it.

points.py       what to measure: a point is one figure, a preset is a list of them
backend.py      what an engine must offer; llama_cpp.py, torch_backend.py and http_backend.py offer it
launchers.py    llama-servers started and ended, in a pinned process or as the user built them; build.py builds one
beside.py       what goes on beside a figure
http_api.py     the OpenAI API, and what llama-swap and Ollama add to it
disturbance.py  what else the box did beside a sample
runner.py       rounds of samples in random order, redone where disturbed, kept where they end
results.py      the file of samples, appended to, and the lock of its folder
rows.py         samples to rows of the measurement schema
profiles.py     rows to a GPU and a host profile
again.py        two measurements of one box
machine.py      the box in words
command.py      the command
"""
