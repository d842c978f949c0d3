"""The model card of weights that are no release: what the model says of itself, and nothing that it cannot know."""

from timm.data import resolve_model_data_config
from timm.models._input import get_model_input_config
from torch import nn

from .bridge import is_of_zoo, timms_name

__all__ = ['render_own_card']


def render_own_card(
    model: nn.Module,
    licence: str | None = None,
    repo: str | None = None,
    random_seed: int | None = None,
    for_timm: bool = False,
) -> str:
    """Text of the README.md of a model of one's own.

    Args:
        model: Any timm model.
        licence: Licence id of the Hub, such as 'mit'; None leaves the field out.
        repo: Page that it is for, 'OWNER/NAME'.
        random_seed: Of weights that are random.
        for_timm: It is written under the name of timm's own class.
    """
    architecture = model.pretrained_cfg['architecture']
    if for_timm:
        architecture = timms_name(architecture)
    package = 'tinyvit-zoo' if is_of_zoo(architecture) else 'timm'
    kind = 'classification' if model.num_classes else 'feature-extraction'
    front = [
        '---',
        *([f'license: {licence}'] if licence else []),
        'library_name: timm',
        f'pipeline_tag: image-{kind}',
        'tags:',
        f'- image-{kind}',
        '- timm',
        '- transformers',
        *(['- tinyvit-zoo'] if package == 'tinyvit-zoo' else []),
        '---',
    ]
    data = resolve_model_data_config(model)
    channels, height, width = get_model_input_config(model)['input_size']
    facts = [
        f'- Architecture: `{architecture}` of {package}',
        f'- Parameters: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M',
        f'- Image: {channels} channels, {height}x{width}, crop {data["crop_pct"]:g} ({data["crop_mode"]}), '
        f'{data["interpolation"]}, mean {_numbers(data["mean"])}, std {_numbers(data["std"])}',
        f'- Classes: {model.num_classes or "none, an encoder"}',
    ]
    usage = [
        '```python',
        'import timm' if package == 'timm' else 'import timm, tinyvit_zoo',
        '',
        f"model = timm.create_model('hf-hub:{repo or 'OWNER/NAME'}', pretrained=True).eval()",
        '```',
    ]
    title = repo.partition('/')[2] if repo else architecture
    origin = 'Data, training and accuracy of these weights are known to whoever trained them and not stated here.'
    if random_seed is not None:
        origin = f'**The weights of this page are random (seed {random_seed}), made for tests.**'
    return '\n\n'.join('\n'.join(part) for part in (front, [f'# {title}'], [origin], facts, usage)) + '\n'


def _numbers(values: tuple[float, ...]) -> str:
    return ', '.join(f'{value:g}' for value in values)
