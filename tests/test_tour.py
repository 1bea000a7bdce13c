"""docs/tour.ipynb: it runs from top to bottom, what it trains is good, and it is kept small."""

import json
from pathlib import Path

import pytest

from flowimg.cli import main
from flowimg.machine.cores import cores

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
def test_the_tour_runs_and_its_digits_are_digits_neither_copies_nor_averages(tmp_path, monkeypatch):
    """The notebook from top to bottom; it trains the digits as the README's first command does."""
    nbclient = pytest.importorskip("nbclient")
    # the longest slow test: a second core is its own once the others end, and is left where its threads would spin
    monkeypatch.setenv("OMP_NUM_THREADS", str(min(cores(), 2)))
    monkeypatch.setenv("GOMP_SPINCOUNT", "2000")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    notebook = nbformat.read(TOUR, 4)
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=None, startup_timeout=600, resources=where).execute()
    nbformat.write(notebook, tmp_path / TOUR.name)
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    off = [float(line.split("%")[0].split()[-1]) for line in said.splitlines() if "off the board" in line]
    assert off[0] < 12 and off[1] > off[4]  # fifty Euler steps are near the data, two are far
    agreement = next(float(line.split()[1]) for line in said.splitlines() if line.strip().startswith("agreement"))
    assert agreement > 95  # per cent
    runs = tmp_path / "runs" / "tour"
    for name in ("board/figures/flow.webp", "board/report.html", "digits/figures/classes.png", "digits/report.html"):
        assert (runs / name).exists()

    run = runs / "digits"
    assert (run / "samples" / "step_00000550.png").exists()
    how = ["--solver", "ab2", "--num-steps", "16"]  # as near to the flow as 50 steps of Euler
    main(["evaluate", str(run), *how])
    plain = json.loads((run / "evaluations.jsonl").read_text().splitlines()[-1])
    assert plain["agreement"] >= 0.97
    assert plain["spread"] >= 0.9
    assert plain["nearest"] >= 0.9
    main(["evaluate", str(run), *how, "--guidance", "2"])
    assert json.loads((run / "evaluations.jsonl").read_text().splitlines()[-1])["agreement"] >= 0.99
