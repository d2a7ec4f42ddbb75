"""Observability: metrics, the log and traces."""
