"""How the samples of a run are scored: points against fresh data, pictures in the features of a network.

An engine takes a sampler and gives scores with how they were made; `flowimg evaluate` and training use the same.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from flowimg.build.data import DataFacts, build_source, build_toy, cache_of, check_same
from flowimg.conditions.labels import turns
from flowimg.data.store import fingerprint
from flowimg.data.toys import Toy
from flowimg.errors import SettingsError
from flowimg.evaluation import comparison as compare
from flowimg.evaluation import features as networks
from flowimg.evaluation.comparison import Comparison, Drawn, DrawnShare
from flowimg.evaluation.distances import NEAREST
from flowimg.evaluation.features import Extractor
from flowimg.evaluation.images import Nearest
from flowimg.evaluation.points import PointScores, failures, score_points
from flowimg.evaluation.record import made_how
from flowimg.evaluation.reference import KEPT, DataSet, judge_weights, reference_of
from flowimg.fields.classifier import Classifier
from flowimg.figures.record import Figure, add_figures
from flowimg.flow.randomness import generator
from flowimg.machine.processes import share
from flowimg.runs.opening import Run
from flowimg.sampling.sampler import Sampler
from flowimg.settings.evaluate import Evaluate
from flowimg.settings.run import Config
from flowimg.settings.sampling import Solving
from flowimg.spaces.pixels import Pixels
from flowimg.spaces.points import Points
from flowimg.spaces.space import Space

SHOWN = 8
"""Samples whose nearest training pictures are shown."""
MOST_PICTURES, MOST_BYTES = 200_000, 2**33
"""Training pictures that the reference is made of at most, and what they may take of the memory."""

Inside = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Asked:
    """What the comparison of pictures is to be made with; see the settings of `flowimg evaluate`.

    `learned` is the fingerprint of the data that the run learned from, where it is known.
    """

    features: str = "proxy"
    inception: str | None = None
    download: bool = False
    learned: str | None = None


class Engine(Protocol):
    """Scores of samples: `count` are drawn if nothing is said, `main` is the score that a sweep draws.

    `limits` are the settings that it can hold a score to; `shared` says that all processes draw.
    """

    count: ClassVar[int]
    main: ClassVar[str]
    limits: ClassVar[tuple[str, ...]]
    shared: ClassVar[bool]

    @classmethod
    def find(cls, config: Config, facts: DataFacts, space: Any, asked: Asked, state: PartialState) -> "Engine":
        """The engine for the samples of a run; see `find_engine`."""
        ...

    @classmethod
    def check(cls, settings: Evaluate, facts: DataFacts) -> None:
        """Refuse settings that this space has no meaning for."""
        ...

    def __call__(
        self, sampler: Sampler, how: Solving, seeds: range, inside: Inside = nullcontext
    ) -> dict[str, Any] | None:
        """Draw and score the samples of these seeds, on all processes; None on all but the first, or if given up."""
        ...

    def quick(self, sampler: Sampler, how: Solving, seeds: range) -> dict[str, Any] | None:
        """As above, the main score only, as `score`."""
        ...

    def broken(self, settings: Evaluate, found: dict[str, Any]) -> list[str]:
        """A sentence for each limit that is exceeded."""
        ...

    def show(self, run: Run, made: str) -> None:
        """Draw what there is to see of the last evaluation, into RUN/figures."""
        ...


@dataclass
class PointEngine:
    """Points against fresh data, on the first process; see `Engine`."""

    toy: Toy
    facts: DataFacts
    state: PartialState
    count: ClassVar[int] = 20_000
    main: ClassVar[str] = "sw2"
    limits: ClassVar[tuple[str, ...]] = ("max_off", "max_sw2", "max_mass_ratio")
    shared: ClassVar[bool] = False

    @classmethod
    def find(cls, config: Config, facts: DataFacts, space: Any, asked: Asked, state: PartialState) -> "PointEngine":
        return cls(build_toy(config), facts, state)

    @classmethod
    def check(cls, settings: Evaluate, facts: DataFacts) -> None:
        if settings.max_frechet is not None or settings.features != "proxy" or settings.inception:
            raise SettingsError("--max-frechet, --features and --inception are for runs on images")
        if settings.sweep_guidance:
            raise SettingsError(f"--sweep-guidance needs a conditional run on images, and {settings.run} is not one")

    def __call__(
        self, sampler: Sampler, how: Solving, seeds: range, inside: Inside = nullcontext
    ) -> dict[str, Any] | None:
        if not self.state.is_main_process:
            return None
        found = None
        with inside():
            drawn = sampler.draw(seeds, turns(seeds, self.facts.classes))
            data = self.toy.sample(torch.rand(len(seeds), 3, generator=generator("evaluation")))
            scores = score_points(drawn.x_1, data, self.toy.part(drawn.x_1), self.toy.parts)._asdict()
            found = {**scores, **made_how(how.record, seeds, drawn.nfe)}
        return found

    def quick(self, sampler: Sampler, how: Solving, seeds: range) -> dict[str, Any] | None:
        found = self(sampler, how, seeds)
        return None if found is None else {**found, "score": found[self.main]}

    def broken(self, settings: Evaluate, found: dict[str, Any]) -> list[str]:
        scores = PointScores(*(found[name] for name in PointScores._fields))
        return failures(scores, settings.max_off, settings.max_sw2, settings.max_mass_ratio)

    def show(self, run: Run, made: str) -> None:
        pass


@dataclass
class PictureEngine:
    """Pictures in the features of a network, every process drawing its share; see `Engine`."""

    comparison: Comparison
    facts: DataFacts
    state: PartialState
    last: tuple[Drawn, Nearest] | None = None
    count: ClassVar[int] = 1000
    main: ClassVar[str] = "frechet"
    limits: ClassVar[tuple[str, ...]] = ("max_frechet",)
    shared: ClassVar[bool] = True

    @classmethod
    def find(cls, config: Config, facts: DataFacts, space: Any, asked: Asked, state: PartialState) -> "PictureEngine":
        with state.main_process_first():  # before anything slow: it may not be there; one fetches it for all
            extractor = find_extractor(asked, facts.shape, state.device)
        return cls(build_comparison(config, facts, space, extractor, state, asked.learned), facts, state)

    @classmethod
    def check(cls, settings: Evaluate, facts: DataFacts) -> None:
        if any(getattr(settings, name) is not None for name in PointEngine.limits):
            raise SettingsError("--max-off, --max-sw2 and --max-mass-ratio are for runs on points")
        if settings.inception and settings.features != "inception":
            raise SettingsError(f"--inception {settings.inception} needs --features inception")
        if settings.sweep_guidance and not facts.classes:
            raise SettingsError(f"--sweep-guidance needs a conditional run on images, and {settings.run} is not one")
        if settings.sweep_guidance and (settings.count or cls.count) <= NEAREST:
            raise SettingsError(f"--count {settings.count} is too few for --sweep-guidance: give more than {NEAREST}")

    def _drawn(self, sampler: Sampler, seeds: range, inside: Inside = nullcontext, kept: int = KEPT) -> Drawn | None:
        """The samples of these seeds in features, on the first process."""

        def gather(own: DrawnShare | None) -> list[DrawnShare | None]:
            shares: list[DrawnShare | None] = gather_object([own])
            return shares if self.state.is_main_process else [None]

        mine = share(range(len(seeds)), self.state.process_index, self.state.num_processes)
        cond = turns(seeds, self.facts.classes)
        return compare.draw_all(sampler, self.comparison, seeds, cond, mine, gather, inside, kept)

    def __call__(
        self, sampler: Sampler, how: Solving, seeds: range, inside: Inside = nullcontext
    ) -> dict[str, Any] | None:
        drawn = self._drawn(sampler, seeds, inside)
        if drawn is None:
            return None
        scores, near = compare.score(drawn, self.comparison)
        self.last = drawn, near
        return {**scores, **made_how(how.record, seeds, drawn.nfe), **compare.told(self.comparison, drawn)}

    def quick(self, sampler: Sampler, how: Solving, seeds: range) -> dict[str, Any] | None:
        # neighbourhoods take as long as the samples
        drawn = self._drawn(sampler, seeds, kept=0)
        if drawn is None:
            return None
        made = {**compare.told(self.comparison, drawn), **made_how(how.record, seeds, drawn.nfe)}
        return {**made, "score": compare.distance(drawn, self.comparison)}

    def broken(self, settings: Evaluate, found: dict[str, Any]) -> list[str]:
        most, sentences = settings.max_frechet, []
        if most is not None and not found["frechet"] <= most:
            sentences.append(f"{found['distance']} is {found['frechet']:.4g}, more than {most:g}")
        if most is not None and found.get("not_finite"):
            sentences.append(f"{found['not_finite']} samples are not finite")
        return sentences

    def show(self, run: Run, made: str) -> None:
        """Some samples beside the training pictures nearest to them, for the report."""
        from flowimg.figures.pictures import picture_table  # matplotlib takes a while to import

        assert self.last is not None
        assert self.comparison.reference is not None
        drawn, near = self.last
        rows, data = near.row[:SHOWN], self.comparison.reference.data
        table = torch.cat([drawn.pixels[: len(rows), None], data.pictures.pixels[rows]], dim=1)
        names = ["new", *(str(place + 1) for place in range(rows.shape[1]))]
        label = drawn.cond.label
        who = [""] * len(rows) if label is None else [self.facts.classes[number] for number in label[: len(rows)]]
        figure = Figure(
            "nearest.png",
            "Is it a copy?",
            "Samples, and to their right the training pictures nearest to them by pixels, from near to far"
            + (", mirrored ones too." if data.mirrored else "."),
            made,
        )
        path, title = run.folder.figures / figure.file, "Samples, and the training pictures nearest to each"
        picture_table(table, who, names, path, title)
        add_figures(run.folder.figures, [figure])


ENGINES: dict[type, type[Engine]] = {Points: PointEngine, Pixels: PictureEngine}
"""How samples of each space are scored."""


def find_extractor(asked: Asked, shape: tuple[int, ...], device: torch.device) -> Extractor | None:
    """The network that is asked for; None for `proxy`, which the data decide.

    Raises:
        SettingsError: If it calls itself proxy and is none.
        ExtractorError: If there is no such network.
    """
    features = asked.features
    if features == "proxy":
        return None
    if features.startswith("proxy") and features != "proxy-random":
        raise SettingsError(
            f"there are no features {features}: proxy is the classifier of the data's labels where there are any, and "
            "proxy-random needs none"
        )
    if features == "proxy-random":
        return networks.random_convolutions(shape[0], shape[1], device)
    if features == "inception":
        return networks.inception(asked.inception, asked.download, device)
    return networks.transformer(features, asked.download, device)


def build_comparison(
    config: Config,
    facts: DataFacts,
    space: Space,
    extractor: Extractor | None,
    state: PartialState,
    learned: str | None = None,
) -> Comparison:
    """A network, and the run's data seen by it; kept in the cache folder for the next time.

    Args:
        config: The run.
        facts: What it learned of its data.
        space: What x is.
        extractor: The network; None for the one that the data decide: a classifier of their labels, or fixed filters.
        state: The processes.
        learned: The fingerprint of what it learned from, if known; other data of the same form are warned of.

    Raises:
        DataError: If the data are of another form than what the run learned from.
    """
    # by whom samples are judged, or what they are compared in: a run without labels may be compared in what those of
    # its data teach
    wanted = extractor is None or config.data.labels
    seen = config.model_copy(update={"data": config.data.model_copy(update={"labels": wanted})})
    with state.main_process_first():  # one fills the cache of what was looked through, the others read it
        source = build_source(seen)
    check_same(config, facts, source.facts)
    classes = len(source.facts.classes)
    cache = cache_of(config)
    data = None
    if state.is_main_process:
        data = _data_set(seen, source.load(torch.device("cpu")), learned if wanted == config.data.labels else None)
    # of a single class there is nothing to tell apart; the first process sends it to the others: one trained elsewhere
    # would be rounded differently, and see differently
    weights: list[Any] = [judge_weights(cache, data, classes) if data and classes > 1 else None]
    broadcast_object_list(weights)
    judge = None
    if weights[0] is not None:
        judge = Classifier(source.facts.shape[0], classes)
        judge.load_state_dict(weights[0])
        judge = judge.eval()
    if extractor is None and judge is not None:
        extractor = networks.classifier_features(judge, state.device)
    elif extractor is None:
        extractor = networks.random_convolutions(facts.shape[0], facts.shape[1], state.device)
    reference = reference_of(cache, data, extractor) if data else None
    return Comparison(space, extractor, reference, judge)


def _data_set(config: Config, batches: Any, learned: str | None) -> DataSet:
    """The training pictures and the held-out ones; a change since the run learned from them is warned of."""
    data: Any = config.data
    if learned not in (None, batches.fingerprint):
        print(
            f"warning   {data.source} has changed: the run learned from pictures of fingerprint {learned}, "
            f"and is compared with those there now, {batches.fingerprint}"
        )
    pictures = batches.some(min(MOST_PICTURES, MOST_BYTES // math.prod(batches.space.shape)))
    held_out = batches.held_out(data.held_out)
    batches.close()
    name = f"{len(pictures.pixels):,} training pictures of {data.source}, {data.split}"
    return DataSet(name, fingerprint(pictures), pictures, held_out, data.flip or data.augment > 0)
