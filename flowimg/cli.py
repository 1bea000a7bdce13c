"""The verbs of `flowimg`: each reads its settings and calls one job.

Everything heavy is imported inside a verb: `flowimg --help` and wrong settings are answered at once.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import Any, NoReturn

from flowimg.errors import SettingsError, Stopped
from flowimg.settings.command import parse, run_settings, source_settings, start_settings, verb_settings
from flowimg.settings.evaluate import Evaluate
from flowimg.settings.reading import dump, nearest
from flowimg.settings.verbs import (
    Check,
    Doctor,
    Ema,
    Export,
    Figures,
    Interpolate,
    Invert,
    Likelihood,
    Play,
    Preview,
    Report,
    Sample,
)

Result = dict[str, Any] | None
"""What a verb tells a script: plain values, or nothing on a process that is not the first."""


def train(args: Sequence[str]) -> Result:
    """CONFIG [--KEY VALUE ...]   train; the same again, or the run's folder for CONFIG, goes on"""
    how, args = start_settings(args)
    config = run_settings("train", args)
    if how.dry_run and how.profile:
        raise SettingsError("--dry-run keeps nothing, --profile writes into the run's folder: give one of them")
    if how.dry_run:
        from flowimg.jobs.estimate import dry_run

        return dry_run(config)
    from flowimg.jobs.train.run import train

    return train(config, how)


def estimate(args: Sequence[str]) -> Result:
    """CONFIG [--KEY VALUE ...]   measure a step, a checkpoint, a grid: memory, disk and hours of the run"""
    settings = run_settings("estimate", args)
    from flowimg.jobs.estimate import estimate

    return estimate(settings)


def doctor(args: Sequence[str]) -> Result:
    """[--KEY VALUE ...]          look whether this machine can be trusted with a long run"""
    settings = parse("doctor", Doctor(), args)
    from flowimg.jobs.doctor import doctor

    return doctor(settings)


def sample(args: Sequence[str]) -> Result:
    """RUN [--KEY VALUE ...]      draw samples from a run"""
    settings = verb_settings("sample", Sample, args)
    from flowimg.jobs.sample import sample

    return sample(settings)


def interpolate(args: Sequence[str]) -> Result:
    """RUN [--KEY VALUE ...]      draw the pictures between seeds"""
    settings = verb_settings("interpolate", Interpolate, args)
    from flowimg.jobs.interpolate import interpolate

    return interpolate(settings)


def invert(args: Sequence[str]) -> Result:
    """RUN PICTURE ... [--KEY VALUE ...]   carry pictures to their noise and back"""
    settings = verb_settings("invert", Invert, args, "pictures")
    from flowimg.jobs.invert import invert

    return invert(settings)


def export(args: Sequence[str]) -> Result:
    """RUN FOLDER [--KEY VALUE ...]   write the network as a folder that diffusers reads"""
    settings = verb_settings("export", Export, args, "out")
    from flowimg.jobs.export import export

    return export(settings)


def figures(args: Sequence[str]) -> Result:
    """RUN [--KEY VALUE ...]      draw the run's flow and curves"""
    settings = verb_settings("figures", Figures, args)
    from flowimg.jobs.figures.run import figures

    return figures(settings)


def report(args: Sequence[str]) -> Result:
    """RUN [RUN ...] [--KEY VALUE ...]   write one page about a run, or about several side by side"""
    settings = verb_settings("report", Report, args, "others")
    from flowimg.jobs.report import report

    return report(settings)


def play(args: Sequence[str]) -> Result:
    """RUN [--KEY VALUE ...]      a page in the browser to play with a run"""
    settings = verb_settings("play", Play, args)
    from flowimg.app.page import play

    return play(settings)


def ema(args: Sequence[str]) -> Result:
    """RUN [--KEY VALUE ...]      list the averages of the weights that can be made after the run"""
    settings = verb_settings("ema", Ema, args)
    from flowimg.jobs.ema import ema

    return ema(settings)


def evaluate(args: Sequence[str]) -> Result:
    """RUN [--KEY VALUE ...]      measure a run's samples against its data"""
    settings = verb_settings("evaluate", Evaluate, args)
    from flowimg.jobs.evaluate.run import evaluate

    return evaluate(settings)


def likelihood(args: Sequence[str]) -> Result:
    """RUN [--KEY VALUE ...]      measure the density that a run gives to data"""
    settings = verb_settings("likelihood", Likelihood, args)
    from flowimg.jobs.likelihood import likelihood

    return likelihood(settings)


def experiment(args: Sequence[str]) -> Result:
    """frequency                  moved: python examples/frequency/run.py"""
    raise SettingsError("flowimg experiment frequency is an example now: python examples/frequency/run.py [--help]")


