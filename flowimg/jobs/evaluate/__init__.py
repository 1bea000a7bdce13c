"""`flowimg evaluate`: a run's samples against its data, in figures; with limits, a gate; with a sweep, a curve."""
