"""Every test of the data has a cache of its own."""

import datasets
import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """The cache folder of this test, for us and for datasets."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FLOWIMG_CACHE", str(folder))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets")
    return folder
