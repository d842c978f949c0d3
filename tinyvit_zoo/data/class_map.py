"""Match the outputs of a classifier to the classes of a data set.

A set of 200 of ImageNet's classes (A, R) scored among all 1000 outputs, or by the folder's own numbering, gives
accuracies near zero; folders named 0 to 999 (V2) are in the wrong order when sorted as text. Classes are matched by
name here, or the evaluation is refused.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import nn

from ..common.errors import EvaluationError
from ..common.text import first_few

__all__ = ['ClassMap', 'map_classes', 'readable', 'synsets']

WNID = re.compile(r'n\d{8}')
IMAGENET = 'imagenet-1k'


@dataclass(frozen=True)
class ClassMap:
    """Scores of a data set's K classes from a classifier's M outputs.

    Attributes:
        columns: (K,) int64, the output of each class, -1 for a class that the classifier lacks. Such a class gets the
            mean of the outputs of the other classes of ImageNet-1k, as in the released loaders when they turn a 22k
            head into a 1k head (Cream `utils.load_pretrained`).
        present: Outputs of all classes of ImageNet-1k that the classifier has, for that mean.
        how: The matching in words, for the results.
    """

    columns: torch.Tensor
    present: torch.Tensor
    how: str

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (B, M) -> scores of the data set's classes (B, K)."""
        scores = logits[:, self.columns.clamp(min=0).to(logits.device)]
        absent = (self.columns < 0).to(logits.device)
        if absent.any():
            scores[:, absent] = logits[:, self.present.to(logits.device)].mean(dim=1, keepdim=True)
        return scores


@cache
def synsets(subset: str = IMAGENET) -> tuple[str, ...]:
    """WordNet ids of the outputs of a classifier for ImageNet-1k, or for another set that timm knows."""
    return tuple(ImageNetInfo(subset).label_names())


def readable(classes: Sequence[str]) -> list[str]:
    """Readable class names: WordNet ids, and the numbers 0 to 999, become ImageNet's names."""
    info = ImageNetInfo(IMAGENET)
    if len(classes) == 1000 and sorted(classes) == sorted(map(str, range(1000))):
        classes = [synsets()[int(name)] for name in classes]
    known = set(synsets())
    return [info.label_name_to_description(name, detailed=False) if name in known else name for name in classes]


def map_classes(model: nn.Module, classes: Sequence[str]) -> ClassMap:
    """Find the outputs of a model that stand for the classes of a data set.

    Classes are matched by the first of these that applies: the label names saved with the model; WordNet ids, if the
    model has the outputs of ImageNet-1k, 12k, 21k or 22k; the numbers that folders named 0, 1, 2, ... have as names;
    their order, if there are as many classes as outputs.

    Args:
        model: A timm model with `num_classes`.
        classes: Names of the classes; a label is an index into them.

    Raises:
        EvaluationError: If the model has no classifier, or one that cannot know these classes.
    """
    outputs = getattr(model, 'num_classes', 0)
    if not outputs:
        raise EvaluationError('The model is an encoder without classifier: use probe, fewshot or knn.')
    names = (getattr(model, 'pretrained_cfg', None) or {}).get('label_names')
    if names and len(names) == outputs and set(classes) <= set(names):
        return _by_name(list(names), classes, "the model's label names")
    subset = infer_imagenet_subset(model)
    if classes and all(WNID.fullmatch(name) for name in classes):
        known = synsets(subset) if subset else ()
        if subset and set(classes) & set(known):
            return _by_wnid(known, subset, classes)
    elif sorted(classes) == sorted(map(str, range(len(classes)))):
        if len(classes) == outputs:
            columns = torch.tensor([int(name) for name in classes])
            return ClassMap(columns, columns, f'{outputs} classes by the numbers that are their names')
        if len(classes) == 1000 and subset:
            return _by_wnid(synsets(subset), subset, [synsets()[int(name)] for name in classes])
    if len(classes) == outputs:
        columns = torch.arange(outputs)
        return ClassMap(columns, columns, f'{outputs} classes in the order of the data set')
    raise EvaluationError(
        f'The model has {outputs} outputs, the data {len(classes)} classes ({first_few(classes)}), and nothing says '
        'which output stands for which class: take a model with a classifier for these classes, or use probe, '
        'fewshot or knn.'
    )


def _by_name(known: Sequence[str], classes: Sequence[str], what: str) -> ClassMap:
    columns = torch.tensor([known.index(name) for name in classes])
    among = 'all of them' if len(classes) == len(known) else f'{len(classes)} of {len(known)} outputs compete'
    return ClassMap(columns, columns, f'by {what}, {among}')


def _by_wnid(known: Sequence[str], subset: str, classes: Sequence[str]) -> ClassMap:
    index = {wnid: i for i, wnid in enumerate(known)}
    foreign = sorted(set(classes) - set(known) - set(synsets()))
    if foreign:
        raise EvaluationError(
            f'{len(foreign)} of the {len(classes)} classes ({first_few(foreign)}) are not among the {len(known)} of '
            f"{subset}, which the model's outputs stand for: leave their folders out, or use probe, fewshot or knn."
        )
    columns = torch.tensor([index.get(name, -1) for name in classes])
    present = torch.tensor([index[name] for name in synsets() if name in index])
    among = 'all of them' if len(classes) == len(known) else f'{len(classes)} of {len(known)} outputs compete'
    absent = [name for name in classes if name not in index]
    lacks = f'; {first_few(absent)} is not among them and gets the mean of the others' if absent else ''
    return ClassMap(columns, present, f'by WordNet id in {subset}, {among}{lacks}')
