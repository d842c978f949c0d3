"""Entry points for torch.hub, one for every architecture.

    model = torch.hub.load('OWNER/tinyvit-zoo', 'tinyvit_21m_224', pretrained=True)
    model = torch.hub.load('PATH/TO/CHECKOUT', 'tinyvit_21m_224', source='local', num_classes=10)

torch.hub downloads a repository and installs nothing: the packages of `dependencies` must be there.
"""

import timm as _timm
from torch import nn as _nn

import tinyvit_zoo as _tinyvit_zoo
from tinyvit_zoo.releases import FAMILIES as _FAMILIES

dependencies = ['torch', 'torchvision', 'timm', 'filelock', 'huggingface_hub', 'safetensors']


def _entry_point(architecture: str, tags: list[str]):
    def create(pretrained: bool = False, **kwargs) -> _nn.Module:
        return _timm.create_model(architecture, pretrained=pretrained, **kwargs)

    create.__name__ = create.__qualname__ = architecture
    create.__doc__ = f"""{architecture} of tinyvit-zoo {_tinyvit_zoo.__version__}, as `timm.create_model` makes it.

    Args:
        pretrained: Load the weights of a release.
        **kwargs: As in `timm.create_model`, such as num_classes, img_size, features_only, or pretrained_cfg='TAG' for
            one of the tags: {', '.join(tags)}.
    """
    return create


_TAGS: dict[str, list[str]] = {}
for _release in (release for releases in _FAMILIES.values() for release in releases):
    _TAGS.setdefault(_release.architecture, []).append(_release.tag)
globals().update({architecture: _entry_point(architecture, tags) for architecture, tags in _TAGS.items()})
