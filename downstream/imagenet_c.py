"""ImageNet-C: 15 corruptions of the validation images at 5 severities each, and mCE (Hendrycks & Dietterich 2019).

'Benchmarking Neural Network Robustness to Common Corruptions and Perturbations', ICLR, sections 3 and 4.1.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.files import write_whole
from tinyvit_zoo.common.hashes import json_hash, state_hash
from tinyvit_zoo.common.processes import Processes
from tinyvit_zoo.common.text import first_few
from tinyvit_zoo.data.class_map import readable, synsets
from tinyvit_zoo.data.folders import class_folders, read_class_folders
from tinyvit_zoo.data.image_dataset import ImageDataset
from tinyvit_zoo.data.imagenet_readers import corruption_folder

from .imagenet import BATCH_SIZE, UNCROPPED, Scores, evaluate, preprocessing
from .results import plain

__all__ = ['ALEXNET_CLEAN_ERROR', 'ALEXNET_ERRORS', 'SEVERITIES', 'Corruptions', 'evaluate_corruptions']

ALEXNET_ERRORS = dict(
    gaussian_noise=0.886428, shot_noise=0.894468, impulse_noise=0.922640,
    defocus_blur=0.819880, glass_blur=0.826268, motion_blur=0.785948, zoom_blur=0.798360,
    snow=0.866816, frost=0.826572, fog=0.819324, brightness=0.564592,
    contrast=0.853204, elastic_transform=0.646056, pixelate=0.717840, jpeg_compression=0.606500,
)  # fmt: skip
"""Top-1 error of AlexNet, averaged over the severities. Source: github.com/google-research/augmix, imagenet.py (same
first author, from the spreadsheet linked by github.com/hendrycks/robustness); rounded in appendix C of the paper."""

ALEXNET_CLEAN_ERROR = 0.4348
"""On the uncorrupted images. Source: github.com/google-research/robustness_metrics, reports/imagenet_variants.py;
torchvision states an accuracy of 56.522 % for the same weights."""

SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Corruptions:
    """Errors under corruption, in %.

    Attributes:
        errors: By corruption, the top-1 error at each severity.
        clean_error: Top-1 error on the uncorrupted images, or None.
        compared: The outputs that compete, in words.
        preprocessing: Arguments of `timm.data.create_transform`.
        per_class_errors: As `errors`, with every class counting the same.
        classes: Of each class that occurs, under all corruptions together: images, and the accuracy in %.
    """

    errors: dict[str, tuple[float, ...]]
    clean_error: float | None
    compared: str
    preprocessing: dict[str, Any]
    per_class_errors: dict[str, tuple[float, ...]] = field(default_factory=dict)
    classes: dict[str, tuple[int, float]] = field(default_factory=dict)

    @property
    def ce(self) -> dict[str, float]:
        """By corruption, the mean error over the severities divided by AlexNet's."""
        return {name: float(np.mean(e)) / ALEXNET_ERRORS[name] for name, e in self.errors.items()}

    @property
    def mce(self) -> float:
        """Mean corruption error; 100 is AlexNet's."""
        return float(np.mean(list(self.ce.values())))

    @property
    def relative_mce(self) -> float | None:
        """The increase of the error under corruption divided by AlexNet's; None without a clean error."""
        if self.clean_error is None:
            return None
        rise = {name: float(np.mean(e)) - self.clean_error for name, e in self.errors.items()}
        return float(np.mean([rise[name] / (ALEXNET_ERRORS[name] - ALEXNET_CLEAN_ERROR) for name in rise]))

    @property
    def mean_error(self) -> float:
        """Over all corruptions and severities, in %."""
        return float(np.mean(list(self.errors.values())))

    @property
    def mean_per_class(self) -> float | None:
        """Accuracy in % over all corruptions and severities, every class counting the same."""
        errors = list(self.per_class_errors.values())
        return 100 - float(np.mean(errors)) if errors else None

    @property
    def classes_at_zero(self) -> list[str]:
        """Readable names of the classes of which nothing is right under any corruption."""
        return readable([name for name, (_, accuracy) in self.classes.items() if not accuracy])

    def summary(self) -> dict[str, Any]:
        """The numbers, for results.json."""
        return dict(
            images=sum(images for images, _ in self.classes.values()),
            mce=self.mce,
            relative_mce=self.relative_mce,
            mean_error=self.mean_error,
            mean_per_class=self.mean_per_class,
            classes_at_zero=self.classes_at_zero,
            clean_error=self.clean_error,
            ce=self.ce,
            errors=self.errors,
            per_class_errors=self.per_class_errors,
            compared=self.compared,
            preprocessing=self.preprocessing,
        )


