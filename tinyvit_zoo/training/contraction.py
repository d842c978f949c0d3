"""Contraction (TinyViT, Sec. 3.2 and supplement A): from a large TinyViT to a small one, a step at a time.

A step takes the models around the current one that are within its limits of parameters and throughput, trains each for
a short while on the same images in the same order, and goes on from the best on held-out images. What is measured is on
disk at once, so a search that is killed at any moment goes on with the same ranking; and any number of processes may
work on one search, each on a candidate of its own.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from torch import nn

from ..common.errors import EvaluationError
from ..common.files import write_whole
from ..common.paths import read_json
from ..common.plain import plain
from ..common.processes import on_its_own
from ..common.text import count_of
from ..data.image_dataset import ImageDataset
from ..data.split import stratified_split
from ..data.subsets import subset_identity
from ..data.transforms import data_config
from .contraction_factors import Candidate, Factors, candidates, count_parameters, factors_of, smallest
from .contraction_outcomes import Outcome, Ranked, Trainer, outcome_of, outcome_words, rank
from .loop import RunSettings
from .recipes import Recipe
from .run_state import BEST, STATE, alone_in, read_weights
from .short_training import Make, ShortTraining

__all__ = ['Contraction', 'Estimate', 'Limits', 'Step', 'contract', 'estimate', 'limits_of', 'search']

LEAST_SHARE = 0.7  # of parameters, or of the time of an image, that a step leaves, where steps are not given
MANY_IMAGES, HELD_OUT_OF_MANY = 100_000, 0.01  # the paper's share, of ImageNet
WAIT = 0.2  # seconds until the next look at candidates that other processes hold

SEARCH = 'search.json'
WORDS = ('source', 'notes', 'starts', 'starts_at', 'held_out')  # of a recipe; the images show the last


@dataclass(frozen=True)
class Limits:
    """Of a step: most parameters, and least throughput as a multiple of the start model's; None for any."""

    parameters: int
    throughput: float | None = None


@dataclass(frozen=True)
class Step:
    """A step of the search.

    Attributes:
        number: From 1.
        limits: That its candidates had to meet.
        ranking: All that met them, the one that the search goes on from first.
        too_slow: All that missed the throughput.
    """

    number: int
    limits: Limits
    ranking: tuple[Ranked, ...]
    too_slow: tuple[Outcome, ...]

    @property
    def winner(self) -> Candidate:
        return self.ranking[0].outcome.candidate


@dataclass(frozen=True)
class Contraction:
    """A finished search.

    Attributes:
        model: The winner of the last step with the weights of its short training, in eval mode.
        arguments: Of the start model's builder, that make it.
        start: Factors of the start model.
        start_parameters: How many it has.
        steps: All of them, in order.
        training_images: How many images every candidate was trained on.
        held_out_images: How many images they were ranked on.
        recipe: As they were trained by.
    """

    model: nn.Module
    arguments: dict[str, Any]
    start: Factors
    start_parameters: int
    steps: tuple[Step, ...]
    training_images: int
    held_out_images: int
    recipe: Recipe


@dataclass(frozen=True)
class Estimate:
    """What a search would be.

    Attributes:
        limits: Of each step.
        first: The candidates of the first step.
        seconds: About the longest that one process takes: of the start model, which is larger than all candidates.
    """

    limits: tuple[Limits, ...]
    first: tuple[Candidate, ...]
    seconds: float


