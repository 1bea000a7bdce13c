"""What the tests of the jobs share: figures that are put together and not drawn."""

import pytest
from matplotlib.figure import Figure
from PIL import Image


class Draft(Figure):
    """A figure whose file is an empty picture of its size: to draw it takes longer than a tiny run."""

    def __init__(self, figsize, layout):
        super().__init__(figsize)

    def savefig(self, path, dpi):
        width, height = (self.get_size_inches() * dpi).astype(int).tolist()
        Image.new("L", (width, height)).save(path)


@pytest.fixture(autouse=True)
def drafts(request, monkeypatch):
    """That figures are right is held by tests/figures; slow tests draw them, and animations are coarse."""
    if not request.node.get_closest_marker("slow"):
        monkeypatch.setattr("flowimg.figures.style.DPI", 30)
        monkeypatch.setattr("flowimg.figures.style.Figure", Draft)
