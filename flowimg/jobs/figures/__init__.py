"""`flowimg figures`, and the end of every run: the flow made visible, in RUN/figures."""
