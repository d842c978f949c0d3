"""Text, tables and a figure of few-shot episodes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tinyvit_zoo.common.text import count_of
from tinyvit_zoo.data.image_dataset import ImageDataset

from ..few_shot import FewShotResult
from ..results import eval_results_entry, is_for_card, record, write
from . import plots

__all__ = ['print_few_shot', 'write_few_shot']

Results = Mapping[int, FewShotResult]
"""Results by the number of shots."""


def _title(head: Mapping[str, Any]) -> str:
    return (
        f'{head["name"]} ({head["weights"]}) on {head["dataset"].name}: {head["ways"]}-way few-shot, {head["solver"]}'
    )


def print_few_shot(results: Results, head: Mapping[str, Any], say: Callable[[str], None] = print) -> None:
    """Mean accuracy and its interval for each number of shots.

    Args:
        results: See `few_shot.run`.
        head: Arguments of `results.record`, among them name, weights, dataset, ways, episodes and solver.
        say: Prints a line.
    """
    say(f'{_title(head)}, {count_of(head["episodes"], "episode")}')
    for shots, result in results.items():
        say(f'  {shots:3d} {"shot: " if shots == 1 else "shots:"} {result.mean:.2f} ± {result.ci95:.2f} %')
    say('Every episode has as many queries of each class: the mean per class is the accuracy.')


def write_few_shot(
    output: str | Path, results: Results, head: Mapping[str, Any], say: Callable[[str], None] = print
) -> Path:
    """Write results.json, accuracy.csv, episodes.csv, accuracy.png, and entries for the card of released weights.

    Args:
        output: Folder.
        results: See `few_shot.run`.
        head: See `print_few_shot`.
        say: Prints a line.

    Returns:
        Path of results.json.

    Raises:
        EvaluationError: If the folder cannot be written to.
    """
    dataset: ImageDataset = head['dataset']
    rows = [
        dict(
            shots=shots, accuracy=r.mean, ci95=r.ci95, mean_per_class=r.mean, solver=r.solver, episodes=len(r.accuracy),
            sha256=r.episodes_sha256,
        )
        for shots, r in results.items()
    ]  # fmt: skip
    each = [
        dict(episode=i, **{f'accuracy_{shots}_shot': result.accuracy[i] for shots, result in results.items()})
        for i in range(head['episodes'])
    ]
    series = {f'{head["name"]} ({head["weights"]})': {shots: (r.mean, r.ci95) for shots, r in results.items()}}
    figure = plots.accuracy_over_shots(series, title=_title(head), chance=100 / head['ways'])
    return write(
        output,
        record('few-shot', **head, results=rows),
        tables=dict(accuracy=rows, episodes=each),
        figures=dict(accuracy=figure),
        eval_results=_entries(results, head) if is_for_card(head['weights'], dataset) else {},
        say=say,
    )


def _entries(results: Results, head: Mapping[str, Any]) -> dict[str, str | None]:
    name = head['dataset'].name
    note = f'{head["ways"]}-way few-shot, {head["solver"]}, mean of {count_of(head["episodes"], "episode")}'
    return {
        f'{name}-{shots}-shot': eval_results_entry(name, result.mean, notes=f'{note}, {count_of(shots, "shot")}')
        for shots, result in results.items()
    }
