"""What a training starts from: which weights, which classifier, and where that departs from the recipe's source."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tinyvit_zoo.build import build_model
from tinyvit_zoo.checkpoints import (
    CLASSES_22K,
    CheckpointError,
    find_heads,
    find_key_map,
    head_22k_to_1k,
    read_checkpoint,
    read_with_clues,
)
from tinyvit_zoo.data.class_map import synsets
from tinyvit_zoo.names import model_folder
from tinyvit_zoo.training.recipes import STARTS, Recipe

__all__ = ['Start', 'departures', 'find_start', 'start_model']

IN22K = range(21_800, 21_900)  # 21841 classes, 21843 with two more: the same images


@dataclass(frozen=True)
class Start:
    """Weights that a training starts from.

    Attributes:
        kind: A key of `training.recipes.STARTS`; None for weights of another data set, or that show no classes.
        classes: Outputs of their classifier; 0 without one, None where nothing shows it.
        label_names: Of those outputs, where they are known.
        side: Of the images that they are for, in pixels; None for random weights, and where only a file would show it.
        heads: Attention heads of an encoder in a file, in all blocks but the last; None where nothing shows them.
    """

    kind: str | None
    classes: int | None = None
    label_names: tuple[str, ...] = ()
    side: int | None = None
    heads: int | None = None

    @property
    def words(self) -> str:
        if self.kind is not None:
            return STARTS[self.kind]
        return 'weights of unknown classes' if self.classes is None else f'weights of {self.classes} classes'


def find_start(
    name: str, weights: Path | None = None, random: bool = False, as_init: bool = False, part: str | None = None
) -> Start:
    """What is known of the weights before the model is made.

    Args:
        name: Any name that timm takes.
        weights: File or folder instead of the weights of the name; of a training's folder, its model.
        random: Random weights.
        as_init: The weights are an encoder's, whatever classifier they have.
        part: Which of several models in the file, see `checkpoints.read_checkpoint`.

    Raises:
        ModelError: On an unknown name.
    """
    if random:
        return Start('random')
    weights = weights and (model_folder(weights) or weights)
    cfg: Any = build_model(name, device='meta').pretrained_cfg
    side = max(cfg['input_size'][-2:]) if weights is None else None
    if as_init:
        return Start('encoder', 0, side=side, heads=None if weights is None else _heads_of_file(weights, part))
    names = tuple(cfg.get('label_names') or ()) if weights is None else ()
    classes = cfg['num_classes'] if weights is None else _classes_of_file(weights, part, cfg.get('classifier'))
    if classes is None:
        return Start(None, None, side=side)
    kind = 'encoder' if classes == 0 else 'in22k' if classes in IN22K else 'in1k' if classes == 1000 else None
    return Start(kind, classes, names, side)


def _heads_of_file(weights: Path, part: str | None) -> int | None:
    try:
        state_dict, clues = read_with_clues(weights, part)
    except CheckpointError:  # for whoever loads it to report
        return None
    evidence = find_heads(clues, state_dict)
    return evidence.heads[0] if evidence else None


def _classes_of_file(weights: Path, part: str | None, classifier: Any) -> int | None:
    """Outputs of the classifier in a file; 0 without one, None if the file is of no known family and has none of that
    name.
    """
    try:
        state_dict = read_checkpoint(weights, part=part)
    except CheckpointError:  # for whoever loads it to report
        return None
    key_map = find_key_map(state_dict)
    if key_map is not None:
        return key_map.head_classes(state_dict) or 0
    names = (classifier,) if isinstance(classifier, str) else classifier or ()
    found = [state_dict[f'{name}.weight'].shape[0] for name in names if f'{name}.weight' in state_dict]
    return found[0] if found else None


def start_model(
    make: Callable[..., nn.Module], start: Start, classes: Sequence[str], recipe: Recipe
) -> tuple[nn.Module, str]:
    """The model with a classifier for these classes.

    Args:
        make: Makes the model with its weights; takes `num_classes`, and `random=True` for random ones.
        start: What the weights are.
        classes: Names of the classes of the data, in their order.
        recipe: What it is trained by.

    Returns:
        The model, and its classifier in words; '' where there is nothing to say.
    """
    if start.kind == 'random':
        return make(num_classes=len(classes)), ''
    if start.classes == CLASSES_22K and tuple(classes) == synsets() and recipe.head_std is None:
        released = make(num_classes=CLASSES_22K).state_dict()
        with suppress(CheckpointError):  # a classifier of another form than a linear one called head
            converted = head_22k_to_1k(released)
            model = make(num_classes=len(classes), random=True)
            model.load_state_dict(converted)
            return model, "the rows of the 22k head for ImageNet-1k's 1000 classes, as in the released recipe"
    return make(num_classes=len(classes)), _classifier_words(start, classes, recipe)


def _classifier_words(start: Start, classes: Sequence[str], recipe: Recipe) -> str:
    if recipe.head_std is not None:
        return f'fresh, drawn with a standard deviation of {recipe.head_std:g}, as in the recipe'
    if start.classes is None:
        return ''
    if start.classes != len(classes):
        has = 'no classifier' if not start.classes else f'{start.classes} classes'
        return f'fresh, as the weights have {has} and the data has {len(classes)}'
    if start.label_names and start.label_names != tuple(classes):
        same = set(start.label_names) == set(classes)
        return f"that of the weights, whose classes have {'another order' if same else 'other names'} than the data's"
    return f'that of the weights, which have {start.classes} classes, too'


def departures(recipe: Recipe, start: Start, model: nn.Module, taught: bool = False) -> list[str]:
    """What of a recipe is not as its source has it, or makes no sense, for this start, with or without a teacher; each
    without a full stop.
    """
    found = []
    if recipe.teacher and not taught:
        found.append(f'it is published with a teacher ({recipe.teacher}), and this training has none (--teacher)')
    elif taught and not recipe.teacher:
        found.append('it is published without a teacher')
    if recipe.starts and start.kind not in recipe.starts:
        published = ' or '.join(STARTS[kind] for kind in recipe.starts)
        found.append(f'it is published for {published}, and this training starts from {start.words}')
    elif recipe.starts_at and start.side not in (None, recipe.starts_at):
        found.append(
            f'it is published for weights for {recipe.starts_at} pixels, and this training starts from weights for '
            f'{start.side}'
        )
    if start.kind != 'random':
        return found
    if recipe.layer_decay not in (None, 1.0):
        found.append(
            f'its layer decay of {recipe.layer_decay:g} slows down the first layers, of which random weights have '
            'learned nothing yet (--layer-decay 1 turns it off)'
        )
    if recipe.freeze_batch_norm and any(isinstance(module, _BatchNorm) for module in model.modules()):
        found.append('it keeps the running statistics of BatchNorm, which random weights do not have')
    return found
