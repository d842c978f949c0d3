"""Model card of weights that are not a release: facts about the model, and none about its training."""

from typing import Any, cast

from timm.models._input import get_model_input_config
from torch import nn

from ..common.preprocessing import model_data_config
from ..common.text import count_of, join_numbers
from .bridge import is_zoo_architecture, timm_name

__all__ = ['NAMELESS', 'render_own_card']

NAMELESS = 'OWNER/NAME'
"""Placeholder for the name of the page in a card, where it is not known yet."""

USAGE = """import timm
{imports}import torch
from PIL import Image

image = Image.open('image.jpg').convert('RGB')
model = timm.create_model('hf-hub:{repo}', pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
with torch.inference_mode():
    output = model(transform(image).unsqueeze(0))
print(tuple(output.shape))"""

NAMES = """
names = model.pretrained_cfg.get('label_names') or range(model.num_classes)
for probability, index in zip(*output[0].softmax(dim=0).topk(min(5, model.num_classes))):
    print(f'{probability:.1%}', names[index])"""


def render_own_card(
    model: nn.Module,
    license: str | None = None,
    repo: str | None = None,
    random_seed: int | None = None,
    for_timm: bool = False,
) -> str:
    """Text of the README.md for weights that the user trained.

    Args:
        model: Any timm model.
        license: License id of the Hub, such as 'mit'; None leaves the field out.
        repo: Its page, 'OWNER/NAME'.
        random_seed: Seed of random weights; None if they were trained.
        for_timm: Whether the page names timm's own class.
    """
    architecture: str = cast(Any, model).pretrained_cfg['architecture']
    if for_timm:
        architecture = timm_name(architecture)
    of_zoo = is_zoo_architecture(architecture)
    origin = 'Data, training and accuracy of these weights are known to whoever trained them and not stated here.'
    if random_seed is not None:
        origin = f'**The weights of this page are random (seed {random_seed}), made for tests.**'
    parts = (
        _front_matter(model, license, of_zoo),
        f'# {repo.partition("/")[2] if repo else architecture}',
        origin,
        _facts(model, f'`{architecture}` of {"tinyvit-zoo" if of_zoo else "timm"}'),
        f'```python\n{_usage(model, repo or NAMELESS, of_zoo)}\n```',
    )
    return '\n\n'.join(parts) + '\n'


def _front_matter(model: nn.Module, license: str | None, of_zoo: bool) -> str:
    task = 'image-classification' if model.num_classes else 'image-feature-extraction'
    lines = (
        '---',
        *([f'license: {license}'] if license else []),
        'library_name: timm',
        f'pipeline_tag: {task}',
        'tags:',
        f'- {task}',
        '- timm',
        '- transformers',
        *(['- tinyvit-zoo'] if of_zoo else []),
        '---',
    )
    return '\n'.join(lines)


def _facts(model: nn.Module, architecture: str) -> str:
    data = model_data_config(model)
    channels, height, width = data['input_size']
    lines = (
        f'- Architecture: {architecture}',
        f'- Parameters: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M',
        f'- Image: {count_of(channels, "channel")}, {height}x{width}, crop {data["crop_pct"]:g} ({data["crop_mode"]}), '
        f'{data["interpolation"]}, mean {join_numbers(data["mean"])}, std {join_numbers(data["std"])}',
        f'- Classes: {model.num_classes or "none, an encoder"}',
    )
    return '\n'.join(lines)


def _usage(model: nn.Module, repo: str, of_zoo: bool) -> str:
    """A program to paste that needs only an image; without reading one where the model does not take 3 channels."""
    imports = 'import tinyvit_zoo  # registers the model\n' if of_zoo else ''
    if get_model_input_config(model)['input_size'][0] != 3:
        return f"import timm\n{imports}\nmodel = timm.create_model('hf-hub:{repo}', pretrained=True).eval()"
    return USAGE.format(imports=imports, repo=repo) + (NAMES if model.num_classes else '')
