"""The verbs of `flowimg`: each reads its settings, then imports and calls one job.

A job is named as `module:function` and imported only after its settings were read, so that `flowimg --help` and wrong
settings are answered at once.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pkgutil import resolve_name
from typing import Any, NamedTuple, NoReturn

from flowimg.errors import SettingsError, Stopped
from flowimg.machine.streams import Words, open_streams, silence
from flowimg.names import no_name_here, printed, unprintable
from flowimg.settings import steering, verbs
from flowimg.settings.base import Settings
from flowimg.settings.command import (
    parse,
    prediction_settings,
    run_settings,
    source_settings,
    start_settings,
    verb_settings,
)
from flowimg.settings.evaluate import Evaluate
from flowimg.settings.reading import dump, nearest
from flowimg.version import __version__

Result = dict[str, Any] | None
"""Plain values for a script that runs a verb; None on every process but the first."""


class Verb(NamedTuple):
    """A command of `flowimg`: the words that follow its name, what it does, and how to run it with them.

    A `lasting` one continues without words when nobody can read them any more: the terminal or the pipe was closed.
    """

    words: str
    purpose: str
    run: Callable[[Sequence[str]], Result]
    lasting: bool = False


def call(job: str, *settings: Any) -> Result:
    """The result of a job, given as `module:function` inside flowimg."""
    return resolve_name(f"flowimg.{job}")(*settings)


def on_run(job: str, model: type[Settings], more: str = "", second: str | None = None) -> Verb:
    """A verb that takes RUN first, and `more` words after it, which are the values of the setting `second`."""
    name, words = job.partition(":")[2], f"RUN {more}".strip()
    doc = str(model.__doc__).rstrip(".")
    purpose = doc[0].lower() + doc[1:]
    return Verb(words, purpose, lambda args: call(job, verb_settings(f"{name} {words}", model, args, second)))


def on_config(job: str, purpose: str, group: str = "") -> Verb:
    """A verb, maybe of a group of verbs, that takes a settings file or a run's folder first."""
    verb = group + job.partition(":")[2]
    return Verb("CONFIG", purpose, lambda args: call(job, run_settings(verb, args)))


def train(args: Sequence[str]) -> Result:
    """Train, or try out, a run."""
    how, args = start_settings(args)
    config = run_settings("train", args)
    if how.dry_run and how.profile:
        raise SettingsError("--dry-run keeps nothing, but --profile writes into the run's folder: give one of them")
    return call("jobs.estimate:dry_run", config) if how.dry_run else call("jobs.train.run:train", config, how)


def estimate(args: Sequence[str]) -> Result:
    """Measure what a run needs here, or predict what it needs on many GPUs."""
    asked, args = prediction_settings(args)
    config = run_settings("estimate", args)
    if asked.processes:
        return call("jobs.prediction:predict", config, asked)
    return call("jobs.estimate:estimate", config)


def experiment(args: Sequence[str]) -> Result:
    """Say where the experiments are now."""
    raise SettingsError("flowimg experiment has moved: run python examples/frequency/run.py (--help lists its options)")


def config(args: Sequence[str]) -> Result:
    """Print the settings of a run."""
    settings = run_settings("config", args)
    print(dump(settings), end="")
    return settings.model_dump(mode="json")


def data(args: Sequence[str]) -> Result:
    """Run one of the verbs on data."""
    verb, *rest = args or [""]
    if verb in DATA:
        return DATA[verb].run(rest)
    if verb in ("-h", "--help"):
        print(f"{usage(DATA, 'data ')}\n\nflowimg data VERB --help lists the settings of a verb")
        return None
    if verb:
        raise SettingsError(f"there is no flowimg data {verb}: {nearest(verb, list(DATA))}")
    raise SettingsError(f"flowimg data needs one of {', '.join(DATA)}")


DATA = {
    "check": Verb(
        "SOURCE",
        "check every image of a source: sizes, classes, duplicates, broken files",
        lambda args: call("jobs.data:check", *source_settings("data check", verbs.Check, args)),
    ),
    "preview": Verb(
        "SOURCE",
        "draw a grid of images as the network will see them",
        lambda args: call("jobs.data:preview", *source_settings("data preview", verbs.Preview, args)),
    ),
    "prepare": on_config("jobs.data:prepare", "decode the images of a run before training", "data "),
}

