"""A second simulator, written from docs/dynamics.md alone; slow, and meant to be read beside that page.

Where the page can be read in two ways, a comment that begins with "Reading:" says which way was taken.
"""
