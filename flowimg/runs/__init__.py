"""A run's folder: what lies where, opening it again, its lock, status, signals, resuming and metrics."""
