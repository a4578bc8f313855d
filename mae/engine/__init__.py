"""Machinery of both stages: no task, no data."""
