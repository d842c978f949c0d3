"""The backbone inside the checkpoint of a whole detector or segmentor, as mmdet, mmseg and detectron2 save them."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

import torch

from ..common.text import first_few

__all__ = ['backbone_part', 'counted_by_part']

BACKBONE = 'backbone.'
# Names of `tinyvit_zoo.downstream.detection.ZooBackbone`: the timm model, and a norm for each of its maps.
NET, MAP_NORM = 'net.', re.compile(r'norm\d+\.')


def backbone_part(state_dict: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The timm model inside a detector or a `ZooBackbone`; everything if it is neither.

    Args:
        state_dict: Already unwrapped (`read_checkpoint`).

    Returns:
        State dict under the model's own names, and the names in the file of all other tensors.
    """
    names = {k: k.removeprefix(BACKBONE) for k in state_dict if k.startswith(BACKBONE)} or {k: k for k in state_dict}
    if all(name.startswith(NET) or MAP_NORM.match(name) for name in names.values()):
        names = {k: name.removeprefix(NET) for k, name in names.items() if name.startswith(NET)} or names
    return {name: state_dict[k] for k, name in names.items()}, [k for k in state_dict if k not in names]


def counted_by_part(keys: Iterable[str]) -> str:
    """'neck (16), rpn_head (6)'."""
    kinds = Counter(k.removeprefix(BACKBONE).partition('.')[0] for k in keys)
    return first_few((f'{kind} ({n})' for kind, n in kinds.items()), most=12) or 'nothing'
