"""Numbers that need no data and no weights: sizes, MACs, dimensions and the storage of soft labels."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any, cast

import timm

from tinyvit_zoo.build import build_model
from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.data.registry import REGISTRY
from tinyvit_zoo.info import Profile, profile_model
from tinyvit_zoo.soft_labels.legacy import SEED_BYTES, record_bytes

from .architecture import read_dimension
from .entries import paper_of, subject_of
from .numbers import Number
from .record import Subject

__all__ = ['Built', 'Measurement', 'measure', 'plan']


@dataclass(frozen=True)
class Built:
    """A model on the meta device, by its architecture alone: no number here depends on weights."""

    architecture: str
    classes: int
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measurement:
    """What is counted for a number, in plain values.

    Attributes:
        metric: That of the number.
        models: Those that are built; of two the first is the larger.
        labels: Data set, classes kept and epochs of stored soft labels.
    """

    metric: str
    models: tuple[Built, ...] = ()
    labels: Mapping[str, Any] | None = None

    def facts(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self) | dict(models=[asdict(model) for model in self.models])


def plan(number: Number) -> Measurement | str:
    """What has to be counted for a number that needs nothing, or the reason why it cannot be, in a few words."""
    paper = paper_of(number)
    if number.task == 'label_storage':
        stored = paper.stored.get(number.model)
        if stored is None or number.metric not in ('storage_gb', 'kept_share_pct', 'seed_bytes'):
            return "a setting of the authors', or the names of their images"
        return Measurement(number.metric, labels=asdict(stored))
    if number.metric in ('params_ratio_x', 'params_share_pct', 'params_saving_pct'):
        pair = [paper.subjects[name] for name in paper.versus.get(number.model, ())]
        return Measurement(number.metric, tuple(map(_built, pair))) if pair else 'no model here'
    subject = subject_of(number)
    if subject is None or not subject.name:
        return 'no model here'
    if number.task == 'architecture':
        names = (subject.name, *subject.also)
        return Measurement(number.metric, tuple(Built(name, subject.classes) for name in names))
    if number.metric == 'macs_g' and number.pixels not in (None, own := _own_side(subject)):
        return f'timm has the model at {own} px, the paper at {number.pixels}'
    return Measurement(number.metric, (_built(subject, 0 if 'backbone only' in number.note else None),))


def measure(measurement: Measurement) -> float:
    """The number, in the unit of its metric: millions, 10^9 MACs, percent, GiB.

    Raises:
        EvaluationError: If models that the number holds for do not agree.
        ModelError: If a model cannot be built.
    """
    metric, models = measurement.metric, measurement.models
    if measurement.labels is not None:
        return _storage(metric, **measurement.labels)
    if metric == 'macs_g':
        return _count(models[0]).macs / 1e9
    if metric == 'params_m':
        return _count(models[0]).params / 1e6
    if metric.startswith('params_'):
        larger, smaller = (_count(model).params for model in models)
        share = 100 * smaller / larger
        return {
            'params_ratio_x': larger / smaller, 'params_share_pct': share, 'params_saving_pct': 100 - share,
        }[metric]  # fmt: skip
    values = {model.architecture: read_dimension(model.architecture, metric) for model in models}
    if len(set(values.values())) > 1:
        raise EvaluationError(f'{metric} differs between the models: {values}; the paper has one number for all.')
    return float(next(iter(values.values())))


def _built(subject: Subject, classes: int | None = None) -> Built:
    return Built(subject.name.partition('.')[0], subject.classes if classes is None else classes, dict(subject.options))


def _own_side(subject: Subject) -> int:
    """Side of the image that the model is made for; one with shared weights has that of its base."""
    name = subject.options.get('base', subject.name)
    return cast(Any, timm.get_pretrained_cfg(name)).input_size[-1]


def _storage(metric: str, data: str, k: int, epochs: int) -> float:
    """Of soft labels in the released layout: the papers' GB are GiB."""
    entry = REGISTRY[data]
    return {
        'storage_gb': record_bytes(k) * entry.counts['train'] * epochs / 2**30,
        'kept_share_pct': 100 * k / entry.classes,
        'seed_bytes': float(SEED_BYTES),
    }[metric]


def _count(built: Built) -> Profile:
    return _profile(built.architecture, built.classes, tuple(built.options.items()))


@cache
def _profile(architecture: str, classes: int, options: tuple[tuple[str, Any], ...]) -> Profile:
    return profile_model(build_model(architecture, device='meta', num_classes=classes, **dict(options)))
