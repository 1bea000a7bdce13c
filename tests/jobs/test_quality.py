"""The README's first run, whole: the digits are digits, of the class asked for, and neither copies nor averages."""

import json

import pytest

from flowimg.cli import main


@pytest.mark.slow
@pytest.mark.xdist_group("tour")
def test_digits_are_digits(tour):
    run = tour / "runs" / "tour" / "digits"  # which the tour trains, as the README does
    assert (run / "samples" / "step_00000550.png").exists()
    main(["evaluate", str(run), "--precision", "bf16", "--num-steps", "50"])
    plain = json.loads((run / "evaluations.jsonl").read_text().splitlines()[-1])
    assert plain["agreement"] >= 0.97
    assert plain["spread"] >= 0.9
    assert plain["nearest"] >= 0.9
    main(["evaluate", str(run), "--precision", "bf16", "--num-steps", "50", "--guidance", "2"])
    assert json.loads((run / "evaluations.jsonl").read_text().splitlines()[-1])["agreement"] >= 0.99
