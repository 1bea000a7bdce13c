"""`flowimg ema`: which averages of a run's weights can be made after it, and how well."""

from typing import Any

from flowimg.config import Ema
from flowimg.jobs.averages import MOST_OFF, find_kept, percent, plan
from flowimg.jobs.folder import find_run
from flowimg.jobs.machine import alone
from flowimg.training.ema import LENGTHS


def ema(settings: Ema) -> dict[str, Any]:
    """Say how near each length can be come by, and what takes it; nothing is written."""
    alone("ema")
    kept = find_kept(find_run(settings.run).snapshots, settings.step)
    both = " and ".join(f"{length:g}" for length in LENGTHS)
    print(f"{settings.run}, step {kept.step}: averages of lengths {both} were kept at {len(kept.steps)} steps up to it")
    print("  length   its profile is off by")
    made = []
    for length in settings.lengths:
        error = plan(kept, length).error
        made.append({"length": length, "error": error, "able": error <= MOST_OFF})
        print(f"  {length:<8g} {percent(error)}{'' if error <= MOST_OFF else '   too far off to be made'}")
    able = [each["length"] for each in made if each["able"]] or LENGTHS
    how = f"{settings.run} --weights {able[len(able) // 2]:g}" + (f" --step {kept.step}" if settings.step else "")
    for verb in ("sample", "evaluate", "figures"):
        print(f"use one   flowimg {verb} {how}")
    return {"run": settings.run, "step": kept.step, "steps": kept.steps, "lengths": made}
