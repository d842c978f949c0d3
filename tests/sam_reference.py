"""The image encoder of MobileSAM in plain steps, from weights under the released names; and those weights by rule."""

import functools

import numpy as np
import torch
import torch.nn.functional as F
from golden_rule import manifest, official_state_dict, rule_value

ENCODER = 'image_encoder.'
SAM_WINDOWS = (7, 7, 14, 7)


@functools.cache
def _whole() -> dict[str, torch.Tensor]:
    return official_state_dict('mobile_sam')


def mobile_sam() -> dict[str, torch.Tensor]:
    """A file like `mobile_sam.pt`, filled by the rule under its own names."""
    return dict(_whole())


@functools.cache
def _encoder() -> dict[str, torch.Tensor]:
    entries = {k.removeprefix(ENCODER): v for k, v in manifest('mobile_sam').items() if k.startswith(ENCODER)}
    values = {key: rule_value(key, shape) for key, (shape, _) in entries.items()}
    return {k: torch.zeros((), dtype=torch.long) if v is None else torch.from_numpy(v) for k, v in values.items()}


def mobile_sam_encoder() -> dict[str, torch.Tensor]:
    """The encoder alone, as the reference outputs of `mobile_sam_encoder_*.npz` have it: filled under bare names."""
    return dict(_encoder())


def sam_noise(*shape: int) -> torch.Tensor:
    """The input of the reference outputs, float64 with the values of float32."""
    return torch.from_numpy(np.random.RandomState(0).standard_normal(shape).astype(np.float32)).double()


def encode(w: dict[str, torch.Tensor], x: torch.Tensor, windows: tuple[int, ...] = SAM_WINDOWS) -> torch.Tensor:
    """Embeddings of images (B, 3, H, W) by an encoder's weights under the released names without prefix."""
    x = _conv_norm(w, 'patch_embed.seq.2', F.gelu(_conv_norm(w, 'patch_embed.seq.0', x, 2)), 2)
    for stage in range(4):
        for block in range(_count(w, f'layers.{stage}.blocks.')):
            name = f'layers.{stage}.blocks.{block}'
            x = _mbconv(w, name, x) if stage == 0 else _block(w, name, x, windows[stage])
        if stage < 3:
            name = f'layers.{stage}.downsample'
            x = F.gelu(_conv_norm(w, f'{name}.conv1', x))
            x = F.gelu(_conv_norm(w, f'{name}.conv2', x, stride=1 if stage == 2 else 2))
            x = _conv_norm(w, f'{name}.conv3', x)
    x = _channel_norm(w, 'neck.1', F.conv2d(x, w['neck.0.weight']))
    return _channel_norm(w, 'neck.3', F.conv2d(x, w['neck.2.weight'], padding=1))


def _count(w: dict[str, torch.Tensor], prefix: str) -> int:
    return len({k.removeprefix(prefix).partition('.')[0] for k in w if k.startswith(prefix)})


def _conv_norm(w: dict[str, torch.Tensor], name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
    kernel = w[f'{name}.c.weight']
    x = F.conv2d(x, kernel, None, stride, kernel.shape[-1] // 2, groups=x.shape[1] // kernel.shape[1])
    mean, variance, scale, shift = (
        w[f'{name}.bn.{leaf}'][:, None, None] for leaf in ('running_mean', 'running_var', 'weight', 'bias')
    )
    return (x - mean) / (variance + 1e-5).sqrt() * scale + shift


def _mbconv(w: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    y = F.gelu(_conv_norm(w, f'{name}.conv1', x))
    return F.gelu(x + _conv_norm(w, f'{name}.conv3', F.gelu(_conv_norm(w, f'{name}.conv2', y))))


def _block(w: dict[str, torch.Tensor], name: str, x: torch.Tensor, window: int) -> torch.Tensor:
    x = x + _attention(w, f'{name}.attn', x, window)
    x = _conv_norm(w, f'{name}.local_conv', x)
    y = _linear(w, f'{name}.mlp.fc1', _norm(w, f'{name}.mlp.norm', x.movedim(1, -1)))
    return x + _linear(w, f'{name}.mlp.fc2', F.gelu(y)).movedim(-1, 1)


def _attention(w: dict[str, torch.Tensor], name: str, x: torch.Tensor, window: int) -> torch.Tensor:
    """Every window by itself; cells beyond the map are zeros, and take part."""
    table = w[f'{name}.attention_biases']
    cells = [(row, col) for row in range(window) for col in range(window)]
    offset = torch.tensor([[abs(r - a) * window + abs(c - b) for a, b in cells] for r, c in cells])
    H, W = x.shape[-2:]
    padded = F.pad(x, (0, -W % window, 0, -H % window))
    result = torch.empty_like(padded)
    for top in range(0, H, window):
        for left in range(0, W, window):
            part = padded[:, :, top : top + window, left : left + window]
            tokens = part.flatten(2).mT
            qkv = _linear(w, f'{name}.qkv', _norm(w, f'{name}.norm', tokens))
            q, k, v = qkv.unflatten(-1, (len(table), 3, -1)).permute(3, 0, 2, 1, 4)
            weights = (q @ k.mT / q.shape[-1] ** 0.5 + table[:, offset]).softmax(-1)
            tokens = _linear(w, f'{name}.proj', (weights @ v).transpose(1, 2).flatten(2))
            result[:, :, top : top + window, left : left + window] = tokens.mT.reshape(part.shape)
    return result[:, :, :H, :W]


def _linear(w: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    return x @ w[f'{name}.weight'].mT + w[f'{name}.bias']


def _norm(w: dict[str, torch.Tensor], name: str, x: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0)
    return (x - mean) / (variance + eps).sqrt() * w[f'{name}.weight'] + w[f'{name}.bias']


def _channel_norm(w: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    return _norm(w, name, x.movedim(1, -1), eps=1e-6).movedim(-1, 1)
