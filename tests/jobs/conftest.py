"""What the tests of the jobs share: figures that are drawn fast."""

import pytest
from matplotlib.figure import Figure


@pytest.fixture(autouse=True)
def drafts(request, monkeypatch):
    """Figures are coarse and not laid out: a full one takes longer than a tiny run. Slow tests look at full ones."""
    if not request.node.get_closest_marker("slow"):
        monkeypatch.setattr("flowimg.figures.style.DPI", 30)
        monkeypatch.setattr("flowimg.figures.style.Figure", lambda figsize, layout: Figure(figsize))
