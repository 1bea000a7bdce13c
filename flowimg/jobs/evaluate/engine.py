"""How the samples of a run are scored: points against fresh data, pictures in the features of a network.

An engine takes a sampler and returns scores with how they were made; `flowimg evaluate` and training share it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, ClassVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from flowimg.build.data import build_condition, build_toy, portions
from flowimg.build.facts import DataFacts
from flowimg.errors import SettingsError
from flowimg.evaluation.comparison import (
    Comparison,
    SampleFeatures,
    distance,
    draw_share,
    joined,
    left_out,
    measured_with,
    pooled,
    score,
)
from flowimg.evaluation.distances import NEAREST
from flowimg.evaluation.images import Nearest
from flowimg.evaluation.points import PointScores, failures, score_points
from flowimg.evaluation.record import made_how
from flowimg.evaluation.reference import KEPT
from flowimg.figures.record import Figure, add_figures
from flowimg.flow.randomness import generator
from flowimg.jobs.evaluate.comparison import ComparisonOptions, build_comparisons
from flowimg.machine.processes import share
from flowimg.runs.opening import OpenRun
from flowimg.sampling.sampler import Sampler
from flowimg.settings.evaluate import Evaluate
from flowimg.settings.run import Config
from flowimg.settings.sampling import Solving
from flowimg.spaces.pixels import Pixels
from flowimg.spaces.points import Points

SHOWN = 8
"""Samples that are shown with the training pictures nearest to them."""

Inside = Callable[[], AbstractContextManager[Any]]
Scored = dict[str, Any] | None
"""Scores and how they were made; None on all processes but the first, or if the drawing ended early."""


class Engine(ABC):
    """Scores the samples of a run.

    `count` is the default number of samples, `main` the score that a sweep plots; `shared` says whether all processes
    draw, `shows` whether `show` draws figures.
    """

    count: ClassVar[int]
    main: ClassVar[str]
    shared: ClassVar[bool] = False
    shows: ClassVar[bool] = False

    def __init__(self, config: Config, facts: DataFacts, options: ComparisonOptions, state: PartialState) -> None:
        self.config, self.facts, self.state = config, facts, state

    @classmethod
    @abstractmethod
    def check(cls, settings: Evaluate, facts: DataFacts) -> None:
        """Refuse settings that have no meaning for this space."""

    @abstractmethod
    def __call__(self, sampler: Sampler, how: Solving, seeds: range, inside: Inside = nullcontext) -> Scored:
        """Draw and score the samples of these seeds, on all processes; `inside` is a context for the drawing."""

    def quick(self, sampler: Sampler, how: Solving, seeds: range) -> Scored:
        """As a call, with the main score as `score`; other scores may be missing."""
        scores = self(sampler, how, seeds)
        return None if scores is None else {**scores, "score": scores[self.main]}

    @abstractmethod
    def exceeded(self, settings: Evaluate, scores: dict[str, Any]) -> list[str]:
        """A sentence for each limit that is exceeded."""

    def show(self, run: OpenRun, made: str) -> None:  # noqa: B027  there are none for points
        """Draw the figures of the last evaluation into RUN/figures."""


class PointEngine(Engine):
    """Points against fresh data, on the first process."""

    count = 20_000
    main = "sw2"

    @classmethod
    def check(cls, settings: Evaluate, facts: DataFacts) -> None:
        if settings.max_frechet is not None or settings.features != "proxy" or settings.inception:
            raise SettingsError("--max-frechet, --features and --inception are for runs on images")
        if settings.sweep_guidance:
            raise SettingsError(f"--sweep-guidance needs a conditional run on images, and {settings.run} is not one")

    def __call__(self, sampler: Sampler, how: Solving, seeds: range, inside: Inside = nullcontext) -> Scored:
        scores, toy = None, build_toy(self.config)
        if self.state.is_main_process:
            with inside():
                x_1, nfe = sampler.draw(seeds, build_condition(self.config, self.facts, seeds))
                data = toy.sample(torch.rand(len(seeds), 3, generator=generator("evaluation")))
                scored = score_points(x_1, data, toy.part(x_1), toy.parts)
                scores = {**scored._asdict(), **made_how(how.record, seeds, nfe)}
        return scores

    def exceeded(self, settings: Evaluate, scores: dict[str, Any]) -> list[str]:
        points = PointScores(*(scores[name] for name in PointScores._fields))
        return failures(points, settings.max_off, settings.max_sw2, settings.max_mass_ratio)


class PictureEngine(Engine):
    """Pictures in the features of a network; every process draws its share."""

    count = 1000
    main = "frechet"
    shared = shows = True

    def __init__(self, config: Config, facts: DataFacts, options: ComparisonOptions, state: PartialState) -> None:
        super().__init__(config, facts, options, state)
        self.comparisons = build_comparisons(config, facts, options, state)
        self.last: tuple[SampleFeatures, Nearest] | None = None

    @classmethod
    def check(cls, settings: Evaluate, facts: DataFacts) -> None:
        if any(limit is not None for limit in (settings.max_off, settings.max_sw2, settings.max_mass_ratio)):
            raise SettingsError("--max-off, --max-sw2 and --max-mass-ratio are for runs on points")
        if settings.inception and settings.features != "inception":
            raise SettingsError(f"--inception {settings.inception} needs --features inception")
        if settings.sweep_guidance and not facts.classes:
            raise SettingsError(f"--sweep-guidance needs a conditional run on images, and {settings.run} is not one")
        if settings.sweep_guidance and (settings.count or cls.count) <= NEAREST:
            raise SettingsError(f"--count {settings.count} is too few for --sweep-guidance: give more than {NEAREST}")

    def _drawn(
        self, sampler: Sampler, seeds: range, inside: Inside = nullcontext, kept: int = KEPT
    ) -> tuple[SampleFeatures, Comparison] | None:
        """The samples of these seeds in features, and what they are compared with, on the first process.

        None if a process gave up its share. Samples of several shapes, in proportion, are pooled.
        """
        cond = build_condition(self.config, self.facts, seeds)
        by_shape = {one.space.shape: one for one in self.comparisons}
        parts: list[tuple[SampleFeatures, Comparison]] = []
        for space, rows in portions(self.config, self.facts, seeds):
            comparison, own = by_shape[space.shape], None
            mine = share(range(len(rows)), self.state.process_index, self.state.num_processes)
            drawer, some = replace(sampler, shape=space.shape), [seeds[row] for row in rows]
            with inside():
                own = draw_share(drawer, comparison, some, cond.rows(rows), mine, kept)
            shares = gather_object([own])
            if None in shares:
                return None
            if self.state.is_main_process:
                parts.append((joined(shares, cond.rows(rows), kept), comparison))
        if not self.state.is_main_process:
            return None
        if len(self.comparisons) == 1:
            return parts[0]
        # of a rare shape there may be data and no sample
        return pooled([drawn for drawn, _ in parts], self.comparisons)

    def _how(self, drawn: SampleFeatures, comparison: Comparison, how: Solving, seeds: range) -> dict[str, Any]:
        """How the scores of these samples were made."""
        return {**made_how(how.record, seeds, drawn.nfe), **measured_with(comparison, drawn)}

    def __call__(self, sampler: Sampler, how: Solving, seeds: range, inside: Inside = nullcontext) -> Scored:
        found = self._drawn(sampler, seeds, inside)
        if found is None:
            return None
        drawn, comparison = found
        scores, near = score(drawn, comparison)
        self.last = (drawn, near) if near else None
        if missing := left_out(scores):
            print(f"left out  {missing}")
        return {**scores, **self._how(drawn, comparison, how, seeds)}

    def quick(self, sampler: Sampler, how: Solving, seeds: range) -> Scored:
        found = self._drawn(sampler, seeds, kept=0)  # the other scores take as long as drawing
        return None if found is None else {**self._how(*found, how, seeds), "score": distance(*found)}

    def exceeded(self, settings: Evaluate, scores: dict[str, Any]) -> list[str]:
        limit, sentences = settings.max_frechet, []
        if limit is not None and not scores["frechet"] <= limit:
            sentences.append(f"{scores['distance']} is {scores['frechet']:.4g}, more than {limit:g}")
        if limit is not None and scores.get("not_finite"):
            sentences.append(f"{scores['not_finite']} samples are not finite")
        return sentences

    def show(self, run: OpenRun, made: str) -> None:
        from flowimg.figures.pictures import picture_table  # matplotlib is slow to import

        if self.last is None:
            return
        (drawn, near), comparison = self.last, self.comparisons[0]
        assert comparison.reference is not None
        rows, data = near.row[:SHOWN], comparison.reference.data
        table = torch.cat([drawn.pixels[: len(rows), None], data.pictures.pixels[rows]], dim=1)
        seen = comparison.space.shown(comparison.space.encode(table))
        columns = ["sample", *map(str, range(1, table.shape[1]))]
        label = drawn.cond.label
        names = [""] * len(rows) if label is None else [self.facts.classes[number] for number in label[: len(rows)]]
        caption = "Samples, and to their right the nearest training pictures by pixels, from near to far"
        caption += ", including mirrored ones." if data.mirrored else "."
        figure = Figure("nearest.png", "Is any sample a copy?", caption, made)
        picture_table(seen, names, columns, run.folder.figures / figure.file, "Samples and nearest training pictures")
        add_figures(run.folder.figures, [figure])


ENGINES: dict[type, type[Engine]] = {Points: PointEngine, Pixels: PictureEngine}
"""How samples of each space are scored."""
