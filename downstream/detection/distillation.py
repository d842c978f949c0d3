"""Distillation of a detector's backbone from that of a larger detector.

MiniViT: Compressing Vision Transformers with Weight Multiplexing, https://arxiv.org/abs/2204.07154, Sec. 4.4:
Mini-Swin-T in Cascade Mask R-CNN gains 0.8 box AP with Swin-B in the same detector as its teacher (Tab. 6). The code of
that experiment was never released.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from mmdet.models import CascadeRCNN
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from tinyvit_zoo.checkpoints import CheckpointError
from tinyvit_zoo.distill.losses import feature_map_loss

from .backbone import ZooBackbone

__all__ = ['DistilledCascadeRCNN', 'load_teacher']

CONFIGS = Path(__file__).parent / 'configs'
RANDOM = 'random'


@MODELS.register_module()
class DistilledCascadeRCNN(CascadeRCNN):
    """Cascade (Mask) R-CNN whose backbone also imitates the backbone of a trained detector.

    The loss is `distill_weight` times the mean squared difference of the two backbones' outputs, averaged over each
    level and then over levels (`feature_map_loss`); it is logged as `loss_distill`. Where the paper leaves details
    open, the choice is ours: the outputs are those before the FPN, after the norms that Swin's detectors have there,
    and where widths differ (Swin-T 96, Swin-B 128) a 1x1 convolution per level, trained jointly, projects the student's
    maps to the teacher's width. These projections, `distill_projections.*`, are the only additions of a checkpoint to
    that of a `CascadeRCNN`: mmdet's own tools load it as a plain `CascadeRCNN` and report that they leave them out.

    Only the backbone of the teacher is built, when training starts (`init_weights`): testing and predicting need no
    teacher. It is not a child of this module, so it is in no state dict and no optimizer, and DistributedDataParallel
    does not wrap it for gradients; it is always in evaluation mode and follows this module to its device.
    """

    def __init__(
        self,
        *,
        teacher_config: str | Path | dict,
        teacher_checkpoint: str | Path | None = None,
        distill_weight: float = 0.1,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            teacher_config: Of the teacher: a file, the name of a packaged config, or a config or its `model`.
            teacher_checkpoint: File or http address of the trained teacher, a whole detector. 'random' keeps random
                weights, for tests.
            distill_weight: 0.1 in the paper.
            **kwargs: Of `CascadeRCNN`.

        Raises:
            FileNotFoundError: If there is no such config.
            ValueError: If the two have different numbers of maps.
        """
        super().__init__(**kwargs)
        teacher = _model_of(teacher_config)
        student_widths, teacher_widths = self.neck.in_channels, teacher['neck']['in_channels']
        if len(student_widths) != len(teacher_widths):
            raise ValueError(
                f'The student has {len(student_widths)} maps, the teacher {len(teacher_widths)}: both need the same '
                'number.'
            )
        self.distill_weight = distill_weight
        self.teacher_backbone = teacher['backbone']
        self.teacher_checkpoint = teacher_checkpoint
        self._teacher: tuple[nn.Module, ...] = ()  # later a tuple of one, so that it is not a child of this module
        self.distill_projections = nn.ModuleList(
            nn.Identity() if s == t else nn.Conv2d(s, t, 1) for s, t in zip(student_widths, teacher_widths, strict=True)
        )

    @property
    def teacher(self) -> nn.Module:
        """The teacher's backbone, built and loaded on first access.

        Raises:
            CheckpointError: If there is no checkpoint of the teacher, or it does not fit.
        """
        if not self._teacher:
            teacher = load_teacher(self.teacher_backbone, self.teacher_checkpoint)
            self._teacher = (teacher.to(next(self.parameters()).device),)
        return self._teacher[0]

    def init_weights(self) -> None:
        """Initialize as mmengine does, and load the teacher, so that a missing one fails before the training starts."""
        super().init_weights()
        _ = self.teacher

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> 'DistilledCascadeRCNN':
        """Move or cast the teacher along with this module (`to`, `cuda`, `half`)."""
        for teacher in self._teacher:
            teacher._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def loss(self, batch_inputs: torch.Tensor, batch_data_samples: list) -> dict[str, torch.Tensor]:
        """Losses of the detector and `loss_distill` for a batch (B, 3, H, W) with its data samples."""
        maps: list[Sequence[torch.Tensor]] = []
        handle = self.backbone.register_forward_hook(lambda module, args, out: maps.append(out))
        try:
            losses = super().loss(batch_inputs, batch_data_samples)
        finally:
            handle.remove()
        losses['loss_distill'] = self.distill_weight * self.distill_loss(maps[0], batch_inputs)
        return losses

    def distill_loss(self, maps: Sequence[torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        """Distance between the student's maps and the teacher's of the same images (B, 3, H, W), without the weight."""
        with torch.no_grad():
            targets = self.teacher(images)
        projected = [project(x) for project, x in zip(self.distill_projections, maps, strict=True)]
        return feature_map_loss([x.float() for x in projected], [x.float() for x in targets])


def load_teacher(backbone: dict, checkpoint: str | Path | None) -> nn.Module:
    """The backbone of a trained detector, frozen and in evaluation mode.

    The state of the random generators is kept: a student is initialized the same with and without a teacher.

    Args:
        backbone: `model.backbone` of the detector's config.
        checkpoint: File or http address of the whole detector, or 'random' for the same random weights every time.

    Raises:
        CheckpointError: If there is none, or it does not fit.
    """
    checkpoint = str(checkpoint or '')
    if checkpoint != RANDOM and '://' not in checkpoint and not Path(checkpoint).is_file():
        raise CheckpointError(
            f'There is no checkpoint of the teacher{checkpoint and f" at {checkpoint}"}: set model.teacher_checkpoint '
            'to the file of a trained detector with the backbone of model.teacher_config.'
        )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        init_cfg = None if checkpoint == RANDOM else dict(type='Pretrained', checkpoint=checkpoint)
        teacher = MODELS.build({**backbone, 'init_cfg': init_cfg})
        if not isinstance(teacher, ZooBackbone):
            raise TypeError(f"The teacher's backbone must be a ZooBackbone, got {type(teacher).__name__}.")
        teacher.init_weights()
    return teacher.requires_grad_(False).eval()


def _model_of(config: str | Path | dict) -> dict:
    """`model` of a config that is given as a config, a file, or the name of a packaged one."""
    if isinstance(config, dict):
        return config.get('model', config)
    file = next((f for f in (Path(config), *CONFIGS.rglob(f'{config}.py')) if f.is_file()), None)
    if file is None:
        raise FileNotFoundError(
            f"'{config}' is not a config of a teacher: give a file or the name of a packaged config."
        )
    content = Config.fromfile(file)
    return content.get('model', content)
