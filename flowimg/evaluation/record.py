"""The record of an evaluation: its scores, and everything that they depend on."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SHARES = ("precision", "recall", "coverage", "agreement", "judge")
"""Scores that are shares of 1, printed in percent."""
HOW = (
    "of", "count", "seeds", "solver", "num_steps", "times", "shift", "tolerance", "nfe", "guidance",
    "guidance_interval", "guide", "guide_scale", "guide_interval", "guide_step", "guide_sha256", "noise", "noise_shape",
    "noise_interval", "step", "weights", "arithmetic", "weights_sha256",  # house: a key of stored records
    "distance", "features", "features_sha256", "resize", "reference", "reference_hash", "in_turns", "during",
)  # fmt: skip
"""The keys of a record that are not scores but say how these were measured."""


def made_how(how: Mapping[str, Any], seeds: Sequence[int], nfe: int) -> dict[str, Any]:
    """The number of samples, their seeds and how the flow was followed; `how` is `Solving.record` of the settings."""
    return {"count": len(seeds), "seeds": [seeds[0], seeds[-1]], **how, "nfe": nfe}


def keep(path: Path, record: dict[str, Any]) -> None:
    """Add an evaluation to RUN/evaluations.jsonl."""
    with path.open("a+b") as file:
        file.seek(max(file.seek(0, 2) - 1, 0))
        if file.read() not in (b"", b"\n"):  # a crash left half a line, which would spoil this one too
            file.write(b"\n")
        file.write((json.dumps(finite(record), allow_nan=False) + "\n").encode())


def finite(record: dict[str, Any]) -> dict[str, Any]:
    """The record with null for NaN and infinity, which JSON does not have."""
    odd = {name for name, value in record.items() if isinstance(value, float) and not math.isfinite(value)}
    return {**record, **dict.fromkeys(odd)}


def describe(how: Mapping[str, Any]) -> str:
    """How a flow was followed, as text; `how` is `Solving.record`, or an evaluation that contains it."""
    if how["num_steps"] is None:  # an adaptive solver
        parts = [f"{how['solver']} at {how['tolerance']:g}"]
    else:
        grid = "" if how["times"] == "uniform" else f" of {how['times']} times"
        parts = [f"{how['solver']}, {how['num_steps']} steps{grid}"]
        if how["shift"] != 1:
            parts.append(f"shift {how['shift']:g}")
    if how.get("noise") is not None:
        shape = f" as {how['noise_shape']}" if how.get("noise_shape", "sigma") != "sigma" else ""
        parts.append(f"noise {how['noise']:g}{shape}{_within(how['noise_interval'])}")
    if how["guidance"] != 1:
        parts.append(f"guidance {how['guidance']:g}{_within(how['guidance_interval'])}")
    if how.get("guide"):
        of = f" (step {how['guide_step']})" if "guide_step" in how else ""
        scale = f"{how['guide_scale']:g}{_within(how['guide_interval'])}"
        parts.append(f"autoguidance {scale} away from {how['guide']}{of}")
    return ", ".join(parts)


def _within(interval: Sequence[float]) -> str:
    low, high = interval
    return f" from t = {low:g} to {high:g}" if (low, high) != (0, 1) else ""


def protocol(run: str, record: dict[str, Any]) -> str:
    """Everything that the scores depend on, on one line."""
    parts = [
        f"{record['count']:,} samples of seeds {record['seeds'][0]} to {record['seeds'][1]}",
        *(["classes in turn"] if record.get("in_turns") else []),
        describe(record),
        f"{record['nfe']} evaluations",
        record["arithmetic"],  # house: a key of stored records
    ]
    if "features" in record:
        parts += [
            f"against {record['reference']} ({record['reference_hash']})",
            f"features {record['features']} ({record['features_sha256']}), resize {record['resize']}",
        ]
    sha256 = f" ({record['weights_sha256']})" if "weights_sha256" in record else ""
    return f"{run}, step {record['step']}, {record['weights']} weights{sha256}: {', '.join(parts)}"


def distance_in(record: dict[str, Any]) -> str:
    """The name of a distance with that of its features: FD@1,000 in proxy-classifier."""
    return f"{record['distance']} in {record['features']}"


def scores_of(record: dict[str, Any]) -> dict[str, Any]:
    """The scores of a record, under the names by which they are known."""
    return {
        record["distance"] if name == "frechet" else name: value
        for name, value in record.items()
        if name not in HOW and not isinstance(value, str)
    }


def score_text(name: str, value: Any) -> str:
    """A score as it is printed."""
    if isinstance(value, list):
        return " ".join(f"{share:.3f}" for share in value)
    return f"{100 * value:.1f} %" if name in SHARES else f"{value:.4f}"
