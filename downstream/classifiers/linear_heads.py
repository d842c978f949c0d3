"""Many linear classifiers trained at once, with the same result as each one alone.

Heads on the same layer share one matrix product in the forward and backward pass, whatever their learning rates and
weight decays. A head that diverges does not affect others: no value of one head enters another.

Shape legend: `B` batch, `H` heads on a layer, `K` classes, `D` width of the layer.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from tinyvit_zoo.common.errors import EvaluationError

__all__ = ['LinearHeads', 'Setting', 'grid']

MOMENTUM = 0.9
INIT_STD = 0.01
LOGITS_AT_ONCE = 2**24  # 64 MiB of float32


@dataclass(frozen=True)
class Setting:
    """The settings of a head; the learning rate is for a batch of 256."""

    lr: float
    weight_decay: float
    layer: str


def grid(lrs: Iterable[float], weight_decays: Iterable[float], layers: Iterable[str]) -> tuple[Setting, ...]:
    """Every combination once: by layer, then weight decay, then learning rate.

    Raises:
        EvaluationError: If there is no combination, or a learning rate or weight decay is out of range.
    """
    lrs, weight_decays = list(dict.fromkeys(lrs)), list(dict.fromkeys(weight_decays))
    settings = tuple(Setting(lr, wd, layer) for layer in dict.fromkeys(layers) for wd in weight_decays for lr in lrs)
    if not settings:
        raise EvaluationError('There is no head to train: give at least one learning rate, weight decay and layer.')
    for name, values, lowest in (('learning rate', lrs, 'above 0'), ('weight decay', weight_decays, '0 or above')):
        for value in values:
            if not (math.isfinite(value) and (value > 0 or (value == 0 and lowest != 'above 0'))):
                raise EvaluationError(f'The {name} is {value:g}: give numbers {lowest}.')
    return settings


@dataclass
class _Group:
    """The heads on one layer: `weight` and its momentum (H, K, D), `bias` and its momentum (H, K)."""

    where: list[int]  # indices of its heads among all settings
    lr: torch.Tensor  # (H,), for a batch of 256
    weight_decay: torch.Tensor  # (H,)
    weight: torch.Tensor
    bias: torch.Tensor
    weight_momentum: torch.Tensor
    bias_momentum: torch.Tensor

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """(B, D) -> (B, H, K)."""
        H, K, D = self.weight.shape
        return torch.addmm(self.bias.view(-1), x, self.weight.view(H * K, D).T).view(-1, H, K)


class LinearHeads:
    """Linear classifiers under SGD with momentum, as in MoCo v3's probe (main_lincls.py).

    Initial weights are drawn from N(0, .01), biases are 0. All heads on a layer have the same initial values, like runs
    with the same seed.

    Args:
        settings: One for each head.
        widths: Width `D` of each layer.
        num_classes: `K`.
        seed: Of the initial weights.
        device: Of the heads.
    """

    def __init__(
        self,
        settings: Sequence[Setting],
        widths: Mapping[str, int],
        num_classes: int,
        seed: int = 0,
        device: torch.device | str = 'cpu',
    ) -> None:
        self.settings = tuple(settings)
        self._groups: dict[str, _Group] = {}
        for layer in dict.fromkeys(s.layer for s in settings):
            where = [i for i, s in enumerate(settings) if s.layer == layer]
            generator = torch.Generator().manual_seed(seed)
            initial = torch.empty(num_classes, widths[layer]).normal_(0, INIT_STD, generator=generator)
            weight = initial.expand(len(where), -1, -1).contiguous().to(device)
            bias = weight.new_zeros(weight.shape[:2])
            self._groups[layer] = _Group(
                where,
                weight.new_tensor([settings[i].lr for i in where]),
                weight.new_tensor([settings[i].weight_decay for i in where]),
                weight,
                bias,
                torch.zeros_like(weight),
                torch.zeros_like(bias),
            )

    @torch.no_grad()
    def step(
        self, features: Mapping[str, torch.Tensor], targets: torch.Tensor, batch_size: int, lr_factor: float
    ) -> None:
        """One step of every head on the mean cross-entropy of a batch.

        Args:
            features: (B, D) of each layer, float32; with several processes, this one's part of the batch.
            targets: (B,) int64.
            batch_size: Images in the whole batch, over all processes.
            lr_factor: The schedule's factor for every learning rate, times (nominal batch size) / 256.
        """
        for layer, group in self._groups.items():
            x = features[layer].float()
            d_logits = group.logits(x).softmax(dim=2)
            d_logits[torch.arange(len(x), device=x.device), :, targets] -= 1
            d_logits = d_logits.flatten(1).div_(batch_size)
            d_weight, d_bias = (d_logits.T @ x).view_as(group.weight), d_logits.sum(dim=0).view_as(group.bias)
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(d_weight)
                dist.all_reduce(d_bias)
            _descend(group.weight, group.weight_momentum, d_weight, group, lr_factor)
            _descend(group.bias, group.bias_momentum, d_bias, group, lr_factor)

    @torch.no_grad()
    def logits(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Logits of every head (number of heads, B, K) in the order of the settings."""
        parts = {layer: group.logits(features[layer].float()) for layer, group in self._groups.items()}
        rows = {i: parts[layer][:, j] for layer, group in self._groups.items() for j, i in enumerate(group.where)}
        return torch.stack([rows[i] for i in range(len(self.settings))])

    @torch.no_grad()
    def score(self, features: Mapping[str, torch.Tensor], targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Accuracy in % and mean cross-entropy of every head, both (number of heads,) float64.

        Both are NaN for a head whose values are no longer finite.
        """
        right = torch.zeros(len(self.settings), dtype=torch.float64)
        loss = torch.zeros_like(right)
        num_classes = next(iter(self._groups.values())).bias.shape[1]
        rows = max(1, LOGITS_AT_ONCE // (len(self.settings) * num_classes))
        for start in range(0, len(targets), rows):
            part = slice(start, start + rows)
            logits = self.logits({layer: x[part] for layer, x in features.items()})
            truth = targets[part].expand(len(logits), -1)
            right += (logits.argmax(dim=2) == truth).sum(dim=1).cpu()
            chosen = logits.gather(2, truth[..., None])[..., 0]
            loss += (logits.logsumexp(dim=2) - chosen).sum(dim=1, dtype=torch.float64).cpu()
        accuracy = torch.where(loss.isfinite(), 100 * right / len(targets), torch.nan)
        return accuracy, torch.where(loss.isfinite(), loss / len(targets), torch.nan)

    def head(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of weight (K, D) and bias (K,) of one head, in the order of the settings, on the CPU."""
        group = self._groups[self.settings[index].layer]
        place = group.where.index(index)
        return group.weight[place].to('cpu', copy=True), group.bias[place].to('cpu', copy=True)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Weights and momentum by name; the tensors themselves, not copies."""
        names = ('weight', 'bias', 'weight_momentum', 'bias_momentum')
        return {f'{layer}.{name}': getattr(group, name) for layer, group in self._groups.items() for name in names}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Load weights and momentum.

        Raises:
            KeyError, RuntimeError: If they belong to other heads.
        """
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])


def _descend(
    value: torch.Tensor, momentum: torch.Tensor, gradient: torch.Tensor, group: _Group, lr_factor: float
) -> None:
    """torch.optim.SGD with its own learning rate and weight decay for each row of `value`."""
    shape = (-1,) + (1,) * (value.ndim - 1)
    gradient.addcmul_(value, group.weight_decay.view(shape))
    momentum.mul_(MOMENTUM).add_(gradient)
    value.addcmul_(momentum, group.lr.view(shape), value=-lr_factor)
