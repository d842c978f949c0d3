"""The files of a contraction: its tree, a table, parameters against accuracy, and the winner as a folder for timm."""

import json
import math
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.files import write_whole
from tinyvit_zoo.common.paired_timing import cpu_name
from tinyvit_zoo.common.plain import plain
from tinyvit_zoo.data.image_dataset import ImageDataset
from tinyvit_zoo.downstream.results import record, write
from tinyvit_zoo.downstream.statistics import wilson
from tinyvit_zoo.hub.folder import save_folder
from tinyvit_zoo.training.contraction import Contraction, Step
from tinyvit_zoo.training.contraction_factors import Factors
from tinyvit_zoo.training.contraction_outcomes import Outcome, Ranked

from . import plots

__all__ = ['tree', 'write_contraction']

TREE = 'tree.json'


def tree(result: Contraction, name: str) -> dict[str, Any]:
    """The search in plain values: each step with its limits and candidates, the one that it went on from first.

    Args:
        result: The search.
        name: Of the start model.
    """
    steps = [
        dict(
            step=step.number,
            limits=step.limits,
            winner=step.winner.name,
            candidates=[_ranked(place, ranked, result.start) for place, ranked in enumerate(step.ranking, 1)],
            too_slow=[_outcome(outcome, result.start) for outcome in step.too_slow],
        )
        for step in result.steps
    ]
    start = dict(name=name, parameters=result.start_parameters, factors=result.start)
    return plain(dict(start=start, steps=steps, winner=_winner(result, name)))


def _winner(result: Contraction, name: str) -> dict[str, Any]:
    outcome = result.steps[-1].ranking[0].outcome
    interval = wilson(outcome.accuracy, result.held_out_images)
    own = _outcome(outcome, result.start)
    return dict(own, name=name, arguments=result.arguments, held_out_accuracy_ci95=interval)


def _outcome(outcome: Outcome, start: Factors) -> dict[str, Any]:
    accuracy = None if math.isnan(outcome.accuracy) else outcome.accuracy
    candidate = outcome.candidate
    return dict(
        name=candidate.name,
        parameters=candidate.parameters,
        throughput=outcome.throughput,
        held_out_accuracy=accuracy,
        factors=candidate.factors,
        arguments=candidate.factors.arguments(start),
    )


def _ranked(place: int, ranked: Ranked, start: Factors) -> dict[str, Any]:
    return dict(
        place=place,
        **_outcome(ranked.outcome, start),
        difference=ranked.difference,
        difference_ci95=ranked.interval,
        tied=ranked.tied,
    )


def write_contraction(
    output: Path,
    result: Contraction,
    dataset: ImageDataset,
    *,
    name: str,
    seed: int,
    say: Callable[[str], None] = print,
) -> None:
    """Write results.json, tree.json, candidates.csv, parameters.png and the folder `model`.

    Args:
        output: Folder of the search.
        result: The search.
        dataset: What was trained on and held out.
        name: Of the start model.
        seed: Of the search.
        say: Prints a line.

    Raises:
        EvaluationError: If the folder cannot be written to, or the model cannot be saved.
    """
    found = tree(result, name)
    winner = found['winner']
    results = record(
        'contract', model=result.model, dataset=dict(train=dataset), seed=seed, name=name,
        weights=f'random (seed {seed})', recipe=result.recipe, cpu=cpu_name(), training_images=result.training_images,
        held_out_images=result.held_out_images, winner=winner,
    )  # fmt: skip
    rows = [row for step in result.steps for row in _rows(step)]
    figures = dict(parameters=_figure(result, f'Contraction of {name} on {dataset.name}'))
    write_whole(output / TREE, (json.dumps(found, indent=2) + '\n').encode())
    write(output, results, tables=dict(candidates=rows), figures=figures, say=say)
    say(f'The tree of the search: {output / TREE}')
    tag = 'contract_' + re.sub(r'\W+', '_', Path(dataset.name).name).strip('_').lower()
    try:
        save_folder(result.model, output / 'model', label_names=dataset.classes, tag=tag)
    except ValueError as e:  # a model that its configuration cannot rebuild
        raise EvaluationError(f'The results are written, the model is not. {e}') from e
    _say_winner(winner, result, output, say)


def _say_winner(winner: dict[str, Any], result: Contraction, output: Path, say: Callable[[str], None]) -> None:
    low, high = winner['held_out_accuracy_ci95']
    say(
        f'Result: {winner["parameters"]:,} parameters ({winner["parameters"] / result.start_parameters:.0%}), '
        f'{winner["throughput"]:.2f}x the throughput; {winner["held_out_accuracy"]:.2f} % of '
        f'{result.held_out_images:,} held-out images after its short training (95 % interval {low:.2f} to {high:.2f}).'
    )
    arguments = ', '.join(f'{key}={value!r}' for key, value in result.arguments.items())
    say(f"As arguments: timm.create_model('{winner['name']}', {arguments})")
    model = f'local-dir:{output / "model"}'
    say(f'The model: timm.create_model({model!r}, pretrained=True)')
    say(f'To train it at length: tinyvit-zoo finetune {shlex.quote(str(output))} ...')


def _rows(step: Step) -> list[dict[str, Any]]:
    """The candidates of a step as rows of a table, those that were too slow last and without a place."""
    ranked = [
        dict(
            step=step.number, place=place, **_row(r.outcome), difference=r.difference, difference_low=r.interval[0],
            difference_high=r.interval[1], tied=r.tied,
        )
        for place, r in enumerate(step.ranking, 1)
    ]  # fmt: skip
    return ranked + [dict(step=step.number, place=None, **_row(outcome)) for outcome in step.too_slow]


def _row(outcome: Outcome) -> dict[str, Any]:
    factors = outcome.candidate.factors
    return dict(
        name=outcome.candidate.name,
        parameters=outcome.candidate.parameters,
        throughput=outcome.throughput,
        held_out_accuracy=None if math.isnan(outcome.accuracy) else outcome.accuracy,
        D='-'.join(map(str, factors.D)),
        N='-'.join(map(str, factors.N)),
        W='-'.join(f'{h}x{w}' for h, w in factors.W),
        R=factors.R,
        M=factors.M,
        E=factors.E,
    )


def _figure(result: Contraction, title: str) -> Any:
    points = {
        f'step {step.number}': [
            (r.outcome.candidate.parameters / 1e6, r.outcome.accuracy, r.outcome.candidate.name) for r in step.ranking
        ]
        for step in result.steps
    }
    return plots.accuracy_over_parameters(points, title=title, y_label='accuracy on held-out images, %')
