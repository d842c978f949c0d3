"""Text, tables and figures of two models on the same images."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinyvit_zoo.common.plain import plain
from tinyvit_zoo.data.image_dataset import ImageDataset

from ..compare import ModelFeatures, Row
from ..results import record, write
from . import plots

__all__ = ['write_comparison']


def write_comparison(
    output: str | Path,
    datasets: Mapping[str, ImageDataset],
    models: Sequence[ModelFeatures],
    rows: Sequence[Row],
    *,
    seed: int,
    shots: Sequence[int],
    ways: int,
    episodes: int,
    say: Callable[[str], None] = print,
    **settings: Any,
) -> Path:
    """Write results.json, compare.csv, and figures of the differences, of accuracy over shots and of the features.

    Args:
        output: Folder.
        datasets: Images by what they were for; those of 'test' were answered.
        models: The two.
        rows: See `compare.compare`; those of the shots come first.
        seed: Of the run.
        shots: Images of each class to learn from, one row each.
        ways: Classes of an episode.
        episodes: Number of episodes.
        say: Prints a line.
        **settings: Further entries of results.json.

    Returns:
        Path of results.json.

    Raises:
        EvaluationError: If the folder cannot be written to.
    """
    test = datasets['test']
    figures = dict(
        differences=plots.differences(
            [row.task for row in rows], *([getattr(row, key) for row in rows] for key in ('difference', 'low', 'high')),
            title=f'{models[0].name} minus {models[1].name}, {test.name}',
        ),
        shots=plots.accuracy_over_shots(
            {
                model.name: {
                    n: (getattr(row, side), getattr(row, f'{side}_ci95'))
                    for n, row in zip(shots, rows, strict=False)
                }
                for side, model in zip('ab', models, strict=True)
            },
            title=f'{ways}-way few-shot on {test.name}, {episodes} episodes',
            chance=100 / ways,
        ),
    )  # fmt: skip
    for side, model in zip('ab', models, strict=True):
        features = model.test
        figures[f'tsne_{side}'] = plots.tsne(
            features.values.numpy(), features.labels.numpy(), features.classes,
            title=f'{model.name}: {test.name} (t-SNE)', seed=seed,
        )  # fmt: skip
    results = record(
        'compare', model=None, dataset=datasets, seed=seed, shots=shots, ways=ways, episodes=episodes, rows=rows,
        **settings,
    )  # fmt: skip
    table = [{**plain(row), 'remarks': '; '.join(row.remarks)} for row in rows]
    return write(output, results, tables=dict(compare=table), figures=figures, say=say)
