"""Settings of runs that take seconds."""

import yaml

UNET = {"kind": "unet", "channels": [32, 64], "layers": 1, "zero_output": False}
QUICK = {
    "steps": 2, "batch_size": 16, "log_every": 1, "held_out_every": 1, "sample_every": 2, "checkpoint_every": 2,
    "precision": "fp32",
}  # fmt: skip


def write_settings(path, *, labels=True, field=UNET, train=(), data=None, **more):
    """A settings file of a tiny run on digits."""
    data = data or {"kind": "images", "source": "digits", "labels": labels, "held_out": 8}
    settings = {"data": data, "field": field, "train": {**QUICK, **dict(train)}, "grid": {"count": 4, "num_steps": 1}}
    path.write_text(yaml.safe_dump({**settings, "figures": False, **more}))
    return path