def evaluate_corruptions(
    model: nn.Module,
    root: str | Path,
    *,
    keep: str | Path | None = None,
    clean_error: float | None = None,
    overrides: Mapping[str, Any] | None = None,
    **options: Any,
) -> Corruptions:
    """Classify all 75 sets; finished sets are saved, and the next run skips them.

    Args:
        model: Any timm model with outputs for the classes of ImageNet-1k.
        root: Folder of CORRUPTION/SEVERITY/CLASS/*.JPEG, with or without the archives' folders noise, blur, weather and
            digital in between.
        keep: JSON file for finished sets; a file of another root, other weights or settings, or one that was edited, is
            overwritten, and a set whose files have other names, sizes or times is classified again.
        clean_error: Top-1 error in % on the uncorrupted images, for the relative mCE.
        overrides: See `imagenet.preprocessing`. The images are crops already, so by default they are not cropped.
        **options: As in `imagenet.evaluate`.

    Raises:
        EvaluationError: If a set is missing, or as in `imagenet.evaluate`.
    """
    overrides = {**UNCROPPED, **(overrides or {})}
    folders = _find(Path(root))
    key = plain(
        dict(
            root=Path(root).resolve(),
            weights=state_hash(model),
            preprocessing=preprocessing(model, overrides),
            dtype=options.get('dtype', 'torch.float32'),
            batch_size=options.get('batch_size', BATCH_SIZE),
        )
    )
    processes = Processes()
    keep = Path(keep) if keep else None
    done = processes.from_first(lambda: _read(keep, key))
    compared = ''
    for (name, severity), folder in folders.items():
        what = f'{name}/{severity}'
        dataset = _read_set(folder, f'imagenet-c/{what}')
        # The first process decides: on other machines a copy of the files has other times.
        entry, files = done.get(what), processes.from_first(partial(_state_of_files, dataset))
        if entry is None or entry['files'] != files:
            scores = evaluate(model, dataset, overrides=overrides, **options)
            entry = done[what] = dict(_entry(scores), files=files)
            if keep and processes.rank == 0:
                kept = dict(key=key, done=done, sha256=json_hash(done))
                write_whole(keep, (json.dumps(kept, indent=2) + '\n').encode())
        compared = entry['compared']
    return Corruptions(
        errors=_by_severity(done, lambda entry: 100 * entry['wrong'] / entry['images']),
        clean_error=clean_error,
        compared=compared,
        preprocessing=key['preprocessing'],
        per_class_errors=_by_severity(done, lambda entry: 100 - entry['mean_per_class']),
        classes=_classes(done.values()),
    )


def _entry(scores: Scores) -> dict[str, Any]:
    """What is kept of a set; by class the right ones and all images, in one string: the file stays readable."""
    counts = scores.confusion
    classes = zip(scores.classes, counts.diagonal().tolist(), counts.sum(axis=1).tolist(), strict=True)
    return dict(
        images=len(scores.labels),
        wrong=int((~scores.right).sum()),
        mean_per_class=scores.mean_per_class,
        by_class=json.dumps({name: [right, images] for name, right, images in classes if images}),
        compared=scores.compared,
    )


def _state_of_files(dataset: ImageDataset) -> str:
    """sha256 (hex) of the names, sizes and times of all files, which change when a file is written, also with as many
    bytes as before: reading the millions of files themselves would take hours.
    """
    digest = hashlib.sha256()
    stamps = dataset.source.stamps(dataset.positions, dataset.positions)
    assert stamps is not None  # class folders are files
    for stamp in stamps:
        digest.update(hashlib.sha256(stamp).digest())
    return digest.hexdigest()


def _by_severity(done: Mapping[str, Any], number: Callable[[Mapping[str, Any]], float]) -> dict[str, tuple[float, ...]]:
    return {name: tuple(number(done[f'{name}/{s}']) for s in SEVERITIES) for name in ALEXNET_ERRORS}


def _classes(entries: Iterable[Mapping[str, Any]]) -> dict[str, tuple[int, float]]:
    """Images and accuracy in % of each class, over all sets."""
    sums: dict[str, np.ndarray] = {}
    for entry in entries:
        for name, counts in json.loads(entry['by_class']).items():
            sums[name] = sums.get(name, np.zeros(2, dtype=np.int64)) + counts
    return {name: (int(images), 100 * float(right / images)) for name, (right, images) in sums.items()}


def _find(root: Path) -> dict[tuple[str, int], Path]:
    """Folder of each corruption and severity."""
    found, missing = {}, []
    for name in ALEXNET_ERRORS:
        place = corruption_folder(root, name)
        for severity in SEVERITIES:
            found[name, severity] = place / str(severity)
            if not found[name, severity].is_dir():
                missing.append(f'{name}/{severity}')
    if missing:
        raise EvaluationError(
            f'{root} lacks {len(missing)} of the {len(found)} sets of ImageNet-C ({first_few(missing)}): mCE needs all '
            'of them, so unpack all archives there.'
        )
    return found


def _read_set(folder: Path, name: str) -> ImageDataset:
    """One corruption at one severity. All of ImageNet's classes compete, even if some have no folder."""
    return read_class_folders(folder, name, synsets() if set(class_folders(folder)) <= set(synsets()) else None)


def _read(path: Path | None, key: dict[str, Any]) -> dict[str, Any]:
    """Finished sets of an earlier run with the same model and settings."""
    if path is None or not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        whole = content.get('sha256') == json_hash(content['done'])  # neither edited nor of an earlier version
        return content['done'] if whole and content['key'] == key else {}
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise EvaluationError(f'{path} is not a record of an earlier run: remove it.') from e
