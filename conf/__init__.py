"""Hydra configuration (YAML); a package so that it is found once installed."""
