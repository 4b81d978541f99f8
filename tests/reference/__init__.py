"""A second simulator, written from docs/dynamics.md alone; slow, and meant to be read beside that page."""
