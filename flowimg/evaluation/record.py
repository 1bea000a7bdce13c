"""What is kept of an evaluation: its figures, and everything they depend on."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SHARES = ("precision", "recall", "coverage", "agreement", "judge")
"""Figures that are shares of 1."""


def made_how(how: Mapping[str, Any], seeds: Sequence[int], nfe: int) -> dict[str, Any]:
    """How samples were made, as far as the solver goes; `how` is `Solving.record` of the settings."""
    return {"count": len(seeds), "seeds": [seeds[0], seeds[-1]], **how, "nfe": nfe}


HOW = (
    *("of", "count", "seeds", "solver", "num_steps", "times", "shift", "tolerance", "nfe", "guidance"),
    "guidance_interval",
    *("step", "weights", "arithmetic", "weights_sha256"),
    *("distance", "features", "features_sha256", "resize", "reference", "reference_hash", "in_turns", "during"),
)
"""What an evaluation says of how it was made."""


def keep(path: Path, record: dict[str, Any]) -> None:
    """Add an evaluation to RUN/evaluations.jsonl."""
    with path.open("a+b") as file:
        file.seek(0, 2)
        if file.tell():  # a line that was cut by a crash would take this one with it
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write((json.dumps(finite(record), allow_nan=False) + "\n").encode())


def finite(record: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no NaN and no infinity: such a score is null there."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in record.items()
    }


def describe(how: Mapping[str, Any]) -> str:
    """How a flow was followed, in words; `how` is `Solving.record`, or an evaluation that holds it."""
    adaptive = how["num_steps"] is None
    parts = [f"{how['solver']} at {how['tolerance']:g}" if adaptive else f"{how['solver']}, {how['num_steps']} steps"]
    if not adaptive and how["times"] != "uniform":
        parts[0] += f" of {how['times']} times"
    if not adaptive and how["shift"] != 1:
        parts.append(f"shift {how['shift']:g}")
    if how["guidance"] != 1:
        low, high = how["guidance_interval"]
        within = f" from t = {low:g} to {high:g}" if (low, high) != (0, 1) else ""
        parts.append(f"guidance {how['guidance']:g}{within}")
    return ", ".join(parts)


def protocol(run: str, found: dict[str, Any]) -> str:
    """One line that tells all that the figures depend on."""
    parts = [
        f"{found['count']:,} samples of seeds {found['seeds'][0]} to {found['seeds'][1]}",
        *(["classes in equal turns"] if found.get("in_turns") else []),
        describe(found),
        f"{found['nfe']} evaluations",
        found["arithmetic"],
    ]
    if "features" in found:
        parts += [
            f"against {found['reference']} ({found['reference_hash']})",
            f"features {found['features']} ({found['features_sha256']}), resize {found['resize']}",
        ]
    hashed = f" ({found['weights_sha256']})" if "weights_sha256" in found else ""
    return f"{run}, step {found['step']}, {found['weights']} weights{hashed}: {', '.join(parts)}"


def distance_in(found: dict[str, Any]) -> str:
    """What a distance is called, and in which features it is one: FD@1,000 in proxy-classifier."""
    return f"{found['distance']} in {found['features']}"


def figures_of(found: dict[str, Any]) -> dict[str, Any]:
    """The figures alone, by the names that people know them by."""
    kept = {name: value for name, value in found.items() if name not in HOW and not isinstance(value, str)}
    if "frechet" in kept:
        kept = {found["distance"] if name == "frechet" else name: value for name, value in kept.items()}
    return kept


def text_of(name: str, value: Any) -> str:
    """A figure as it is printed."""
    if isinstance(value, list):
        return " ".join(f"{share:.3f}" for share in value)
    return f"{100 * value:.1f} %" if name in SHARES else f"{value:.4f}"
