"""Model card of a Segment Anything model with a TinyViT encoder."""

from typing import Any

__all__ = ['render_sam_card']

CARD = """---
{license}library_name: transformers
pipeline_tag: mask-generation
tags:
- mask-generation
- segment-anything
- tinyvit-zoo
---

# {title}

{origin}

- Encoder: `{architecture}` of tinyvit-zoo with a last map of stride 16 and windows {windows}, and SAM's neck
- Prompt encoder and mask decoder: those of Segment Anything
- Parameters: {params:.2f} M
- Image: RGB, longest side {side} pixels, mean and standard deviation of ImageNet, {padding}

```python
import torch
from PIL import Image
from transformers import AutoModelForMaskGeneration, SamProcessor
from tinyvit_zoo.hub.sam import sam_masks  # registers the model

folder = '.'  # this folder, or the name of its page
model = AutoModelForMaskGeneration.from_pretrained(folder).eval()
processor = SamProcessor.from_pretrained(folder)
image = Image.open('image.jpg').convert('RGB')
inputs = processor(image, input_points=[[[image.width / 2, image.height / 2]]], return_tensors='pt')
inputs['input_points'] = inputs['input_points'].float()
with torch.inference_mode():
    output = model(**inputs)
masks = sam_masks(output.pred_masks, inputs['original_sizes'], inputs['reshaped_input_sizes'])
print(masks[0].shape, output.iou_scores)
```

`SamModel` of transformers is another model and does not load this folder.

## Licenses

{licenses}
"""

RELEASED = (
    'Converted by `tinyvit-zoo sam convert` from `{source}`. Nothing but the names and the format was changed; the '
    "classifier of the encoder's pre-training, which SAM does not use, was left out."
)
OWN = 'Data and training of these weights are known to whoever trained them and not stated here.'
RELEASED_LICENSES = """- Weights: if `{source}` is MobileSAM's file, it is from the repository
  [ChaoningZhang/MobileSAM](https://github.com/ChaoningZhang/MobileSAM), which is under the Apache License 2.0 and
  states no other license for them. Its encoder follows TinyViT (MIT).
- Prompt encoder and mask decoder were trained by
  [Segment Anything](https://github.com/facebookresearch/segment-anything) (Apache License 2.0)."""
OWN_LICENSES = """- Prompt encoder and mask decoder follow
  [Segment Anything](https://github.com/facebookresearch/segment-anything) (Apache License 2.0), the encoder
  [MobileSAM](https://github.com/ChaoningZhang/MobileSAM) (Apache License 2.0) and TinyViT (MIT).
- The license of these weights is for whoever trained them to state."""


def render_sam_card(config: Any, params: int, source: str | None = None) -> str:
    """Text of the README.md of a folder.

    Args:
        config: `hub.sam.TinyVitSamConfig`.
        params: Number of parameters.
        source: Name of the file that it was converted from; None for weights of the user's own.
    """
    vision = config.vision_config
    return CARD.format(
        license='license: apache-2.0\n' if source else '',
        title='Segment Anything with TinyViT' if source is None else f'{source} for transformers',
        origin=OWN if source is None else RELEASED.format(source=source),
        architecture=vision.architecture,
        windows=', '.join(map(str, vision.window_size)),
        params=params / 1e6,
        side=vision.image_size,
        padding='not padded' if config.rectangular else 'then padded with zeros to a square',
        licenses=OWN_LICENSES if source is None else RELEASED_LICENSES.format(source=source),
    )
