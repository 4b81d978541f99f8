"""Scheduling rules the field deploys or publishes, one file each; the first line says where it comes from."""