def contract(
    make: Make,
    name: str,
    dataset: ImageDataset,
    recipe: Recipe,
    output: str | Path,
    *,
    parameters: int,
    throughput: float | None = None,
    steps: int | None = None,
    held_out: float | None = None,
    **run: Unpack[RunSettings],
) -> Contraction:
    """Search, or go on with an earlier search in the same folder, alone or together with other processes.

    Processes that `torchrun` or `accelerate launch` has started each take candidates, and so do those that are given
    the same folder in any other way, where the file system has locks. The folder keeps what was measured of every
    candidate, and the weights of those that a step went on from.

    Args:
        make: Makes a TinyViT with as many classes as the data set has, at the size to search at; takes `device` and
            arguments of `TinyViT`.
        name: Of the start model, for messages.
        dataset: Images, of which a share is held out.
        recipe: Of the short trainings.
        output: Folder of the search.
        parameters: Most that the result has.
        throughput: Least of the result, as a multiple of the start model's; None for any.
        steps: None for as many that none leaves less than 70 % of the parameters, or of the time of an image.
        held_out: Share of each class that candidates are ranked on. None: as the recipe has it, but 1 % from 100,000
            images on.
        **run: See `TrainingLoop`; `seed` is also that of the initial weights, the held-out images, order and views.

    Raises:
        EvaluationError: If `make` makes no TinyViT, a limit is not below the start model or nothing meets it, images or
            batches do not suffice, the folder is that of another search or cannot be written to, or a training fails,
            see `TrainingLoop`.
    """
    output, say = Path(output), run.get('say', print)
    plan = _plan(make, name, dataset, recipe, parameters, throughput, steps, held_out, run)
    training = plan.training
    with on_its_own():
        with alone_in(output):
            _check_same_search(output, plan.identity(name))
        say(
            f'{name}: {plan.parameters:,} parameters; {count_of(len(training.train), "image")} to train on, '
            f'{len(training.held):,} held out to rank on; {_steps_words(plan.limits)}.'
        )
        found = search(training.start, plan.limits, plan.img_size, training.count, training, output, say)
        model = training.make(found[-1].winner.factors)
        model.load_state_dict(read_weights(_folder(output, found[-1].number, found[-1].winner)))
    return Contraction(
        model=model.eval(),
        arguments=found[-1].winner.factors.arguments(training.start),
        start=training.start,
        start_parameters=plan.parameters,
        steps=found,
        training_images=len(training.train),
        held_out_images=len(training.held),
        recipe=training.recipe,
    )


def estimate(
    make: Make,
    name: str,
    dataset: ImageDataset,
    recipe: Recipe,
    *,
    parameters: int,
    throughput: float | None = None,
    steps: int | None = None,
    held_out: float | None = None,
    **run: Unpack[RunSettings],
) -> Estimate:
    """What `contract` would do, with its time from two updates of the start model. Nothing is written.

    Args: See `contract`.

    Raises:
        EvaluationError: See `contract`.
    """
    plan = _plan(make, name, dataset, recipe, parameters, throughput, steps, held_out, run)
    training, limits = plan.training, plan.limits
    first = candidates(training.start, limits[0].parameters, plan.img_size, training.count)
    return Estimate(limits, tuple(first), len(limits) * len(first) * training.seconds())


def limits_of(
    own: int, name: str, parameters: int, throughput: float | None = None, steps: int | None = None
) -> tuple[Limits, ...]:
    """The limits of each step: from one to the next by the same factor, in the last as asked for.

    Args:
        own: Parameters of the start model.
        name: Of the start model, for messages.
        parameters: Most at the end.
        throughput: Least at the end, as a multiple of the start model's.
        steps: See `contract`.

    Raises:
        EvaluationError: If the start model has no more than those parameters, or the throughput is no gain.
    """
    if parameters >= own:
        raise EvaluationError(
            f'--params {parameters:,} is not below the {own:,} parameters of {name} with this classifier: give fewer, '
            'or start from a larger TinyViT.'
        )
    if throughput is not None and throughput < 1:
        raise EvaluationError(
            f'--throughput {throughput:g}x is slower than {name} itself: give at least 1x, or leave it out.'
        )
    share, speed = parameters / own, throughput or 1.0
    steps = steps or max(1, math.ceil(math.log(min(share, 1 / speed)) / math.log(LEAST_SHARE) - 1e-9))
    between = [
        Limits(round(own * share ** (i / steps)), None if throughput is None else throughput ** (i / steps))
        for i in range(1, steps)
    ]
    return (*between, Limits(parameters, throughput))


