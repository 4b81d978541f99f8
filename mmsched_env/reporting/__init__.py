"""`mmsched report`: one self-contained page about a run of `mmsched evaluate`.

run.py       reading requests.parquet and summary.json
figures.py   pictures over all requests (matplotlib)
timelines.py one episode played again: slots over time, to zoom in (plotly)
page.py      the page, and the pictures as files
"""
