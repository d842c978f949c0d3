"""Programs on a model card: complete, to paste, with the shapes that they print as comments."""

from ..releases import Protocol, Release
from .sizes import Shapes

__all__ = ['IMAGE_URL', 'render_overlay', 'render_snippets']

IMAGE_URL = 'https://huggingface.co/datasets/huggingface/documentation-images/resolve/main/beignets-task-guide.png'
"""The image of timm's own cards."""

_START = f"""from urllib.request import urlopen

import timm
import tinyvit_zoo  # registers the model
import torch
from PIL import Image

url = '{IMAGE_URL}'
image = Image.open(urlopen(url)).convert('RGB')
model = timm.create_model(
    '{{name}}',
    pretrained=True,{{arguments}}
)
model = model.eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
"""

_CLASSIFY = """
with torch.inference_mode():
    output = model(transform(image).unsqueeze(0))
print(tuple(output.shape))  # {output}

labels = timm.data.ImageNetInfo('{labels}')
for probability, index in zip(*(t[0] for t in output.softmax(dim=1).topk(5))):
    print(f'{{probability:.1%}}', labels.index_to_description(index.item()))
"""

_MAPS = """
with torch.inference_mode():
    maps = model(transform(image).unsqueeze(0))
for features in maps:
    print(tuple(features.shape))
{maps}
"""

_EMBED = """
with torch.inference_mode():
    embedding = model(transform(image).unsqueeze(0))
    print(tuple(embedding.shape))  # {embedding}

    # The same in two steps, with all tokens or the whole map in between; works without num_classes=0 too.
    features = model.forward_features(transform(image).unsqueeze(0))
    print(tuple(features.shape))  # {features}
    embedding = model.forward_head(features, pre_logits=True)
    print(tuple(embedding.shape))  # {embedding}
"""


def render_snippets(release: Release, shapes: Shapes, channels_last: bool) -> dict[str, str]:
    """Programs by title. An encoder has none that classifies.

    Args:
        release: Release that the card is for.
        shapes: Shapes that the programs print.
        channels_last: Whether feature maps are (batch, height, width, channels).
    """
    snippets = {}
    if release.num_classes:
        end = _CLASSIFY.format(output=shapes.output, labels=release.labels)
        snippets['Image Classification'] = _START.format(name=release.name, arguments='') + end
    maps = [f'# {shape}' for shape in shapes.maps]
    if channels_last:
        maps.append('# batch, height, width, channels, as of every Swin in timm')
    end = _MAPS.format(maps='\n'.join(maps))
    snippets['Feature Map Extraction'] = _START.format(name=release.name, arguments='\n    features_only=True,') + end
    arguments = '\n    num_classes=0,' if release.num_classes else ''
    snippets['Image Embeddings'] = _START.format(name=release.name, arguments=arguments) + _EMBED.format(
        embedding=shapes.embedding, features=shapes.features
    )
    return {title: code.strip() for title, code in snippets.items()}


def render_overlay(release: Release, protocol: Protocol) -> str:
    """A program that makes the model with a preprocessing other than its default."""
    return (
        'import timm\n'
        'import tinyvit_zoo  # registers the model\n\n'
        f"overlay = dict(crop_pct={protocol.crop_pct}, crop_mode='{protocol.crop_mode}')\n"
        f"model = timm.create_model('{release.name}', pretrained=True, pretrained_cfg_overlay=overlay)\n"
        'config = timm.data.resolve_model_data_config(model)\n'
        f"print(config['crop_pct'], config['crop_mode'])  # {protocol.crop_pct} {protocol.crop_mode}"
    )
