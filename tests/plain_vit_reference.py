"""Plain ViTs spelled out from the description of the released ones: slow, one step per line, from a state dict.

Names are the released ones. Heads are given, since a state dict does not hold them.
"""

import torch
import torch.nn.functional as F
from golden_rule import constant

State = dict[str, torch.Tensor]


def norm(state: State, name: str, x: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f'{name}.weight'], state[f'{name}.bias'], eps)


def linear(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, state[f'{name}.weight'], state[f'{name}.bias'])


def qkv(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    """(B, N, 3C); BEiT's has no bias for the keys."""
    if f'{name}.q_bias' not in state:
        return linear(state, f'{name}.qkv', x)
    q, v = state[f'{name}.q_bias'], state[f'{name}.v_bias']
    return F.linear(x, state[f'{name}.qkv.weight'], torch.cat([q, torch.zeros_like(q), v]))


def attention(state: State, name: str, x: torch.Tensor, heads: int, bias: torch.Tensor) -> torch.Tensor:
    q, k, v = qkv(state, name, x).chunk(3, dim=-1)
    width = x.shape[-1] // heads
    outputs = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        logits = q[..., part] @ k[..., part].mT / width**0.5 + bias[head]
        outputs.append(logits.softmax(dim=-1) @ v[..., part])
    return linear(state, f'{name}.proj', torch.cat(outputs, dim=-1))


def table_bias(state: State, name: str, tokens: int, heads: int) -> torch.Tensor:
    """(heads, N, N): what the tables of a square grid add to the logits, nothing without tables."""
    bias = torch.zeros(heads, tokens, tokens, dtype=state['cls_token'].dtype)
    for table in (f'{name}.relative_position_bias_table', 'rel_pos_bias.relative_position_bias_table'):
        if table in state:
            index = torch.from_numpy(constant('relative_position_index', (tokens, tokens)))
            bias = bias + state[table][index].permute(2, 0, 1)
    return bias


def block(state: State, name: str, x: torch.Tensor, heads: int) -> torch.Tensor:
    bias = table_bias(state, f'{name}.attn', x.shape[1], heads)
    y = attention(state, f'{name}.attn', norm(state, f'{name}.norm1', x), heads, bias)
    x = x + state.get(f'{name}.gamma_1', 1) * y
    y = norm(state, f'{name}.norm2', x)
    y = linear(state, f'{name}.mlp.fc2', F.gelu(linear(state, f'{name}.mlp.fc1', y)))
    return x + state.get(f'{name}.gamma_2', 1) * y


def tokens(state: State, images: torch.Tensor, heads: list[int]) -> list[torch.Tensor]:
    """Tokens after every block of `heads`, the class token (and distillation token) first."""
    weight, b = state['patch_embed.proj.weight'], state['patch_embed.proj.bias']
    x = F.conv2d(images, weight, b, stride=weight.shape[-1]).flatten(2).mT
    prefix = [state[name].expand(len(x), -1, -1) for name in ('cls_token', 'dist_token') if name in state]
    x = torch.cat([*prefix, x], dim=1)
    if 'pos_embed' in state:
        x = x + state['pos_embed']
    after = []
    for i, n in enumerate(heads):
        x = block(state, f'blocks.{i}', x, n)
        after.append(x)
    return after