def search(
    start: Factors,
    limits: Sequence[Limits],
    img_size: tuple[int, int],
    count: Callable[[Factors], int],
    trainer: Trainer,
    output: Path,
    say: Callable[[str], None] = print,
) -> tuple[Step, ...]:
    """The steps of a contraction, with the state of each candidate in `output`.

    Args:
        start: Factors to start from.
        limits: Of each step.
        img_size: (H, W).
        count: Parameters of a model by its factors.
        trainer: Measures what is not in the folder yet.
        output: Folder.
        say: Prints a line.

    Raises:
        EvaluationError: If nothing meets the limits of a step, or a file is damaged or of another search.
    """
    current, found = start, []
    for number, limit in enumerate(limits, 1):
        around = candidates(current, limit.parameters, img_size, count)
        say(f'Step {number} of {len(limits)}: {count_of(len(around), "candidate")} of at most {_limit_words(limit)}.')
        outcomes = _outcomes(around, limit, trainer, output, number, say)
        step = _step(number, limit, outcomes)
        for line in _ranking_words(step):
            say(line)
        for outcome in outcomes:  # by any process: all of them have measured all by now, and read the winner's alone
            place = _folder(output, number, outcome.candidate)
            for file in (STATE,) if outcome.candidate == step.winner else (STATE, BEST):
                (place / file).unlink(missing_ok=True)
        found.append(step)
        current = step.winner.factors
    return tuple(found)


@dataclass(frozen=True)
class _Plan:
    """A search before its first step."""

    parameters: int
    img_size: tuple[int, int]
    input: Mapping[str, Any]
    limits: tuple[Limits, ...]
    training: ShortTraining

    def identity(self, name: str) -> dict[str, str]:
        """Everything that must be the same for a search to go on in a folder."""
        settings = {key: value for key, value in plain(self.training.recipe).items() if key not in WORDS}
        return dict(
            {f'recipe: {key}': repr(value) for key, value in settings.items()},
            model=f'{name}: {self.training.start}',
            input=repr(sorted(plain(self.input).items())),
            limits=repr(plain(self.limits)),
            images=self.training.train.fingerprint(),
            held_out=self.training.held.fingerprint(),
            seed=str(self.training.seed),
            **subset_identity(self.training.train),
        )


def _plan(
    make: Make,
    name: str,
    dataset: ImageDataset,
    recipe: Recipe,
    parameters: int,
    throughput: float | None,
    steps: int | None,
    held_out: float | None,
    run: RunSettings,
) -> _Plan:
    """What is to be searched, checked as far as it can be before the first training."""
    start: Any = make(device='meta')
    factors, own = factors_of(start, name), count_parameters(start)
    limits = limits_of(own, name, parameters, throughput, steps)
    rest, held = _split(dataset, recipe, held_out, run.get('seed', 0))
    training = ShortTraining(make, factors, rest, held, _fitted(recipe, len(rest)), run)
    least = training.count(smallest(factors))
    if parameters < least:
        raise EvaluationError(
            f'--params {parameters:,} is less than the smallest model that {name} contracts to has, which is nearest '
            f'with {least:,}: give at least as many.'
        )
    return _Plan(own, start.img_size, data_config(start), limits, training)


def _split(
    dataset: ImageDataset, recipe: Recipe, held_out: float | None, seed: int
) -> tuple[ImageDataset, ImageDataset]:
    """The images to train on and those to rank on."""
    if len(np.unique(dataset.labels)) < 2:
        raise EvaluationError(
            f'All images of {dataset.name} ({dataset.split}) are of one class: there is nothing to rank candidates by.'
        )
    share = recipe.held_out if held_out is None else held_out
    if held_out is None and len(dataset) >= MANY_IMAGES:
        share = HELD_OUT_OF_MANY
    rest, held = stratified_split(dataset.labels, share, seed)
    return dataset.subset(rest), dataset.subset(held)


