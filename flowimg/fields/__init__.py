"""Velocity fields: networks `(x, t, cond=None) -> v`, and guidance over them."""
