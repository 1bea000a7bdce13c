"""Two test workers on two cores: one thread each, here and in what the tests start, or they spin for each other."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Decoded pictures are kept for the length of the tests, each process of theirs by itself."""
    os.environ["FLOWIMG_CACHE"] = str(tmp_path_factory.mktemp("flowimg-cache"))
