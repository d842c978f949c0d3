"""What MAE-Lite pre-trains with: MAE, D-MAE and MoCo v3."""

import torch
from timm.task import TrainingTask
from torch import nn

from ...pretrain import DMae, DMaeOutput, MaskedAutoencoder, MocoV3, cosine_momentum

__all__ = ['DMaeTask', 'MaeTask', 'MocoV3Task']


class MaeTask(TrainingTask):
    """A masked autoencoder.

    Args:
        form: Encoder and decoder.
        mask_ratio: Fraction of the patches that is hidden.
    """

    def __init__(self, form: MaskedAutoencoder, mask_ratio: float) -> None:
        super().__init__(verbose=False)
        self.trainable_module, self.mask_ratio = form, mask_ratio

    def forward(self, image: torch.Tensor, noise: torch.Tensor) -> dict[str, torch.Tensor]:  # type: ignore[override]
        """The loss of images (B, 3, H, W) whose patches with the least noise (B, N) are visible."""
        return dict(loss=self.trainable_module(image, self.mask_ratio, noise=noise).loss)


class DMaeTask(TrainingTask):
    """A masked autoencoder beside a frozen teacher; the teacher is in no state and no optimizer.

    Args:
        form: Student, teacher and what maps the one's heads and layers to the other's.
        mask_ratio: Fraction of the patches that is hidden.
    """

    def __init__(self, form: DMae, mask_ratio: float) -> None:
        super().__init__(verbose=False)
        self.trainable_module, self.mask_ratio = _DMaeStudent(form), mask_ratio
        self.teacher = form.tch_model  # goes to the device with the task
        self.parts = ['attention'] * bool(form.attention_blocks) + ['hidden'] * bool(form.hidden_layers)

    def forward(self, image: torch.Tensor, noise: torch.Tensor) -> dict[str, torch.Tensor]:  # type: ignore[override]
        """Losses of images (B, 3, H, W) whose patches with the least noise (B, N) are visible."""
        output = self.trainable_module(image, self.mask_ratio, noise)
        return dict(loss=output.loss, mae=output.mae, **{name: getattr(output, name) for name in self.parts})


class _DMaeStudent(nn.Module):
    """The part of a `DMae` that is trained, under the form's own names; calling it runs the whole form."""

    def __init__(self, form: DMae) -> None:
        super().__init__()
        self.model, self.attn_adapter, self.hidden_adapter = form.model, form.attn_adapter, form.hidden_adapter
        self._form = [form]  # in a list: the teacher is not part of this module

    def forward(self, image: torch.Tensor, mask_ratio: float, noise: torch.Tensor) -> DMaeOutput:
        return self._form[0](image, mask_ratio, noise=noise)


class MocoV3Task(TrainingTask):
    """Two encoders, one of which follows the other.

    Args:
        form: Both encoders with projectors and predictor.
        updates: Of the whole training, over which the momentum rises to 1.
        momentum: In the first one.
    """

    def __init__(self, form: MocoV3, updates: int, momentum: float) -> None:
        super().__init__(verbose=False)
        self.trainable_module, self.updates, self.momentum = form, updates, momentum
        self._followed = -1  # the last update in which the momentum encoder moved

    def forward(  # type: ignore[override]  # timm's base class knows (input, target) only
        self, first: torch.Tensor, second: torch.Tensor, update: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The loss of two views (B, 3, H, W) of the same images; `update` (B,) is the number of the update, from 0.

        Of the steps whose gradients add up to an update, the momentum encoder moves in the first one only.
        """
        number = int(update[0])
        momentum = 1.0 if number == self._followed else cosine_momentum(number, self.updates, self.momentum)
        self._followed = number
        return dict(loss=self.trainable_module(first, second, momentum))
