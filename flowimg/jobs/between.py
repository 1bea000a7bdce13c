"""`flowimg interpolate` and `flowimg invert`: pictures between the noises of seeds, and from pictures back to noise."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from flowimg.config import Drawing, ImageData, Interpolate, Invert, SettingsError
from flowimg.data.batches import middle
from flowimg.fields.guidance import guided
from flowimg.figures.images import image_grid
from flowimg.flow.objective import NO_CLASS
from flowimg.flow.solvers import integrate
from flowimg.jobs.build import build_solver, build_times
from flowimg.jobs.draw import BATCH
from flowimg.jobs.folder import Trained, check_guidance, open_run
from flowimg.jobs.machine import DrawingT, alone, autocast, pick_device, settle
from flowimg.jobs.sample import find_label, how_name
from flowimg.sampling.generate import between, noise, to_uint8


def interpolate(settings: Interpolate) -> dict[str, Any]:
    """Draw a row of pictures for each pair of neighbouring seeds, and the grid of all rows."""
    alone("interpolate")
    settings, run = _open(settings)
    label = find_label(settings.label, run)
    check_guidance(settings.guidance, run.facts, run.config)
    ends = noise(settings.seeds, run.facts.shape)
    x_0 = torch.cat([between(a, b, settings.frames) for a, b in pairwise(ends)])
    name = f"{how_name(settings, run, label)}_between_{'_'.join(str(seed) for seed in settings.seeds)}"
    out = _new_folder(settings.out, run.folder.generated / name)
    cond = torch.full((len(x_0),), label or 0) if run.facts.classes else None
    x_1, nfe = _carry(run, settings, x_0, cond)
    pixels = to_uint8(x_1)
    for old in out.glob("row*_frame*.png"):  # there may have been more frames the last time
        old.unlink()
    for row in range(len(settings.seeds) - 1):
        for frame in range(settings.frames):
            _save(pixels[row * settings.frames + frame], out / f"row{row:02d}_frame{frame:03d}.png")
    image_grid(pixels, out / "grid.png", settings.frames)
    print(f"{len(pixels)} pictures between {len(settings.seeds)} seeds, {nfe} evaluations each: {out}")
    print(f"the grid: {out / 'grid.png'}")
    return {"run": settings.run, "step": run.step, "folder": str(out), "grid": str(out / "grid.png"), "nfe": nfe}


def invert(settings: Invert) -> dict[str, Any]:
    """Carry pictures to their noise and back; write the noise, and a grid of pictures, noise and what came back."""
    from flowimg.data.decode import Decoding, decode
    from flowimg.data.listing import DataError
    from flowimg.data.pictures import BadPictureError, Encoded
    from flowimg.data.store import to_unit

    alone("invert")
    if not settings.pictures:
        raise SettingsError("flowimg invert needs pictures: flowimg invert RUN PICTURE ...")
    settings, run = _open(settings)
    label = find_label(settings.label, run)
    check_guidance(settings.guidance, run.facts, run.config)
    data = run.config.data
    assert isinstance(data, ImageData)
    channels, size, _ = run.facts.shape
    # a window that is cut at random while training is the middle one here
    side = data.random_crop or size
    how = Decoding(channels, side, data.resize, data.background, channels * side * side)
    pixels = []
    for name in settings.pictures:
        try:
            found, _ = decode(Encoded(path=name), how)
        except BadPictureError as error:
            raise DataError(f"{name} cannot be read as a picture: {error}") from None
        pixels.append(middle(torch.from_numpy(found), size))
    out = _new_folder(settings.out, run.folder.generated / f"{how_name(settings, run, label)}_inverted")
    x_1 = to_unit(torch.stack(pixels))
    cond = torch.full((len(x_1),), NO_CLASS if label is None else label) if run.facts.classes else None
    x_0, nfe = _carry(run, settings, x_1, cond, back=True)
    again, _ = _carry(run, settings, x_0, cond)
    save_file({"x_0": x_0}, out / "noise.safetensors")
    seen = torch.cat([x_1, x_0 / 3, again])  # nearly all of the noise is within three standard deviations
    image_grid(rearrange(to_uint8(seen), "(kind n) c h w -> (n kind) c h w", kind=3), out / "grid.png", 3)
    print(f"{'picture':<40} noise mean, std   back, mean error in grey levels")
    told = []
    for name, there, back, z in zip(settings.pictures, x_1, again, x_0, strict=True):
        off = float((there - back).abs().mean() * 127.5)
        told.append({"picture": name, "noise_mean": float(z.mean()), "noise_std": float(z.std()), "error": off})
        print(f"{Path(name).name[:40]:<40} {float(z.mean()):+.3f}, {float(z.std()):.3f}     {off:.3f}")
    print(f"{nfe} evaluations each way; noise: {out / 'noise.safetensors'}")
    print(f"the grid (picture, noise, back): {out / 'grid.png'}")
    where = {"folder": str(out), "noise": str(out / "noise.safetensors"), "grid": str(out / "grid.png")}
    return {"run": settings.run, "step": run.step, **where, "nfe": nfe, "pictures": told}


def _open(settings: DrawingT) -> tuple[DrawingT, Trained]:
    run = open_run(settings.run, settings.weights, settings.step, pick_device())
    if run.config.data.kind != "images":
        raise SettingsError(f"{settings.run} is a run on points: this verb is for pictures")
    return settle(settings, run.config), run


def _new_folder(out: str | None, usual: Path) -> Path:
    """The folder asked for, which must be new or empty, or the usual one, whose files may be drawn again."""
    folder = Path(out) if out else usual
    if out and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingsError(f"--out {out} exists and is not overwritten: name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@torch.no_grad()
def _carry(run: Trained, settings: Drawing, x: Tensor, cond: Tensor | None, back: bool = False) -> tuple[Tensor, int]:
    """Follow the flow from noise to data, or back; the ends on the CPU, and the evaluations each took."""
    device = next(run.field.parameters()).device
    times = build_times(settings)
    velocity = guided(run.field, settings.guidance, settings.guidance_interval)
    ends, nfe = [], 0
    with autocast(device, settings.precision):
        for rows in torch.arange(len(x)).split(BATCH["images"]):
            given = None if cond is None else cond[rows].to(device)
            flow = integrate(
                velocity, x[rows].to(device), times.flip(0) if back else times, build_solver(settings), given
            )
            ends.append(flow.x.float().cpu())
            nfe = max(nfe, flow.nfe)
    return torch.cat(ends), nfe


def _save(pixels: Tensor, path: Path) -> None:
    Image.fromarray(rearrange(pixels, "c h w -> h w c").squeeze(-1).numpy()).save(path)
