"""Trainers of flowimg's network whose steps take turns with flowimg's: the floor, and the loops of other projects.

Each is a process that waits before a step until it is asked for the next ones (`Turns`): only one computes at a time.
The loops of others are their own code, from a checkout at a given path; network and pictures are replaced, to be the
same for all, and so is what only draws samples. Not for users: speed.py starts these processes.
"""

import json
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from turns import Turns

from flowimg.build.data import build_source
from flowimg.build.field import build_field
from flowimg.data.batches import PointBatches
from flowimg.data.toys import Toy
from flowimg.fields.stock import architecture
from flowimg.fields.unet import UNetField
from flowimg.machine.device import keep_memory, pick_device
from flowimg.machine.precision import autocast, settle_precision
from flowimg.settings.command import run_settings
from flowimg.settings.run import Config

Step = Callable[[], None]
WORKERS = 8 if torch.cuda.is_available() else 2
"""Processes that decode pictures for those who have them decoded at every step."""
LEVERS = ("channels last", "benchmark", "compiled", "layout", "graphs")
"""What a floor may be given: weights and pictures in that layout, kernels that cuDNN chooses by trial, torch.compile;
of what is compiled that layout wherever there are convolutions, which torch may leave, and CUDA graphs."""


# --- the floor -------------------------------------------------------------------------------------------------------


class Stock(nn.Module):
    """A U-Net as diffusers has it, its time ours, asked for one class; called as ours, torchcfm's and Meta's are."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self.unet = UNet2DModel.from_config(settings)

    def forward(self, x: Tensor, t: Tensor, cond: None = None, extra: object = None) -> Tensor:
        if t.ndim > x.ndim:  # torchcfm's order
            x, t = t, x
        rows = torch.zeros(len(x), dtype=torch.long, device=x.device) if self.unet.config.num_class_embeds else None
        velocity: Tensor = -self.unet(x, 1000 * (1 - t), class_labels=rows).sample
        return velocity


def stock(config: Config) -> nn.Module:
    """What is stepped without flowimg; for points it is our own network, as nothing else has it."""
    field = build_field(config, build_source(config).facts)
    bare = Stock(architecture(field.unet)) if isinstance(field, UNetField) else field
    return bare.to(pick_device()).train()


def floor(config: Config, precision: str, levers: Sequence[str] = ()) -> Step:
    """Forward, backward and torch's fused AdamW, on a batch that stays; with any of `LEVERS`."""
    field, device = stock(config), pick_device()
    x = torch.randn(config.train.batch_size, *build_source(config).facts.shape, device=device)
    if "channels last" in levers:
        field, x = field.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    torch.backends.cudnn.benchmark = "benchmark" in levers
    optimizer = torch.optim.AdamW(field.parameters(), lr=1e-4, fused=True)
    t, target = torch.rand(len(x), device=device), torch.randn_like(x)

    def loss() -> Tensor:
        return (field(x, t, None).float() - target).square().mean()

    if "compiled" in levers:  # as compiler_options of flowimg/machine/compiling.py says it
        options = {"triton.cudagraphs": "graphs" in levers, "force_layout_optimization": "layout" in levers}
        loss = torch.compile(loss, dynamic=False, options={**options})

    def step() -> None:
        if "graphs" in levers:
            torch.compiler.cudagraph_mark_step_begin()
        with autocast(device, precision):
            out = loss()
        out.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def bare_loop(config: Config, fused: bool) -> Step:
    """Flow matching on points as one writes it down in torch: points, noise and times are drawn at every step.

    Its AdamW is torch's, fused, or as it comes when nothing is said.
    """
    field, toy, count = stock(config), toy_of(config), config.train.batch_size
    optimizer = torch.optim.AdamW(field.parameters(), lr=1e-4, fused=fused or None)

    def step() -> None:
        x_1, x_0, t = toy.sample(torch.rand(count, 3)), torch.randn(count, 2), torch.rand(count)
        x_t = (1 - t[:, None]) * x_0 + t[:, None] * x_1
        loss = (field(x_t, t, None) - (x_1 - x_0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def toy_of(config: Config) -> Toy:
    """The distribution of a run on points."""
    batches = build_source(config).load(torch.device("cpu"))
    assert isinstance(batches, PointBatches)
    return batches.toy


def repeated(step: Step) -> None:
    """Step after step."""
    keep_memory()
    turns = Turns()
    while True:
        turns()
        step()


# --- trainers --------------------------------------------------------------------------------------------------------


def hooked(network: nn.Module) -> nn.Module:
    """A network that waits for its turn before it goes forward to learn."""
    turns = Turns()
    # a function, not a method: those who copy the network would copy what it belongs to
    network.register_forward_pre_hook(lambda *_: turns() if torch.is_grad_enabled() else None)
    return network


def torchcfm(checkout: Path, pictures: str, config: Config, scratch: str) -> None:
    """examples/images/cifar10/train_cifar10.py of atong01/conditional-flow-matching; needs absl-py."""
    script = checkout / "examples" / "images" / "cifar10" / "train_cifar10.py"
    sys.path[:0] = [str(checkout), str(script.parent)]
    core = ModuleType("torchdyn.core")
    core.NeuralODE = None  # type: ignore[attr-defined]
    # these are imported, and not used by what is measured
    sys.modules |= {"torchdyn": ModuleType("torchdyn"), "torchdyn.core": core, "ot": ModuleType("ot")}
    import torchcfm.models.unet.unet as unet
    from torchvision import datasets

    network = hooked(stock(config))
    unet.UNetModelWrapper = lambda **_: network
    datasets.CIFAR10 = lambda transform, **_: datasets.ImageFolder(pictures, transform)
    sys.argv = [
        str(script), "--model", "icfm", "--output_dir", f"{scratch}/", "--save_step", "0",
        "--batch_size", str(config.train.batch_size), "--num_workers", str(WORKERS),
    ]  # fmt: skip
    runpy.run_path(str(script), run_name="__main__")


def meta(checkout: Path, pictures: str, config: Config, scratch: str) -> None:
    """`train_one_epoch` of facebookresearch/flow_matching's examples/image, with its average; needs torchmetrics."""
    sys.path[:0] = [str(checkout), str(checkout / "examples" / "image")]
    from models.ema import EMA
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from training.data_transform import get_train_transform
    from training.grad_scaler import NativeScalerWithGradNormCount
    from training.train_loop import train_one_epoch

    device = pick_device()
    torch.backends.cudnn.benchmark = True  # as its train.py
    network = EMA(hooked(stock(config))).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.9, 0.95))
    loader = DataLoader(
        ImageFolder(pictures, get_train_transform()), config.train.batch_size, shuffle=True, num_workers=WORKERS,
        pin_memory=device.type == "cuda", drop_last=True,
    )  # fmt: skip
    how = SimpleNamespace(
        accum_iter=1, discrete_flow_matching=False, class_drop_prob=1.0, skewed_timesteps=True, test_run=False
    )
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    for epoch in range(10**6):
        train_one_epoch(network, loader, optimizer, schedule, device, epoch, NativeScalerWithGradNormCount(), how)


