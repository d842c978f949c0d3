"""The model inside a `ZooBackbone`: how it is made for images of any size, and made again with its classifier."""

from dataclasses import dataclass
from typing import Any

import timm
from torch import nn

import tinyvit_zoo  # noqa: F401  registers the models
from tinyvit_zoo import dense
from tinyvit_zoo.build import asking_once
from tinyvit_zoo.models import TinyViT
from tinyvit_zoo.releases import find_family

__all__ = ['DENSE_FORMS', 'NetSpec', 'build_net', 'fixed_size']

DENSE_FORMS = {
    form.__name__: form
    for form in (
        dense.mae_lite_vitdet_tiny,
        dense.mae_lite_vitdet_small,
        dense.tinymim_tiny_seg,
        dense.tinymim_small_seg,
        dense.tinymim_base_seg,
        dense.tinymim_star_tiny_seg,
    )
}
"""Backbones that bring a pyramid of their own: the released ones, and the same of sizes that were not released."""

# Arguments that let a class take images of every size, tried in this order. timm's Swin would not shift windows in
# stages that have one window at the size of the classifier, as the last; Swin's detection code does.
ANY_SIZE: tuple[dict[str, bool], ...] = (
    dict(dynamic_img_size=True, always_partition=True),
    dict(strict_img_size=False, always_partition=True),
    dict(dynamic_img_size=True),
    dict(strict_img_size=False),
    {},
)


@dataclass(frozen=True)
class NetSpec:
    """How a model was made.

    Attributes:
        name: As in `timm.create_model`, or one of `DENSE_FORMS`.
        args: Arguments that make it again.
        as_init: Whether a dense form may be initialized from an encoder with other attention heads.
    """

    name: str
    args: dict[str, Any]
    as_init: bool = False

    @property
    def is_pyramid(self) -> bool:
        """Whether the model brings its own pyramid."""
        return self.name in DENSE_FORMS

    def architecture(self, net: Any) -> str:
        """Name without tag or source of the model made."""
        return self.name if self.is_pyramid else net.pretrained_cfg['architecture']

    def with_classifier(self, net: Any, name: str | None = None, **kwargs: Any) -> Any:
        """A whole timm model with the image size and windows that `net` has now.

        Args:
            net: The model made.
            name: Another tag or source of the same architecture; default: the model's own name.
            **kwargs: Of `timm.create_model`, such as `pretrained`.
        """
        layout: dict[str, Any] = {}
        if hasattr(net, 'window_sizes'):
            argument = 'window_sizes' if isinstance(net, TinyViT) else 'window_size'
            layout = {'img_size': net.img_size, argument: net.window_sizes}
        elif getattr(getattr(net, 'patch_embed', None), 'img_size', None):
            layout['img_size'] = tuple(net.patch_embed.img_size)
        args = {**self.args, **layout, **kwargs}
        if not find_family(self.architecture(net)):
            del args['num_classes']  # timm compares all names only where the numbers of classes agree
        name = name or self.name
        with asking_once(name, args):
            return timm.create_model(name, **args)


def build_net(name: str, args: dict[str, Any]) -> tuple[Any, NetSpec]:
    """The model of that name, for images of every size where its class can take them.

    Args:
        name: Of timm, or of `DENSE_FORMS`.
        args: Of the model; `window_sizes` under this name for every family.

    Returns:
        The model, any of timm's classes, and how it was made.

    Raises:
        ValueError: If the model has no intermediate features, or refuses an argument.
    """
    as_init = args.get('as_init', False)
    if name in DENSE_FORMS:
        args = {k: v for k, v in args.items() if k != 'as_init'}
        return DENSE_FORMS[name](**args), NetSpec(name, args, as_init)
    args = dict(args, num_classes=0)
    if 'window_sizes' in args and not name.startswith('tinyvit'):
        args['window_size'] = args.pop('window_sizes')
    for any_size in ANY_SIZE:
        try:
            net = timm.create_model(name, **{**any_size, **args})
        except TypeError as e:
            if any(key in str(e) for key in any_size):
                continue
            raise ValueError(f'{name}: {e}') from e
        if not hasattr(net, 'forward_intermediates'):
            raise ValueError(f'{name} has no intermediate features.')
        return net, NetSpec(name, {**any_size, **args}, as_init)
    raise AssertionError('the last of ANY_SIZE is empty')


def fixed_size(net: nn.Module) -> tuple[int, int] | None:
    """(H, W) of the only images that a model takes, None if it takes others."""
    embed = getattr(net, 'patch_embed', None)
    if embed is None or not getattr(embed, 'strict_img_size', False) or not embed.img_size:
        return None
    height, width = embed.img_size
    return height, width
