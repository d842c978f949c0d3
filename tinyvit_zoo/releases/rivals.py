"""Models of timm that the accuracies of the zoo are compared with, as timm's author measured them.

Top-1 on ImageNet-1k is that of `results/results-imagenet.csv` in timm's repository. Where that file holds several
resolutions of one checkpoint, the best is here. GMACs, parameters and bytes were counted here, by `info.profile_model`
at the resolution of the row; the tests count them again. Licenses are those of timm's pretrained cfgs.
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
        params: Number of parameters.
        bytes: Of its tensors in float32.
        license: SPDX id, or timm's word for another one.
    """

    name: str
    img_size: int
    top1: float
    gmacs: float
    params: int
    bytes: int
    license: str

    @property
    def architecture(self) -> str:
        return self.name.partition('.')[0]

    @property
    def more_data(self) -> bool:
        """Whether it saw more than ImageNet-1k, as its tag says."""
        return any(data in self.name for data in ('in22k', 'in21k', 'in12k'))


RIVALS = (
    Rival('vit_tiny_patch16_224.augreg_in21k_ft_in1k', 224, 75.452, 1.254, 5_717_416, 22_869_664, 'apache-2.0'),
    Rival('vit_small_patch16_224.augreg_in1k', 224, 78.842, 4.599, 22_050_664, 88_202_656, 'apache-2.0'),
    Rival('vit_small_patch16_224.augreg_in21k_ft_in1k', 224, 81.402, 4.599, 22_050_664, 88_202_656, 'apache-2.0'),
    Rival('deit_tiny_patch16_224.fb_in1k', 224, 72.190, 1.254, 5_717_416, 22_869_664, 'apache-2.0'),
    Rival('deit_tiny_distilled_patch16_224.fb_in1k', 224, 74.538, 1.261, 5_910_800, 23_643_200, 'apache-2.0'),
    Rival('deit_small_patch16_224.fb_in1k', 224, 79.856, 4.599, 22_050_664, 88_202_656, 'apache-2.0'),
    Rival('deit_base_patch16_224.fb_in1k', 224, 81.980, 17.564, 86_567_656, 346_270_624, 'apache-2.0'),
    Rival('deit_base_patch16_384.fb_in1k', 384, 83.108, 55.484, 86_859_496, 347_437_984, 'apache-2.0'),
    Rival('swin_tiny_patch4_window7_224.ms_in1k', 224, 81.388, 4.491, 28_288_354, 113_153_416, 'mit'),
    Rival('swin_tiny_patch4_window7_224.ms_in22k_ft_in1k', 224, 80.966, 4.491, 28_288_354, 113_153_416, 'mit'),
    Rival('swin_small_patch4_window7_224.ms_in1k', 224, 83.228, 8.741, 49_606_258, 198_425_032, 'mit'),
    Rival('swin_small_patch4_window7_224.ms_in22k_ft_in1k', 224, 83.330, 8.741, 49_606_258, 198_425_032, 'mit'),
    Rival('swin_base_patch4_window7_224.ms_in1k', 224, 83.604, 15.431, 87_768_224, 351_072_896, 'mit'),
    Rival('swin_base_patch4_window7_224.ms_in22k_ft_in1k', 224, 85.276, 15.431, 87_768_224, 351_072_896, 'mit'),
    Rival('swin_base_patch4_window12_384.ms_in1k', 384, 84.478, 47.083, 87_903_584, 351_614_336, 'mit'),
    Rival('swin_base_patch4_window12_384.ms_in22k_ft_in1k', 384, 86.442, 47.083, 87_903_584, 351_614_336, 'mit'),
    Rival('convnext_tiny.fb_in1k', 288, 82.694, 7.365, 28_589_128, 114_356_512, 'apache-2.0'),
    Rival('convnext_tiny.fb_in22k_ft_in1k', 224, 82.900, 4.456, 28_589_128, 114_356_512, 'apache-2.0'),
    Rival('convnext_tiny.fb_in22k_ft_in1k_384', 384, 84.098, 13.092, 28_589_128, 114_356_512, 'apache-2.0'),
    Rival('convnext_tiny.in12k_ft_in1k', 288, 84.448, 7.365, 28_589_128, 114_356_512, 'apache-2.0'),
    Rival('convnext_tiny.in12k_ft_in1k_384', 384, 85.154, 13.092, 28_589_128, 114_356_512, 'apache-2.0'),
    Rival('efficientvit_b2.r224_in1k', 224, 82.162, 1.585, 24_330_712, 97_429_400, 'apache-2.0'),
    Rival('efficientvit_b2.r256_in1k', 256, 82.712, 2.068, 24_330_712, 97_429_400, 'apache-2.0'),
    Rival('efficientvit_b2.r288_in1k', 288, 83.078, 2.614, 24_330_712, 97_429_400, 'apache-2.0'),
    Rival('fastvit_sa12.apple_in1k', 256, 80.846, 1.944, 11_580_968, 46_465_776, 'fastvit-license'),
    Rival('fastvit_sa12.apple_dist_in1k', 256, 81.838, 1.944, 11_580_968, 46_465_776, 'fastvit-license'),
    Rival('repvit_m2_3.dist_300e_in1k', 224, 83.524, 4.521, 23_688_792, 95_374_848, 'apache-2.0'),
    Rival('repvit_m2_3.dist_450e_in1k', 224, 83.746, 4.521, 23_688_792, 95_374_848, 'apache-2.0'),
    Rival('mobilenetv4_hybrid_large.e600_r384_in1k', 448, 84.264, 10.663, 37_764_624, 151_717_064, 'apache-2.0'),
    Rival('mobilenetv4_hybrid_large.ix_e600_r384_in1k', 448, 84.352, 10.663, 37_764_624, 151_717_064, 'apache-2.0'),
)
