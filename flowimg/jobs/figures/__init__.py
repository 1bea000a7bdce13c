"""`flowimg figures`, which every run also does at its end: figures of the flow and the training, in RUN/figures."""
