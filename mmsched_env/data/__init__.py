"""Shipped data: measurements with their sources, and the profiles fitted from them. Files only."""
