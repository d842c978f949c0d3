"""The model card of weights that are no release: what the model says of itself, and nothing that it cannot know."""

from timm.data import resolve_model_data_config
from timm.models._input import get_model_input_config
from torch import nn

from .bridge import is_of_zoo, timms_name

__all__ = ['NAMELESS', 'render_own_card']

NAMELESS = 'OWNER/NAME'
"""Stands in a card for the page that it is for, where that is not known yet."""

USAGE = """import timm
{imports}import torch
from PIL import Image

image = Image.open('picture.jpg').convert('RGB')
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
    """Text of the README.md of a model of one's own.

    Args:
        model: Any timm model.
        license: License id of the Hub, such as 'mit'; None leaves the field out.
        repo: Page that it is for, 'OWNER/NAME'.
        random_seed: Of weights that are random.
        for_timm: It is written under the name of timm's own class.
    """
    architecture = model.pretrained_cfg['architecture']
    if for_timm:
        architecture = timms_name(architecture)
    of_zoo = is_of_zoo(architecture)
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
    data = resolve_model_data_config(model)
    channels, height, width = get_model_input_config(model)['input_size']
    lines = (
        f'- Architecture: {architecture}',
        f'- Parameters: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M',
        f'- Image: {channels} channels, {height}x{width}, crop {data["crop_pct"]:g} ({data["crop_mode"]}), '
        f'{data["interpolation"]}, mean {_numbers(data["mean"])}, std {_numbers(data["std"])}',
        f'- Classes: {model.num_classes or "none, an encoder"}',
    )
    return '\n'.join(lines)


def _usage(model: nn.Module, repo: str, of_zoo: bool) -> str:
    """A program to paste, which needs nothing but a picture; no picture of other channels than three is read alike."""
    imports = 'import tinyvit_zoo  # registers the model\n' if of_zoo else ''
    if get_model_input_config(model)['input_size'][0] != 3:
        return f"import timm\n{imports}\nmodel = timm.create_model('hf-hub:{repo}', pretrained=True).eval()"
    return USAGE.format(imports=imports, repo=repo) + (NAMES if model.num_classes else '')


def _numbers(values: tuple[float, ...]) -> str:
    return ', '.join(f'{value:g}' for value in values)
