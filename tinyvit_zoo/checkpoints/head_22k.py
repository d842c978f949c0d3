"""The official conversion of an ImageNet-22k classifier to ImageNet-1k."""

from collections.abc import Mapping
from functools import cache

import torch

from ..common.errors import CheckpointError

__all__ = ['CLASSES_22K', 'head_22k_to_1k', 'in1k_classes_in_22k']

CLASSES_22K = 21841
# One of the 1000 classes, n04399382 (teddy bear), is not among the 21841.


@cache
def in1k_classes_in_22k() -> tuple[int, ...]:
    """Index of each ImageNet-1k class in the 22k head, -1 for the only absent one (850).

    Regenerated from timm's synset lists: both heads are sorted by WordNet id. Equal to Cream's
    `imagenet_1kto22k.txt`.
    """
    from timm.data import ImageNetInfo

    index = {synset: i for i, synset in enumerate(ImageNetInfo('imagenet-22k').label_names())}
    return tuple(index.get(synset, -1) for synset in ImageNetInfo('imagenet-1k').label_names())


def head_22k_to_1k(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """State dict with the 21841-class head converted to a 1000-class one, as the released loaders do.

    Rows are picked by class; the row of the absent class 850 is the mean of the 999 others (Cream
    `utils.load_pretrained`). Works on the official and on our key layout.

    Raises:
        CheckpointError: If there is no 21841-class head.
    """
    mapping = in1k_classes_in_22k()
    head = next((h for h in ('head.fc', 'head') if f'{h}.weight' in state_dict), None)
    rows = state_dict[f'{head}.weight'].shape[0] if head else 0
    if rows != CLASSES_22K:
        raise CheckpointError(
            f'Expected a {CLASSES_22K}-class head to convert to ImageNet-1k, found {rows or "no"} classes.'
        )
    present = torch.tensor([i for i in mapping if i >= 0])
    at = torch.tensor([i >= 0 for i in mapping])
    converted = dict(state_dict)
    for key in (f'{head}.weight', f'{head}.bias'):
        picked = state_dict[key][present]
        out = picked.mean(dim=0, keepdim=True).repeat(len(mapping), *[1] * (picked.ndim - 1))
        out[at] = picked
        converted[key] = out
    return converted
