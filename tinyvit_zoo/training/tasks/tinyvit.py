"""TinyViT's pretraining distillation: a student learns a teacher's stored soft labels, perhaps the true ones, too."""

import torch
import torch.nn.functional as F
from timm.task import TrainingTask
from torch import nn

from ...distill.sparse import sparse_cross_entropy

__all__ = ['SparseDistillation', 'widened']


class SparseDistillation(TrainingTask):
    """Soft labels of a store as the targets.

    Args:
        model: The student, images to logits.
        hard_weight: Share of the cross-entropy with the true labels in the loss; 0, as in the paper, for none.
    """

    def __init__(self, model: nn.Module, hard_weight: float = 0.0) -> None:
        super().__init__(verbose=False)
        self.trainable_module = model
        self.hard_weight = hard_weight

    def forward(  # type: ignore[override]  # timm's base class knows (input, target) only
        self, image: torch.Tensor, label: torch.Tensor, ids: torch.Tensor, probabilities: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Losses of images (B, 3, H, W) with labels (B,), stored classes (B, K) and their probabilities (B, K)."""
        output = self.trainable_module(image)
        soft = sparse_cross_entropy(output, widened(ids), probabilities)
        if not self.hard_weight:
            return dict(loss=soft, output=output)
        hard = F.cross_entropy(output.float(), label)
        return dict(loss=(1 - self.hard_weight) * soft + self.hard_weight * hard, soft=soft, hard=hard, output=output)


def widened(ids: torch.Tensor) -> torch.Tensor:
    """Classes as int64, from unsigned numbers that came as int16 or int32 of the same bits, to spare the way there."""
    return ids.long() & (0xFFFF if ids.dtype == torch.int16 else 0xFFFFFFFF)
