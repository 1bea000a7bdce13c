"""Two test workers on two cores: one thread each, here and in what the tests start, or they spin for each other."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
