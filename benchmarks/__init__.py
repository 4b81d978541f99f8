"""Speed, a concern a file; `mmsched bench` runs them. Rates are only comparable within one run on one machine."""