def data(args: Sequence[str]) -> Result:
    """check | preview SOURCE, prepare CONFIG   look pictures over, draw what is seen, decode beforehand"""
    known = ("check", "preview", "prepare")
    if not args or args[0] not in known:
        if args and args[0] in ("-h", "--help"):
            print(
                "usage: flowimg data check SOURCE | preview SOURCE | prepare CONFIG [--KEY VALUE ...]; each has --help"
            )
            return None
        said = f"there is no flowimg data {args[0]}: {nearest(args[0], list(known))}" if args else "flowimg data needs"
        raise SettingsError(said if args else f"{said} one of {', '.join(known)}")
    if args[0] == "prepare":
        settings = run_settings("data prepare", args[1:])
        from flowimg.jobs.data import prepare

        return prepare(settings)
    if args[0] == "check":
        checked, _ = source_settings("data check", Check, args[1:])
        from flowimg.jobs.data import check

        return check(checked)
    shown, run = source_settings("data preview", Preview, args[1:])
    from flowimg.jobs.data import preview

    return preview(shown, run)


def config(args: Sequence[str]) -> Result:
    """CONFIG [--KEY VALUE ...]   print all settings as YAML, defaults and overrides included"""
    settings = run_settings("config", args)
    print(dump(settings), end="")
    return settings.model_dump(mode="json")


VERBS: dict[str, Callable[[Sequence[str]], Result]] = {
    "train": train,
    "estimate": estimate,
    "sample": sample,
    "interpolate": interpolate,
    "invert": invert,
    "export": export,
    "ema": ema,
    "evaluate": evaluate,
    "likelihood": likelihood,
    "figures": figures,
    "report": report,
    "play": play,
    "experiment": experiment,
    "data": data,
    "config": config,
    "doctor": doctor,
}


def main(args: Sequence[str] | None = None) -> None:
    """Run a verb; a user's mistake ends in one message and its exit status, never in a stack trace."""
    args = list(sys.argv[1:] if args is None else args)
    quiet, as_json = "--quiet" in args, "--json" in args
    args = [arg for arg in args if arg not in ("--quiet", "--json")]
    try:
        if not args or args[0] in ("-h", "--help"):
            print(_usage())
        elif args[0] == "--version":
            from flowimg.version import __version__

            print(f"flowimg {__version__}")
        elif args[0] not in VERBS:
            raise SettingsError(f"flowimg has no verb {args[0]}: {nearest(args[0], list(VERBS))}")
        else:
            with _said(quiet, as_json):
                result = VERBS[args[0]](args[1:])
            if as_json and result is not None:
                print(json.dumps(result, allow_nan=False))
        sys.stdout.flush()  # here, where a closed pipe is caught
    except KeyboardInterrupt:
        goes_on = {"train": " from the last checkpoint", "sample": " where it stopped"}.get(args[0] if args else "")
        _fail(f"stopped; the same command goes on{goes_on}" if goes_on else "stopped", 130)
    except Stopped as stopped:
        _fail(stopped.message, stopped.exit_status)
    except BrokenPipeError:  # `flowimg config ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain at its exit
        sys.exit(141)
    except OSError as error:  # a full disk, a folder that cannot be written
        _fail(str(error), 4)
    except Exception as error:
        status = getattr(error, "exit_status", None)
        if as_json and (found := getattr(error, "result", None)):
            print(json.dumps(found, allow_nan=False))
        if status is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from flowimg.machine.processes import lost_others

            if lost_others(error):
                _fail("another process of this launch ended: its message says why", 4)
        if status is None:
            traceback.print_exc()
            _fail("that is a fault of flowimg, not yours; please report the lines above", 70)
        _fail(str(error), status)


@contextmanager
def _said(quiet: bool, as_json: bool) -> Iterator[None]:
    """Where the words of a verb go: to stdout; with --json to stderr, apart from the result; with --quiet nowhere.

    Errors are on stderr in any case.
    """
    with ExitStack() as stack:
        if quiet:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(redirect_stderr(nowhere))  # where bars are drawn; errors are told after this
        elif as_json:
            stack.enter_context(redirect_stdout(sys.stderr))
        yield


def _fail(message: str, status: int) -> NoReturn:
    print("\n".join(f"flowimg: {line}" for line in message.splitlines()), file=sys.stderr)
    sys.exit(status)


def _usage() -> str:
    verbs = "\n".join(f"  flowimg {name:<11} {verb.__doc__}" for name, verb in VERBS.items())
    return (
        f"flowimg: image generation by flow matching\n\n{verbs}\n\n"
        "  flowimg VERB --help           all settings of a verb\n"
        "  flowimg VERB ... --quiet      errors alone; --json: the result as JSON on stdout, words on stderr\n"
        "  accelerate launch scripts/train.py CONFIG    the same on many processes\n\n"
        "first run: flowimg train configs/digits.yaml"
    )
