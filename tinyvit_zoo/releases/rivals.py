"""Models of timm that the accuracies of the zoo are compared with, as timm's author measured them.

Top-1 on ImageNet-1k is that of `results/results-imagenet.csv` in timm's repository. Where that file holds several
resolutions of one checkpoint, the best is here. GMACs were counted here, by `info.profile_model` at the
resolution of the row; the tests count them again.
"""

from dataclasses import dataclass

__all__ = ['RIVALS', 'SOURCE_URL', 'Rival']

SOURCE_URL = 'https://github.com/huggingface/pytorch-image-models/blob/main/results/results-imagenet.csv'


@dataclass(frozen=True)
class Rival:
    """A checkpoint of timm at one resolution.

    Attributes:
        name: 'architecture.tag' of timm.
        img_size: Side of the square image.
        top1: On ImageNet-1k in %, measured by timm's author.
        gmacs: Of one image.
    """

    name: str
    img_size: int
    top1: float
    gmacs: float

    @property
    def architecture(self) -> str:
        return self.name.partition('.')[0]

    @property
    def more_data(self) -> bool:
        """Whether it saw more than ImageNet-1k, as its tag says."""
        return any(data in self.name for data in ('in22k', 'in21k', 'in12k'))


RIVALS = (
    Rival('vit_tiny_patch16_224.augreg_in21k_ft_in1k', 224, 75.452, 1.254),
    Rival('vit_small_patch16_224.augreg_in1k', 224, 78.842, 4.599),
    Rival('vit_small_patch16_224.augreg_in21k_ft_in1k', 224, 81.402, 4.599),
    Rival('deit_tiny_patch16_224.fb_in1k', 224, 72.190, 1.254),
    Rival('deit_tiny_distilled_patch16_224.fb_in1k', 224, 74.538, 1.261),
    Rival('deit_small_patch16_224.fb_in1k', 224, 79.856, 4.599),
    Rival('deit_base_patch16_224.fb_in1k', 224, 81.980, 17.564),
    Rival('deit_base_patch16_384.fb_in1k', 384, 83.108, 55.484),
    Rival('swin_tiny_patch4_window7_224.ms_in1k', 224, 81.388, 4.491),
    Rival('swin_tiny_patch4_window7_224.ms_in22k_ft_in1k', 224, 80.966, 4.491),
    Rival('swin_small_patch4_window7_224.ms_in1k', 224, 83.228, 8.741),
    Rival('swin_small_patch4_window7_224.ms_in22k_ft_in1k', 224, 83.330, 8.741),
    Rival('swin_base_patch4_window7_224.ms_in1k', 224, 83.604, 15.431),
    Rival('swin_base_patch4_window7_224.ms_in22k_ft_in1k', 224, 85.276, 15.431),
    Rival('swin_base_patch4_window12_384.ms_in1k', 384, 84.478, 47.083),
    Rival('swin_base_patch4_window12_384.ms_in22k_ft_in1k', 384, 86.442, 47.083),
    Rival('convnext_tiny.fb_in1k', 288, 82.694, 7.365),
    Rival('convnext_tiny.fb_in22k_ft_in1k', 224, 82.900, 4.456),
    Rival('convnext_tiny.fb_in22k_ft_in1k_384', 384, 84.098, 13.092),
    Rival('convnext_tiny.in12k_ft_in1k', 288, 84.448, 7.365),
    Rival('convnext_tiny.in12k_ft_in1k_384', 384, 85.154, 13.092),
    Rival('efficientvit_b2.r224_in1k', 224, 82.162, 1.585),
    Rival('efficientvit_b2.r256_in1k', 256, 82.712, 2.068),
    Rival('efficientvit_b2.r288_in1k', 288, 83.078, 2.614),
    Rival('fastvit_sa12.apple_in1k', 256, 80.846, 1.944),
    Rival('fastvit_sa12.apple_dist_in1k', 256, 81.838, 1.944),
    Rival('repvit_m2_3.dist_300e_in1k', 224, 83.524, 4.521),
    Rival('repvit_m2_3.dist_450e_in1k', 224, 83.746, 4.521),
    Rival('mobilenetv4_hybrid_large.e600_r384_in1k', 448, 84.264, 10.663),
    Rival('mobilenetv4_hybrid_large.ix_e600_r384_in1k', 448, 84.352, 10.663),
)
