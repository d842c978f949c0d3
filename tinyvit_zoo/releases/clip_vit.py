"""The teacher of TinyViT's students: the image tower of OpenAI's CLIP ViT-L/14, fine-tuned on ImageNet-22k.

It was released with TinyViT, without a paper of its own. Accuracies are the authors'.
"""

from .record import Golden, License, Protocol, Release, Result
from .tinyvit import ORIGIN, PAPER

__all__ = ['CLIP_VIT']

GUIDE = 'https://github.com/microsoft/Cream/blob/main/TinyViT/docs/SAVE_TEACHER_LOGITS.md'
# OpenAI's mean and standard deviation; `DATA.MEAN_AND_STD_TYPE clip` of the released code.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

CLIP_VIT = (
    Release(
        name='clip_vit_large_patch14_224.openai_ft_in22k',
        url='https://github.com/wkcn/TinyViT-model-zoo/releases/download/pretrained_teacher/clip_vit_large_patch14_22k.pth',
        hf_hub_id=None,
        num_classes=21841,
        labels='imagenet-22k',
        protocols=(
            Protocol(
                'paper',
                224,
                0.875,
                'center',
                'released code: resize to 256, center crop 224',
                (Result('imagenet-1k', 85.894, 97.566, 'authors', 'guide of the released code, 22k head', GUIDE),),
            ),
        ),
        license=License('mit', 'https://github.com/microsoft/Cream/blob/main/TinyViT/LICENSE'),
        paper=PAPER,
        origin_url=ORIGIN,
        training="OpenAI's CLIP ViT-L/14, fine-tuned on ImageNet-22k",
        mean=CLIP_MEAN,
        std=CLIP_STD,
        notes=(
            "the 21841 classes are in the order of timm's label set; of those of ImageNet-1k, n04399382 (teddy) is not "
            'among them',
            'its accuracy on ImageNet-1k is that of the 22k head without further training: the outputs of the 999 '
            'classes that it has compete, with a constant 0 for the absent one (`RemapLayer` of the released code)',
            'the README of the released code calls it L/16; file, configuration and code are of L/14',
            "started from OpenAI's weights, whose repository is MIT, too: https://github.com/openai/CLIP",
            'the projection before the classifier has no bias and no activation; the blocks have QuickGELU',
        ),
        golden=Golden('clip_vit_small', 'logits and features of the same network with 3 blocks of width 128', 5e-6),
    ),
)