def _fitted(recipe: Recipe, images: int) -> Recipe:
    fitted = recipe.fitted(images)
    if images < fitted.batch_size:
        raise EvaluationError(
            f'{count_of(images, "training image")} cannot fill a batch of {fitted.batch_size}: choose a smaller '
            '--batch-size.'
        )
    return fitted


def _outcomes(
    around: Sequence[Candidate],
    limit: Limits,
    trainer: Trainer,
    output: Path,
    number: int,
    say: Callable[[str], None],
) -> list[Outcome]:
    """What this process and others measure of all candidates of a step."""
    found: dict[Candidate, Outcome] = {}
    while len(found) < len(around):
        before = len(found)
        for candidate in around:
            if candidate not in found:
                outcome = outcome_of(candidate, limit.throughput, trainer, _folder(output, number, candidate))
                if outcome is not None:
                    found[candidate] = outcome
                    say(f'{len(found)}/{len(around)} {outcome_words(outcome)}')
        if len(found) == before:
            time.sleep(WAIT)
    return [found[candidate] for candidate in around]


def _step(number: int, limit: Limits, outcomes: Sequence[Outcome]) -> Step:
    trained = [outcome for outcome in outcomes if outcome.right is not None]
    slow = tuple(outcome for outcome in outcomes if outcome.right is None)
    if not trained:
        nearest = max(slow, key=lambda outcome: outcome.throughput)
        raise EvaluationError(
            f'No candidate of step {number} has a throughput of {limit.throughput:.2f}x at {limit.parameters:,} '
            f'parameters; the nearest ({nearest.candidate.name}, {nearest.candidate.parameters:,} parameters) has '
            f'{nearest.throughput:.2f}x: give a lower --throughput or fewer --params.'
        )
    return Step(number, limit, tuple(rank(trained)), slow)


def _folder(output: Path, number: int, candidate: Candidate) -> Path:
    return output / f'step-{number}' / candidate.name


def _check_same_search(output: Path, identity: Mapping[str, str]) -> None:
    """Write down what is searched for, or compare it with what is in the folder."""
    path = output / SEARCH
    if not path.exists():
        write_whole(path, (json.dumps(dict(identity), indent=2) + '\n').encode())
        return
    try:
        theirs = dict(read_json(path))
    except (OSError, ValueError, TypeError) as e:
        raise EvaluationError(f'{path} is damaged: choose another --output, or remove {output}.') from e
    other = sorted(key for key in identity.keys() | theirs.keys() if identity.get(key) != theirs.get(key))
    if other:
        raise EvaluationError(
            f'{output} holds another search, which differs in: {", ".join(other)}. Choose another --output, or remove '
            f'{output}.'
        )


def _steps_words(limits: Sequence[Limits]) -> str:
    return f'{len(limits)} step{"s" if len(limits) > 1 else ""} to {_limit_words(limits[-1])}'


def _limit_words(limit: Limits) -> str:
    words = f'{limit.parameters:,} parameters'
    return words if limit.throughput is None else f'{words} and at least {limit.throughput:.2f}x the throughput'


def _ranking_words(step: Step) -> list[str]:
    """A line for each candidate, the first one chosen."""
    lines = []
    for place, ranked in enumerate(step.ranking, 1):
        low, high = ranked.interval
        behind = f'{ranked.difference:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f}'
        words = 'the most accurate' if low == high == 0 else behind + (', tied' if ranked.tied else '')
        lines.append(f'  {place}. {outcome_words(ranked.outcome)} ({words})')
    ties = sum(ranked.tied for ranked in step.ranking)
    why = f'the fastest of {ties} that cannot be told apart' if ties > 1 else 'the most accurate'
    lines.append(f'Step {step.number} goes to {step.winner.name}: {why}.')
    return lines