VERBS = {
    "train": Verb("CONFIG", "train a run; the same command, or the run's folder, continues it", train, lasting=True),
    "estimate": Verb(
        "CONFIG",
        "predict memory, disk space and hours of a run; on many GPUs with --processes N ...",
        estimate,
    ),
    "sample": on_run("jobs.sample:sample", verbs.Sample),
    "interpolate": on_run("jobs.interpolate:interpolate", verbs.Interpolate),
    "invert": on_run("jobs.invert:invert", verbs.Invert, "PICTURE ...", "pictures"),
    "inpaint": on_run("jobs.inpaint:inpaint", steering.Inpaint, "PICTURE ...", "pictures"),
    "vary": on_run("jobs.vary:vary", steering.Vary, "PICTURE ...", "pictures"),
    "export": on_run("jobs.export:export", verbs.Export, "FOLDER", "out"),
    "ema": on_run("jobs.ema:ema", verbs.Ema),
    "evaluate": on_run("jobs.evaluate.run:evaluate", Evaluate),
    "likelihood": on_run("jobs.likelihood:likelihood", verbs.Likelihood),
    "figures": on_run("jobs.figures.run:figures", verbs.Figures),
    "report": on_run("jobs.report:report", verbs.Report, "[RUN ...]", "others"),
    "play": on_run("app.page:play", verbs.Play),
    "experiment": Verb("", "moved: python examples/frequency/run.py", experiment),
    "data": Verb("check|preview|prepare", "check, preview or decode images; see flowimg data --help", data),
    "config": Verb("CONFIG", "print all settings of a run as YAML", config),
    "doctor": Verb(
        "",
        "check that this machine is fit for a long run",
        lambda args: call("jobs.doctor:doctor", parse("doctor", verbs.Doctor(), args)),
    ),
}


FLAGS = ("--quiet", "--json")
"""Options of every verb, anywhere among its words."""


def main(args: Sequence[str] | None = None) -> None:
    """Run a verb; a user's mistake ends in one message and its exit status, never in a stack trace."""
    open_streams()
    args = list(sys.argv[1:] if args is None else args)
    as_json, verb = "--json" in args, next((arg for arg in args if arg not in FLAGS), "--help")
    names = unprintable(args)
    end = partial(fail, names=names)
    try:
        _run(args, verb, names)
        sys.stdout.flush()  # here, where a closed pipe is caught
    except KeyboardInterrupt:
        where = {"train": "continues from the last checkpoint", "sample": "continues where it stopped"}.get(verb)
        end(f"stopped; the same command {where}" if where else "stopped", 130)
    except Stopped as stopped:
        end(stopped.message, stopped.exit_status)
    except BrokenPipeError:  # `flowimg config ... | head`
        for stream in (sys.stdout, sys.stderr):
            silence(stream)
        sys.exit(141)
    except OSError as error:  # a full disk, a folder that cannot be written
        end(str(error), 4)
    except Exception as error:
        status = getattr(error, "exit_status", None)
        if as_json and (result := getattr(error, "result", None)):
            print(json.dumps(result, allow_nan=False))
        if status is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from flowimg.machine.processes import lost_others

            if lost_others(error):
                end("another process of this launch ended, which says why, or cannot be reached", 4)
        if status is None and isinstance(error, UnicodeEncodeError) and error.encoding != "utf-8":
            end(no_name_here(error.object), 4)
        if status is None:
            traceback.print_exc()
            end("this is a bug in flowimg, not your mistake; please report the lines above", 70)
        end(str(error), status)


def _run(args: Sequence[str], verb: str, names: Collection[str]) -> None:
    """Run a verb with all words of the command line; `names` are escaped in what it prints."""
    if verb in ("-h", "--help"):
        print(HELP.format(verbs=usage(VERBS)))
    elif verb == "--version":
        print(f"flowimg {__version__}")
    elif verb not in VERBS:
        raise SettingsError(f"flowimg has no verb {verb}: {nearest(verb, list(VERBS))}")
    else:
        rest = [arg for arg in args if arg not in FLAGS]
        with redirected("--quiet" in args, "--json" in args, names, VERBS[verb].lasting):
            result = VERBS[verb].run(rest[1:])
        if "--json" in args and result is not None:
            print(json.dumps(result, allow_nan=False))


@contextmanager
def redirected(quiet: bool, as_json: bool, names: Collection[str] = (), lasting: bool = False) -> Iterator[None]:
    """Send what a verb prints to stderr with `--json`, so that stdout holds only the result; nowhere with `--quiet`."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        words: Any = Words(nowhere if quiet else sys.stderr if as_json else sys.stdout, names, lasting)
        bars: Any = Words(nowhere if quiet else sys.stderr, names, lasting)  # errors are printed after this context
        with redirect_stdout(words), redirect_stderr(bars):
            try:
                yield
            finally:
                if lasting:  # where words that cannot be written are no failure
                    words.flush()


def fail(message: str, status: int, names: Collection[str] = ()) -> NoReturn:
    """Print the message to stderr, with these names in one line each, and exit."""
    try:
        print("\n".join(f"flowimg: {line}" for line in printed(message, names).split("\n")), file=sys.stderr)
        sys.stdout.flush()
    except OSError:  # the terminal was closed; the exit status still says what happened
        silence(sys.stdout)
        silence(sys.stderr)
    sys.exit(status)


def usage(table: dict[str, Verb], group: str = "") -> str:
    """A line for each verb."""
    return "\n".join(f"  {f'flowimg {group}{name} {verb.words}':<34} {verb.purpose}" for name, verb in table.items())


HELP = """flowimg: image generation by flow matching

{verbs}

  flowimg VERB --help  lists all settings of a verb; --KEY VALUE changes one
  --quiet  prints errors only
  --json   prints the result as JSON on stdout and everything else on stderr
  accelerate launch scripts/train.py CONFIG  trains on several processes

first run: flowimg train configs/letters.yaml"""
