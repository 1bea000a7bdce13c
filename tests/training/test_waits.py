"""Between two looks of the host a step asks the device for nothing: no number is fetched, no size depends on one."""

from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.utils._python_dispatch import TorchDispatchMode

from flowimg.build.data import build_source
from flowimg.build.field import build_field
from flowimg.build.flow import build_objective
from flowimg.build.strategy import strategy_of
from flowimg.data.prefetch import Prefetch, keep_last
from flowimg.errors import NotFiniteError
from flowimg.fields.mlp import MLPField
from flowimg.fields.unet import UNetField, new_unet
from flowimg.flow.condition import Condition
from flowimg.flow.couplings import Independent
from flowimg.flow.objectives import FlowMatching
from flowimg.flow.paths import Linear
from flowimg.flow.times import LogitNormal
from flowimg.settings.reading import validate
from flowimg.settings.run import Config
from flowimg.training.loop import train, train_step
from flowimg.training.schedules import cosine
from flowimg.training.state import Recipe, Training, start

WAITING = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "is_nonzero", "equal", "bincount")
"""What a host cannot go on from before the device is done: `.item()`, `if x:`, and sizes that depend on values."""


class Heard(TorchDispatchMode):
    """Writes down what would make a host wait."""

    def __init__(self):
        super().__init__()
        self.waits, self.calls = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += 1
        name = function.overloadpacket.__name__
        if name in WAITING or (name.startswith("index") and any(_mask(arg) for arg in args)):
            self.waits.append(name)
        return function(*args, **(kwargs or {}))


def _mask(arg):
    """Rows taken by truth: how many come back is known to the device alone."""
    many = arg if isinstance(arg, list | tuple) else ()
    return any(isinstance(one, torch.Tensor) and one.dtype in (torch.bool, torch.uint8) for one in many)


def training(field, shape, device="cpu", **more):
    x_1 = torch.randn(8, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    labels = Condition(torch.arange(8) % 3).to(device)
    data = lambda step, places: (x_1[places.start : places.stop], labels.rows(slice(places.start, places.stop)))  # noqa: E731
    objective = FlowMatching(Linear(), Independent(), LogitNormal(0.0, 1.0), True, 1.5, (("label", 0.2),), 8, 0)
    AcceleratorState._reset_state(reset_partial_state=True)  # another device than that of a test before
    recipe = Recipe(steps=10, accumulation=2, warmup=2, schedule=cosine, lengths=(0.05, 0.1), **more)
    return start(strategy_of(Accelerator(cpu=device == "cpu")), field, objective, data, recipe)


def as_with_cuda(state, late):
    """Flags that stay on the device, and are read a step later."""
    state.flags.late = late
    state.flags.events = [SimpleNamespace(record=lambda: None, synchronize=lambda: None)] * 2


FIELDS = {
    "points": lambda: (MLPField(2, num_classes=3), (2,)),
    "pictures": lambda: (UNetField(new_unet(8, 1, 3, (32, 64), 1), 3), (1, 8, 8)),
}


@pytest.mark.parametrize("momentum", [None, 0.95], ids=["AdamW", "Muon"])
@pytest.mark.parametrize("kind", FIELDS)
@pytest.mark.parametrize("late", [False, True], ids=["host", "device"])
def test_a_step_asks_the_device_for_nothing(kind, momentum, late):
    state: Training = training(*FIELDS[kind](), momentum=momentum)
    as_with_cuda(state, late)
    train_step(state)  # what is made once
    with Heard() as heard:
        for _ in range(3):
            train_step(state)
    assert heard.waits == [] and heard.calls > 100


@pytest.mark.parametrize("late", [False, True], ids=["host", "GPU"])
def test_the_step_that_is_blamed_is_the_last_that_was_read(late):
    state = training(*FIELDS["points"](), max_skips=3)
    as_with_cuda(state, late)
    draw = state.draw

    def poisoned(step, places):
        drawn = draw(step, places)
        return drawn._replace(x_1=drawn.x_1 * float("nan")) if step >= 2 else drawn

    state.draw = poisoned
    with pytest.raises(NotFiniteError) as stop:
        train(state, 9, [])
    assert stop.value.step == 4 and state.step == 5 + late


def test_nothing_is_kept_that_lies_in_memory_of_graphs():
    state, lent = training(*FIELDS["points"]()), []
    state.graphs, plain = True, state.loss

    def loss(*args):  # what was given before is written over, as graphs do
        for old in lent:
            old.data.fill_(float("nan"))
        lent.append(plain(*args))
        return lent[-1]

    state.loss = loss
    for _ in range(2):
        train_step(state)
    assert torch.cat(state.window.losses).isfinite().all() and len(lent) == 4


@pytest.mark.parametrize("momentum", [None, 0.95], ids=["AdamW", "Muon"])
def test_torch_wraps_no_step(momentum):
    # torch.no_grad wraps once; what torch puts around for its profiler would be another
    step = type(training(*FIELDS["points"](), momentum=momentum).optimizer).step
    assert not hasattr(step.__wrapped__, "__wrapped__")


def test_what_would_wait_is_heard():
    with Heard() as heard:
        x = torch.arange(4.0)
        x.sum().item()
        bool(x[0] > 1)
        x[x > 1]
        x.nonzero()
    assert len(heard.waits) == 4


GRAPHS = {"triton.cudagraphs": True, "force_layout_optimization": True}
ON_A_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.mark.parametrize(
    ("device", "options"),
    [("cpu", None), *(pytest.param("cuda", how, marks=ON_A_GPU) for how in (None, {}, GRAPHS))],
)
def test_a_step_of_a_run_on_pictures_does_not_wait(device, options):
    # bf16, Muon, pictures that are flipped, augmented and made ahead: what a run has that the others lack
    # (which of them are resampled the host asks of its own numbers: on a CPU that would be heard)
    data = {"kind": "images", "source": "digits", "flip": True, "augment": 0.5 if device == "cuda" else 0.0}
    field = {"kind": "unet", **({} if device == "cuda" else {"channels": [32, 64], "layers": 1})}
    size = 32 if device == "cuda" else 8  # a CPU takes its time
    config = validate(Config, {"data": data, "field": field, "train": {"batch_size": size}}, "test")
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="bf16")
    source, objective = build_source(config), build_objective(config)
    batches = source.load(accelerator.device)
    recipe = Recipe(steps=20, momentum=0.95)
    state = start(strategy_of(accelerator), build_field(config, source.facts), objective, batches, recipe, options)
    ahead = Prefetch(partial(objective.draw, keep_last(batches)), state.micro_batches())
    if device == "cuda":  # what is dispatched in a thread is not heard
        state.draw = ahead
    try:
        for _ in range(4):  # of graphs, the second is recorded
            train_step(state)
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
        with Heard() if options is None else nullcontext() as heard:
            for _ in range(3):
                train_step(state)
        assert heard is None or (heard.waits == [] and heard.calls > 100)
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
        ahead.close()
        AcceleratorState._reset_state(reset_partial_state=True)  # a test after it has another arithmetic
    assert torch.cat(state.window.losses).isfinite().all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", FIELDS)
def test_a_step_on_a_gpu_does_not_wait(kind):
    state = training(*FIELDS[kind](), "cuda")
    train_step(state)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            train_step(state)
    finally:
        torch.cuda.set_sync_debug_mode("default")
