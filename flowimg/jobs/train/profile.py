"""Where the time of a step goes: `flowimg train CONFIG --profile` writes a trace and a page about it.

It measures a few whole steps of a real run, with what happens between them. A step waits for nothing but the device, so
on a GPU the page has the device's time beside that of the host.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]

from flowimg.errors import SettingsError
from flowimg.files import write_text
from flowimg.jobs.train.session import Span
from flowimg.machine.throughput import peak_memory
from flowimg.runs.folder import RunFolder
from flowimg.training.loop import Callback
from flowimg.training.state import Training

AFTER, STEPS = 10, 5
"""Steps that are let pass, as the first ones are slow, and steps that are profiled."""
LINES = 15
"""Operations that are named."""
PARTS = ("data", "loss", "optimiser")
"""What is marked in the trace; what autograd does is marked by torch."""
KINDS = {
    "turning pictures": ("nchwtonhwc", "nhwctonchw"),
    "convolution": ("convolution", "conv2d", "winograd", "implicit_gemm", "fprop", "dgrad", "wgrad"),
    "attention": ("attention", "flash", "fmha"),
    "matrix products": ("mm", "cublas", "cutlass", "nvjet", "linear"),
    "optimiser and average": ("adam", "fused_sgd", "_foreach", "multi_tensor", "vector_norm"),
    "random numbers": ("normal_", "uniform_", "::rand"),
    "norms and activations": ("norm", "silu", "sigmoid", "softmax"),
    "dropout": ("dropout",),
    "between processes": ("nccl", "gloo", "reduce_scatter", "allreduce", "all_reduce"),
    "copies, casts and memory": ("copy", "::cat", "memcpy", "memset", "fill", "zero", "contiguous", "clone", "empty"),
}
"""Kinds of operations by parts of their names; the first that fits."""
FUSED = ("triton_poi", "triton_per", "triton_red")
"""What torch's compiler makes of what lies between convolutions and products; names tell what they work for, too."""


def check_steps(began: int, until: int) -> None:
    """Refuse to profile a start of too few steps; one that has none to do is none the worse for it.

    Raises:
        SettingsError: With how many are needed.
    """
    if began < until < began + AFTER + STEPS:
        raise SettingsError(f"--profile needs {AFTER + STEPS} steps, but this start ends at step {until}")


def profile_steps(folder: RunFolder, span: Span, stack: ExitStack) -> Callback:
    """A callback that profiles a few steps once, on the main process, into RUN/profile; with `stack` it ends."""
    first = (span.began or 0) + AFTER
    inside = stack.enter_context(ExitStack())
    began = 0.0
    profiler: Any = None

    def callback(state: Training) -> None:
        nonlocal began, profiler
        if not state.strategy.is_first:
            return
        if state.step == first and not span.is_last(state):
            profiler = inside.enter_context(_profiler())
            inside.callback(_mark(state))
            _wait(state)
            began = time.perf_counter()
        elif profiler is not None and (state.step == first + STEPS or span.is_last(state)):
            _wait(state)
            seconds = time.perf_counter() - began
            inside.close()
            _write(folder, state, profiler, seconds, first)
            profiler = None

    return callback


def _profiler() -> Any:
    from torch.profiler import ProfilerActivity, profile  # which takes a while

    device = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
    return profile(activities=[ProfilerActivity.CPU, *device], acc_events=True)


def _wait(state: Training) -> None:
    if state.strategy.device.type == "cuda":
        torch.cuda.synchronize(state.strategy.device)


