"""Text, tables and figures of `evaluate`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tinyvit_zoo.common.per_class import per_class_words
from tinyvit_zoo.common.text import count_of
from tinyvit_zoo.data.class_map import readable
from tinyvit_zoo.data.image_dataset import ImageDataset

from ..imagenet import NO_CLASS, Scores
from ..imagenet_c import SEVERITIES, Corruptions
from ..results import eval_results_entry, record, write
from . import plots

__all__ = ['preprocessing_words', 'print_corruptions', 'print_scores', 'write_corruptions', 'write_scores']

Say = Callable[[str], None]


def print_scores(scores: Scores, dataset: ImageDataset, head: Mapping[str, Any], say: Say) -> None:
    """Print the accuracies, the competing outputs, and the preprocessing.

    Args:
        scores: Of a classifier.
        dataset: The evaluated images.
        head: `name` and `weights` of the model, in words.
        say: Prints a line.
    """
    numbers = scores.summary()
    low, high = scores.ci95
    top5 = '' if scores.top5 is None else f', top-5 {scores.top5:.2f} %'
    say(f'{_title(dataset, head)}: {count_of(len(scores.labels), "image")}')
    per_class = per_class_words(scores.mean_per_class, scores.classes_at_zero)
    say(f'top-1 {scores.top1:.2f} % (95 % interval {low:.2f} to {high:.2f}), {per_class}{top5}')
    if 'real_images' in numbers:
        real = f'ReaL top-1 {numbers["real_top1"]:.2f} %, top-5 {numbers["real_top5"]:.2f} %'
        say(f'{real} of the {numbers["real_images"]:,} images that have labels; no mean per class: {NO_CLASS}')
    _say_how(scores, say)


def write_scores(folder: Path, scores: Scores, dataset: ImageDataset, head: Mapping[str, Any], say: Say) -> None:
    """Write results.json, accuracies by class and pairs of true class and prediction as CSV, and their figures.

    There is also an entry for the model card if the weights are released ones and the images are all those that papers
    report on.

    Args:
        folder: Made if it is missing.
        scores: Of a classifier.
        dataset: The evaluated images.
        head: For `results.record`: `model`, `name`, `weights`, `seed` and settings.
        say: Prints a line.
    """
    names, images, counts = readable(scores.classes), scores.confusion.sum(axis=1), scores.confusion
    classes = [
        dict(label=i, id=id, name=names[i], images=int(images[i]), top1=round(float(scores.per_class[i]), 4))
        for i, id in enumerate(scores.classes)
    ]
    pairs = [
        dict(true=scores.classes[r], answer=scores.classes[c], images=int(counts[r, c])) for r, c in np.argwhere(counts)
    ]
    title = _title(dataset, head)
    note = f'top-1 accuracy, %; {preprocessing_words(scores.preprocessing)}'
    whole = dataset.split in ('validation', 'test') and dataset.complete
    is_for_card = head['weights'] == 'pretrained' and whole
    entry = eval_results_entry(dataset.name, scores.top1, notes=note)
    write(
        folder,
        record('evaluate', dataset=dataset, **head, **scores.summary()),
        tables=dict(per_class=classes, confusion=pairs),
        figures=dict(
            per_class=plots.per_class_bars(scores.per_class, names, title=title),
            confusion=plots.confusion(counts, names, title=title),
        ),
        eval_results={dataset.name: entry if is_for_card else None},
        say=say,
    )


def print_corruptions(result: Corruptions, head: Mapping[str, Any], say: Say) -> None:
    """Print mCE, its corruption errors, the competing outputs, and the preprocessing; see `print_scores`."""
    relative = '' if result.relative_mce is None else f', relative mCE {result.relative_mce:.2f}'
    say(f'{head["name"]} ({head["weights"]}) on ImageNet-C:')
    mean = f'mean top-1 error {result.mean_error:.2f} %'
    if result.mean_per_class is not None:
        mean += f', accuracy {per_class_words(result.mean_per_class, result.classes_at_zero)}'
    say(f'mCE {result.mce:.2f}{relative} (AlexNet: 100); {mean}')
    for name, ce in result.ce.items():
        say(f'  {name:18s} CE {ce:6.2f}   top-1 error {np.mean(result.errors[name]):6.2f} %')
    _say_how(result, say)


def write_corruptions(
    folder: Path, result: Corruptions, head: Mapping[str, Any], clean: ImageDataset | None, say: Say
) -> None:
    """Write results.json, the errors as CSV and as a heat map, and the accuracies of the classes over all corruptions
    as CSV; see `write_scores`.
    """
    rows = []
    for name, errors in result.errors.items():
        of_severity = {f'error_{s}': round(e, 4) for s, e in zip(SEVERITIES, errors, strict=True)}
        per_class = result.per_class_errors.get(name)
        mean = {} if per_class is None else dict(mean_per_class=round(100 - float(np.mean(per_class)), 4))
        rows.append(dict(corruption=name, ce=round(result.ce[name], 4), **of_severity, **mean))
    names = readable(list(result.classes))
    classes = [
        dict(id=id, name=name, images=images, top1=round(top1, 4))
        for name, (id, (images, top1)) in zip(names, result.classes.items(), strict=True)
    ]
    figure = plots.heat_map(
        np.array(list(result.errors.values())), list(result.errors), SEVERITIES,
        title=f'{head["name"]} ({head["weights"]}) on ImageNet-C', row_label='corruption', column_label='severity',
        unit='top-1 error, %',
    )  # fmt: skip
    write(
        folder,
        record('evaluate', dataset=clean, **head, **result.summary()),
        tables=dict(corruptions=rows, per_class=classes),
        figures=dict(corruptions=figure),
        say=say,
    )


def _title(dataset: ImageDataset, head: Mapping[str, Any]) -> str:
    return f'{head["name"]} ({head["weights"]}) on {dataset.name} ({dataset.split})'


def _say_how(result: Scores | Corruptions, say: Say) -> None:
    say(f'Classes: {result.compared}.')
    say(f'Preprocessing: {preprocessing_words(result.preprocessing)}.')


def preprocessing_words(config: Mapping[str, Any]) -> str:
    """'224 px, crop 0.875 (center), bicubic' of arguments of `timm.data.create_transform`."""
    _, height, width = config['input_size']
    side = f'{height}' if height == width else f'{height}x{width}'
    return f'{side} px, crop {config["crop_pct"]:g} ({config["crop_mode"]}), {config["interpolation"]}'
