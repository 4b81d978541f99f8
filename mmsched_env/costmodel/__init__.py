"""Profiles with provenance -> arrays of seconds and bytes."""
