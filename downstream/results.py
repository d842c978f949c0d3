"""The output of an evaluation: results.json with everything needed to repeat it, tables, and figures.

This module does not depend on any evaluator: they pass plain numbers.
"""

import csv
import json
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import PIL
import timm
import torch
from timm.models._input import get_model_input_config
from torch import nn

import tinyvit_zoo
from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.files import new_file
from tinyvit_zoo.common.hashes import state_hash
from tinyvit_zoo.common.plain import plain
from tinyvit_zoo.common.text import reason
from tinyvit_zoo.data.registry import find_entry
from tinyvit_zoo.hub.card import DATASETS, EVAL_RESULTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ['RESULTS', 'eval_results_entry', 'is_for_card', 'plain', 'record', 'save_figure', 'write', 'write_csv']

RESULTS = 'results.json'


def record(
    evaluator: str, *, model: nn.Module | None, dataset: Any, seed: int | None, name: str | None = None, **more: Any
) -> dict[str, Any]:
    """The content of a results.json: what was evaluated, on which data, and how.

    Args:
        evaluator: Its name, such as 'few-shot'.
        model: The backbone or classifier, whose weights are hashed; None if there is none.
        dataset: An `ImageDataset`, several of them by name, or None.
        seed: Of everything random; None if nothing is random.
        name: The user's name of the model; the architecture is added.
        **more: Settings and numbers of the evaluator, added at the end.

    Returns:
        Plain JSON values: evaluator, model with the size of its images, data, seed, versions, machine, command line,
        time, and `more`.
    """
    data: dict[str, Any] | None = None
    if isinstance(dataset, Mapping):
        data = {key: _data(value) for key, value in dataset.items()}
    elif dataset is not None:
        data = _data(dataset)
    versions = dict(
        python=platform.python_version(),
        torch=torch.__version__,
        timm=timm.__version__,
        numpy=np.__version__,
        pillow=PIL.__version__,
        tinyvit_zoo=tinyvit_zoo.__version__,
    )
    return plain(
        dict(
            evaluator=evaluator,
            model=None if model is None else _model(model, name),
            data=data,
            seed=seed,
            versions=versions,
            machine=f'{platform.system()} {platform.machine()}',
            command=shlex.join(sys.argv),
            time=datetime.now(UTC).isoformat(timespec='seconds'),
            **more,
        )
    )


def _model(model: nn.Module, name: str | None) -> dict[str, Any]:
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    return dict(
        name=name,
        architecture=cfg.get('architecture') or type(model).__name__,
        parameters=sum(p.numel() for p in model.parameters()),
        weights_sha256=state_hash(model),
        input_size=get_model_input_config(model)['input_size'] if cfg else None,  # (C, H, W) that it was built for
    )


def _data(dataset: Any) -> dict[str, Any]:
    selection = dataset.selection
    return dict(
        name=dataset.name,
        split=dataset.split,
        images=len(dataset),
        classes=len(dataset.classes),
        complete=dataset.complete,
        unreadable_left_out=list(dataset.skipped),
        sha256=dataset.fingerprint(),
        **({} if selection is None else dict(subset=selection.facts())),
    )


def write(
    folder: str | Path,
    results: Mapping[str, Any],
    *,
    tables: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    figures: Mapping[str, 'Figure'] | None = None,
    eval_results: Mapping[str, str | None] | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Write results.json, NAME.csv for each table, NAME.png for each figure, and entries for a model card.

    Every file is written whole or not at all, results.json last. With several processes (torch.distributed) only the
    first writes.

    Args:
        folder: Made if it is missing; files with the same names are replaced, others stay.
        results: See `plain`.
        tables: Rows by name; the columns are the keys, in the order of their first appearance.
        figures: By name.
        eval_results: Texts of `eval_results_entry` by data set, for .eval_results/NAME.yaml; None is skipped.
        say: Prints a line, with the written files.

    Returns:
        Path of results.json.

    Raises:
        EvaluationError: If the folder cannot be written to.
    """
    path = Path(folder) / RESULTS
    if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank() > 0:
        return path
    text = json.dumps(plain(results), indent=2, ensure_ascii=False, allow_nan=False) + '\n'
    files: dict[str, Callable[[Path], Any]] = {}
    for name, rows in (tables or {}).items():
        files[f'{name}.csv'] = partial(write_csv, rows)
    for name, figure in (figures or {}).items():
        files[f'{name}.png'] = partial(save_figure, figure)
    for name, entry in (eval_results or {}).items():
        if entry is not None:
            files[f'{EVAL_RESULTS}/{name}.yaml'] = partial(Path.write_text, data=entry, encoding='utf-8')
    # A name that is not UTF-8 becomes an escape of JSON.
    files[RESULTS] = partial(Path.write_text, data=text, encoding='utf-8', errors='backslashreplace')
    try:
        for name, fill in files.items():
            with new_file(path.parent / name) as new:
                fill(new)
    except OSError as e:
        raise EvaluationError(
            f'The results cannot be written to {folder} ({reason(e)}): make room, or choose another folder.'
        ) from e
    say(f'Written to {folder}: {", ".join(files)}')
    return path


def save_figure(figure: 'Figure', path: Path | IO[bytes]) -> None:
    """Write a figure as PNG, its names as they are: matplotlib would typeset what stands between two dollar signs, and
    fail on names that are no UTF-8, which become escapes.
    """
    from matplotlib.text import Text
    from matplotlib.ticker import FixedLocator

    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if isinstance(axis.get_major_locator(), FixedLocator):  # labels that are made again when it is drawn
                axis.set_ticklabels([_drawable(label.get_text()) for label in axis.get_ticklabels()])
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_text(_drawable(text.get_text()))
    figure.savefig(path, dpi=figure.dpi, format='png')


def _drawable(text: str) -> str:
    """Text for matplotlib, but for its own numbers with exponents."""
    if r'\mathdefault' in text:
        return text
    return text.encode('utf-8', 'backslashreplace').decode().replace(r'\$', '$').replace('$', r'\$')


def write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows; the columns are the keys, in the order of their first appearance."""
    with path.open('w', newline='', encoding='utf-8', errors='backslashreplace') as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)


def eval_results_entry(dataset: str, value: float, *, notes: str, hub_id: str | None = None) -> str | None:
    """The text of a file for the folder `.eval_results` of a page on the Hub, with one measured accuracy.

    Args:
        dataset: A name for `load_dataset`.
        value: Accuracy in %.
        notes: What was measured and how, in one line.
        hub_id: The data set's page; known for ImageNet-1k, V2, A, R and Sketch, and for registered data sets.

    Returns:
        YAML; None if the data set has no page on the Hub that an entry could refer to.
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
    from huggingface_hub.utils import yaml_dump

    dataset_id = hub_id or DATASETS.get(dataset, (None, None))[1] or getattr(find_entry(dataset), 'hub_id', None)
    if not dataset_id:
        return None
    entry = EvalResultEntry(
        dataset_id=dataset_id,
        task_id='default',
        value=round(value, 4),
        date=datetime.now(UTC).date().isoformat(),
        notes=f'{notes}; measured with tinyvit-zoo {tinyvit_zoo.__version__}',
    )
    return yaml_dump(eval_result_entries_to_yaml([entry]))


def is_for_card(weights: str, *datasets: Any) -> bool:
    """Whether numbers belong on the card of a model: only those of its released weights on whole data sets.

    Args:
        weights: Source of the weights as in results.json: 'pretrained' for released ones.
        *datasets: `ImageDataset`s that the numbers were measured on.
    """
    return weights == 'pretrained' and all(dataset.complete for dataset in datasets)
