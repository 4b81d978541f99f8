"""Running policies on the same traces and comparing them.

rollout.py    one episode of one policy
policies.py   policies by name or checkpoint path
stats.py      means over episodes, paired differences with intervals
report.py     the comparison table, requests.parquet and summary.json
__main__.py   `mmsched evaluate`
cells.py      its episodes, each kept in a file
tune.py       `mmsched tune`: settings of a rule for a family of scenarios
tuned.py      what has been found
leaderboard.py `mmsched leaderboard`: runs as one page of Markdown
"""
