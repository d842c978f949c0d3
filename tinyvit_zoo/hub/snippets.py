"""Programs on a model card: complete, to paste, with the shapes that they print as comments."""

from typing import NamedTuple

from ..releases import Protocol, Release, family_of
from .sizes import Shapes, shapes_of

__all__ = ['IMAGE_URL', 'Use', 'render_overlay', 'render_snippets', 'render_uses']

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
        snippets['Image Classification'] = _classification(release)
    maps = [f'# {shape}' for shape in shapes.maps]
    if channels_last:
        maps.append('# batch, height, width, channels, as of every Swin in timm')
    end = _MAPS.format(maps='\n'.join(maps))
    snippets['Feature Map Extraction'] = _START.format(name=release.name, arguments='\n    features_only=True,') + end
    snippets['Image Embeddings'] = _embeddings(release, shapes)
    return {title: code.strip() for title, code in snippets.items()}


def _classification(release: Release) -> str:
    end = _CLASSIFY.format(output=(1, release.num_classes), labels=release.labels)
    return _START.format(name=release.name, arguments='') + end


def _embeddings(release: Release, shapes: Shapes) -> str:
    arguments = '\n    num_classes=0,' if release.num_classes else ''
    end = _EMBED.format(embedding=shapes.embedding, features=shapes.features)
    return _START.format(name=release.name, arguments=arguments) + end


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


class Use(NamedTuple):
    """A program for one use of a model.

    Attributes:
        id: The same for all models.
        title: For a tab.
        language: 'python' or 'sh'.
        code: The program.
    """

    id: str
    title: str
    language: str
    code: str


_IMAGE = """image = Image.open('photo.jpg').convert('RGB')
"""

_TRANSFORMERS = """import timm
import tinyvit_zoo  # registers the model, with transformers too
import torch
from PIL import Image
from transformers import AutoImageProcessor, {auto}
from tinyvit_zoo.hub import save_folder

save_folder(timm.create_model('{name}', pretrained=True), 'page', tag='{tag}')
processor = AutoImageProcessor.from_pretrained('page')
model = {auto}.from_pretrained('page').eval()
{image}with torch.inference_mode():
    output = model(**processor(image, return_tensors='pt'))
{end}"""
_TRANSFORMERS_ENDS = {
    True: 'print(model.config.id2label[output.logits.argmax().item()])',
    False: 'print(tuple(output.pooler_output.shape))',
}

_ONNX = """import onnxruntime
import timm
import tinyvit_zoo  # registers the model
from PIL import Image
from tinyvit_zoo.export import export_model

model = timm.create_model('{name}', pretrained=True).eval()
export_model(model, 'model.onnx')  # folded, and compared with PyTorch before it is kept
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
{image}session = onnxruntime.InferenceSession('model.onnx')
output = session.run(None, {{'images': transform(image)[None].numpy()}})[0]
print(output.shape)"""

_RT_DETR = """import timm
import tinyvit_zoo  # registers the model
import torch
from transformers import RTDetrConfig, RTDetrForObjectDetection, TimmBackboneConfig

name = '{name}'
trunk = timm.create_model(name, pretrained=True, features_only=True, out_indices=(1, 2, 3))
config = RTDetrConfig(
    backbone_config=TimmBackboneConfig(backbone=name, out_indices=[1, 2, 3]),
    encoder_in_channels=trunk.feature_info.channels(),
    num_labels=2,
)
model = RTDetrForObjectDetection(config)  # a detector to be trained, on this backbone
model.model.backbone.model._backbone.load_state_dict(trunk.state_dict())  # transformers loads none
with torch.inference_mode():
    output = model.eval()(torch.zeros(1, 3, 256, 256))
print(tuple(output.pred_boxes.shape))"""

_SMP = """import segmentation_models_pytorch as smp
import tinyvit_zoo  # registers the model
import torch

model = smp.Unet('tu-{name}', encoder_weights='imagenet', classes=3)  # to be trained, on this encoder
with torch.inference_mode():
    masks = model.eval()(torch.zeros(1, 3, {side}, {side}))
print(tuple(masks.shape))"""

_SAM = """import timm
import tinyvit_zoo  # registers the model
import torch
from tinyvit_zoo.dense import sam_encoder

weights = timm.create_model('{name}', pretrained=True).state_dict()
encoder = sam_encoder('{architecture}', img_size=1024, weights=weights)  # with a new neck, to be trained
with torch.inference_mode():
    embeddings = encoder(torch.zeros(1, 3, 1024, 1024))
print(tuple(embeddings.shape))  # (1, 256, 64, 64)"""

_FINETUNE = """# my_photos: one folder of images for each class
tinyvit-zoo finetune {name} --data my_photos --epochs 10 -o finetuned
tinyvit-zoo classify photo.jpg --model local-dir:finetuned/model"""

_FEATURES = """# Its features teach a small encoder; my_photos needs no labels
tinyvit-zoo pretrain features --student tinyvit_5m_224 --teacher {name} -d my_photos --epochs 10 -o student"""

_SOFT_LABELS = """

# Its predictions, stored once, teach a small classifier
tinyvit-zoo distill save {name} -d {dataset} --root data --store labels --epochs 0:10 -k 100
tinyvit-zoo distill train tinyvit_5m_224 --random -d {dataset} --root data --store labels --epochs 10 -o taught"""

# Data set by its number of classes.
_LABELLED = {1000: 'imagenet-1k', 21841: 'imagenet-22k'}


def render_uses(release: Release) -> list[Use]:
    """Programs for the uses of a release, in the order of their tabs; what a family cannot do is left out."""
    family, name = family_of(release), release.name
    classifies = bool(release.num_classes)
    if classifies:
        own = _classification(release)
    else:
        own = _embeddings(release, shapes_of(release.architecture, release.num_classes))
    auto = 'AutoModelForImageClassification' if classifies else 'AutoModel'
    uses = [
        Use('timm', 'timm', 'python', own.strip()),
        Use(
            'transformers', 'transformers', 'python',
            _TRANSFORMERS.format(
                name=name, tag=release.tag, auto=auto, image=_IMAGE, end=_TRANSFORMERS_ENDS[classifies]
            ),
        ),
        Use('onnx', 'ONNX', 'python', _ONNX.format(name=name, image=_IMAGE)),
    ]  # fmt: skip
    if family == 'tinyvit':
        uses.append(Use('rt_detr', 'RT-DETR', 'python', _RT_DETR.format(name=name)))
        uses.append(Use('smp', 'smp', 'python', _SMP.format(name=name, side=release.img_size)))
        uses.append(Use('sam', 'SAM', 'python', _SAM.format(name=name, architecture=release.architecture)))
    uses.append(Use('finetune', 'Fine-tune', 'sh', _FINETUNE.format(name=name)))
    distil = _FEATURES.format(name=name)
    if classifies:
        distil += _SOFT_LABELS.format(name=name, dataset=_LABELLED[release.num_classes])
    uses.append(Use('distil', 'Distil', 'sh', distil))
    return uses
