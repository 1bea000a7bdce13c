"""docs/tour.ipynb: runs from top to bottom, and is kept small."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOUR = ROOT / "docs" / "tour.ipynb"
nbformat = pytest.importorskip("nbformat")


def test_the_tour_as_it_is_kept_is_whole_and_small():
    assert TOUR.stat().st_size < 800_000
    notebook = nbformat.read(TOUR, 4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))  # run once, in order
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    pictures = [kind for output in outputs for kind in output.get("data", {}) if kind.startswith("image/")]
    assert len(pictures) >= 7
    told = TOUR.read_text()
    assert "/work/" not in told and "/home/" not in told and "/root/" not in told


@pytest.mark.slow
@pytest.mark.xdist_group("tour")
def test_the_tour_runs_from_top_to_bottom(tour):
    notebook = nbformat.read(tour / TOUR.name, 4)
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    off = [float(line.split("%")[0].split()[-1]) for line in said.splitlines() if "off the board" in line]
    assert off[0] < 12 and off[1] > off[4]  # fifty Euler steps are near the data, two are far
    agreement = next(float(line.split()[1]) for line in said.splitlines() if line.strip().startswith("agreement"))
    assert agreement > 95  # per cent
    for name in ("board/figures/flow.webp", "board/report.html", "digits/figures/classes.png", "digits/report.html"):
        assert (tour / "runs" / "tour" / name).exists()