def _mark(state: Training) -> Callable[[], None]:
    """Name the parts of a step in the trace; what undoes it."""
    from torch.profiler import record_function

    def marked(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def inside(*args: Any, **more: Any) -> Any:
            with record_function(name):
                return call(*args, **more)

        return inside

    draw, loss, optimizer = state.draw, state.loss, state.optimizer
    state.draw, state.loss = marked("data", draw), marked("loss", loss)
    optimizer.step = marked("optimiser", optimizer.step)  # type: ignore[method-assign]

    def undo() -> None:
        state.draw, state.loss = draw, loss
        del optimizer.step  # type: ignore[method-assign]

    return undo


def _write(folder: RunFolder, state: Training, profiler: Any, seconds: float, first: int) -> None:
    """The trace and the page."""
    trace, page = folder.profile / "trace.json.gz", folder.profile / "summary.txt"
    told = summary(state, profiler.key_averages(), state.step - first, seconds)
    where = f"{trace.name}: drop it on https://ui.perfetto.dev, or open it in chrome://tracing"
    try:
        folder.profile.mkdir(exist_ok=True)
        profiler.export_chrome_trace(str(trace))
        write_text(page, f"{told}\n\n{where}\n")
    except OSError as error:  # a page less does not end a run
        print(f"warning   no profile ({error})", flush=True)
        return
    print(f"profile   {page}, {trace}", flush=True)


def summary(state: Training, events: Any, steps: int, seconds: float) -> str:
    """The page: what a step takes, what of it is spent on what, and the operations that take longest.

    Args:
        state: The run, for what it is.
        events: Averages by operation, as torch's profiler gives them.
        steps: Steps that were profiled.
        seconds: That they took.
    """
    device, on_gpu = state.strategy.device, state.strategy.device.type == "cuda"
    # torch lists a GPU's kernels by themselves and, once more, with the host's operations that launched them; a mark is
    # not an operation: its own time is that of Python between those inside it
    host = [e for e in events if e.device_type == DeviceType.CPU]
    kernels = [e for e in events if e.device_type != DeviceType.CPU and not e.is_user_annotation]
    spent = {
        e.key: ((e.self_device_time_total if on_gpu else e.self_cpu_time_total) / 1000 / steps, e.count / steps)
        for e in (kernels if on_gpu else host)
        if e.key not in PARTS
    }
    whole = {e.key: (e.device_time_total if on_gpu else e.cpu_time_total) / 1000 / steps for e in host}
    step, samples = 1000 * seconds / steps, state.objective.batch_size * steps / seconds
    busy, memory = sum(ms for ms, _ in spent.values()), peak_memory(device)
    lines = [
        f"{steps} steps up to step {state.step}, on {device} ({torch.get_num_threads()} threads), "
        f"{state.strategy.processes} process{'es' if state.strategy.processes > 1 else ''}",
        "",
        f"a step           {step:.4g} ms, {samples:,.0f} samples/s; profiled, which slows small operations down",
        f"in operations    {busy:.4g} ms of the {'device' if on_gpu else 'host'} "
        f"({100 * busy / step:.0f} %); the rest is Python and waiting",
        *([] if memory is None else [f"peak memory      {memory:,} MiB"]),
        "",
        f"{'parts of a step':<42}{'ms':>10}{'share':>8}",
        *(_line(name, whole.get(name, 0.0), step) for name in PARTS),
        _line("backward", sum(ms for name, ms in whole.items() if name.startswith("autograd::engine")), step),
        "",
        f"{'kinds of operations':<42}{'ms':>10}{'share':>8}",
    ]
    kinds: dict[str, float] = {}
    for name, (ms, _) in spent.items():
        kinds[kind_of(name)] = kinds.get(kind_of(name), 0.0) + ms
    lines += [_line(name, ms, step) for name, ms in sorted(kinds.items(), key=lambda pair: -pair[1])]
    lines += ["", f"{'operations that take longest':<42}{'ms':>10}{'share':>8}{'calls':>8}"]
    longest = sorted(spent.items(), key=lambda pair: -pair[1][0])[:LINES]
    lines += [f"{_line(name, ms, step)}{calls:8.0f}" for name, (ms, calls) in longest]
    return "\n".join(lines)


def kind_of(name: str) -> str:
    """The kind of an operation or kernel, by its name."""
    kinds = {**KINDS}
    if name.startswith(FUSED):
        del kinds["convolution"], kinds["matrix products"]
    return next((kind for kind, words in kinds.items() if any(word in name.lower() for word in words)), "all else")


def _line(name: str, ms: float, step: float) -> str:
    return f"{name if len(name) <= 41 else name[:38] + '...':<42}{ms:10.2f}{100 * ms / step:6.1f} %"
