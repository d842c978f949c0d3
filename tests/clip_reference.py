"""CLIP's image tower and a classifier spelled out, one step per line, from a state dict under the released names."""

import torch
import torch.nn.functional as F

State = dict[str, torch.Tensor]


def norm(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f'{name}.weight'], state[f'{name}.bias'], 1e-5)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return x @ weight.T + bias


def attention(state: State, name: str, x: torch.Tensor, heads: int) -> torch.Tensor:
    q, k, v = linear(x, state[f'{name}.in_proj_weight'], state[f'{name}.in_proj_bias']).chunk(3, dim=-1)
    width, outputs = x.shape[-1] // heads, []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        weights = (q[..., part] @ k[..., part].mT / width**0.5).softmax(dim=-1)
        outputs.append(weights @ v[..., part])
    return linear(torch.cat(outputs, dim=-1), state[f'{name}.out_proj.weight'], state[f'{name}.out_proj.bias'])


def block(state: State, name: str, x: torch.Tensor, heads: int) -> torch.Tensor:
    x = x + attention(state, f'{name}.attn', norm(state, f'{name}.ln_1', x), heads)
    y = norm(state, f'{name}.ln_2', x)
    y = linear(y, state[f'{name}.mlp.c_fc.weight'], state[f'{name}.mlp.c_fc.bias'])
    y = y / (1 + torch.exp(-1.702 * y))
    return x + linear(y, state[f'{name}.mlp.c_proj.weight'], state[f'{name}.mlp.c_proj.bias'])


def logits(state: State, images: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, 3, H, W) -> (B, classes)."""
    kernel = state['visual.conv1.weight']
    x = F.conv2d(images, kernel, stride=kernel.shape[-1]).flatten(2).mT
    x = torch.cat([state['visual.class_embedding'].expand(len(x), 1, -1), x], dim=1)
    x = x + state['visual.positional_embedding']
    x = norm(state, 'visual.ln_pre', x)
    for i in range(sum(key.endswith('.ln_1.weight') for key in state)):
        x = block(state, f'visual.transformer.resblocks.{i}', x, heads)
    x = norm(state, 'visual.ln_post', x[:, 0]) @ state['visual.proj']
    return linear(x, state['head.weight'], state['head.bias'])