def diffusers(checkout: Path, pictures: str, config: Config, scratch: str) -> None:
    """examples/unconditional_image_generation/train_unconditional.py of huggingface/diffusers, with its average."""
    from diffusers import UNet2DModel

    script = checkout / "examples" / "unconditional_image_generation" / "train_unconditional.py"
    bare = stock(config)
    assert isinstance(bare, Stock)
    bare.unet.save_config(f"{scratch}/network")
    side = str(bare.unet.config.sample_size)
    made = UNet2DModel.from_config
    UNet2DModel.from_config = lambda *args, **more: hooked(made(*args, **more))
    sys.argv = [
        str(script), "--train_data_dir", pictures, "--model_config_name_or_path", f"{scratch}/network",
        "--output_dir", f"{scratch}/out", "--cache_dir", f"{scratch}/cache", "--resolution", side,
        "--random_flip", "--use_ema", "--train_batch_size", str(config.train.batch_size),
        "--dataloader_num_workers", str(WORKERS), "--num_epochs", "1000", "--checkpointing_steps", str(10**9),
    ]  # fmt: skip
    runpy.run_path(str(script), run_name="__main__")


PEERS = {"torchcfm": torchcfm, "Meta": meta, "diffusers": diffusers}


def work(told: dict[str, Any]) -> None:
    """Be one of them."""
    config = run_settings("train", told["args"])
    if told["name"] == "floor":
        repeated(floor(config, settle_precision(told["precision"], config.field.fast_in_bf16), told.get("levers", ())))
    elif told["name"] == "bare loop":
        repeated(bare_loop(config, told["fused"]))
    else:
        PEERS[told["name"]](Path(told["checkout"]), told["pictures"], config, told["scratch"])


if __name__ == "__main__":
    work(json.loads(sys.argv[1]))
