"""Mini-DeiT and Mini-Swin spelled out: slow, on official state dicts, without any code of the package.

Written from the description of the released models. Heads, windows and cells are walked through one by one, so that
what the package does by batched products, flat indices, masks and rolled maps is checked by something that has none.
"""

import torch
import torch.nn.functional as F

State = dict[str, torch.Tensor]


def _linear(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    return x @ state[f'{name}.weight'].T + state.get(f'{name}.bias', 0)


def _norm(state: State, name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return scaled * state[f'{name}.weight'] + state[f'{name}.bias']


def _mlp(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    hidden = _linear(state, f'{name}.fc1', x)
    return _linear(state, f'{name}.fc2', hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5)))


def _patches(state: State, images: torch.Tensor) -> torch.Tensor:
    """Images (B, c, H, W) -> (B, h, w, C): every patch times the kernel."""
    kernel, bias = state['patch_embed.proj.weight'], state['patch_embed.proj.bias']
    side = kernel.shape[-1]
    height, width = images.shape[2] // side, images.shape[3] // side
    out = images.new_empty(len(images), height, width, len(bias))
    for i in range(height):
        for j in range(width):
            patch = images[:, :, i * side : (i + 1) * side, j * side : (j + 1) * side]
            out[:, i, j] = patch.flatten(1) @ kernel.flatten(1).T + bias
    return out


def _mix(maps: list[torch.Tensor], weight: torch.Tensor, bias: torch.Tensor | None) -> list[torch.Tensor]:
    """Each head's map as a weighted sum of all heads' maps."""
    mixed = []
    for g in range(len(maps)):
        total = sum(weight[g, h] * maps[h] for h in range(len(maps)))
        mixed.append(total if bias is None else total + bias[g])
    return mixed


def _split(qkv: torch.Tensor, heads: int) -> list[list[torch.Tensor]]:
    """(N, 3C) -> q, k and v, each a list of (N, d) by head."""
    return [list(part.chunk(heads, dim=-1)) for part in qkv.chunk(3, dim=-1)]


# --- Mini-DeiT


def _bucket(offset: int) -> int:
    near = min(abs(offset), 4)
    return (0, 1, 2, 2, 3)[near] * (1 if offset > 0 else -1)


def _repeats(state: State, stem: str) -> int:
    return sum(key.startswith(stem) and key.endswith('.weight') for key in state)


def mini_deit(state: State, images: torch.Tensor, rpe_scaled_q: bool = True) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits (B, classes), and the tokens (B, N, C) after every logical layer."""
    x = _patches(state, images)
    grid = x.shape[1:3]
    cells = [(i, j) for i in range(grid[0]) for j in range(grid[1])]
    buckets = torch.tensor(
        [[(_bucket(i - k) + 3) * 7 + _bucket(j - m) + 3 for k, m in cells] for i, j in cells], dtype=torch.int64
    )
    x = x.flatten(1, 2) + state['pos_embed']
    layers, block = [], 0
    while f'blocks.{block}.block.attn.qkv.weight' in state:
        name = f'blocks.{block}.block'
        for r in range(_repeats(state, f'{name}.norm1.instances.')):
            y = _norm(state, f'{name}.norm1.instances.{r}', x, 1e-6)
            x = x + torch.stack([_deit_attention(state, f'{name}.attn', r, one, buckets, rpe_scaled_q) for one in y])
            x = x + _mlp(state, f'{name}.mlp', _norm(state, f'{name}.norm2.instances.{r}', x, 1e-6))
            layers.append(x)
        block += 1
    return _linear(state, 'head', _norm(state, 'norm', x, 1e-6).mean(1)), layers


def _deit_attention(
    state: State, name: str, r: int, x: torch.Tensor, buckets: torch.Tensor, rpe_scaled_q: bool
) -> torch.Tensor:
    mix_logits = state[f'{name}.conv_l.instances.{r}.weight'][:, :, 0, 0]
    mix_maps = state[f'{name}.conv_w.instances.{r}.weight'][:, :, 0, 0]
    table = state[f'{name}.rpe_k.instances.{r}.lookup_table_weight'][0]
    queries, keys, values = _split(_linear(state, f'{name}.qkv', x), len(mix_logits))
    logits = []
    for q, k in zip(queries, keys, strict=True):
        scaled = q / q.shape[-1] ** 0.5
        rows = []
        for i in range(len(q)):
            relative = (scaled if rpe_scaled_q else q)[i] @ table
            rows.append(scaled[i] @ k.T + torch.stack([relative[bucket] for bucket in buckets[i]]))
        logits.append(torch.stack(rows))
    maps = _mix([m.softmax(-1) for m in _mix(logits, mix_logits, None)], mix_maps, None)
    return _linear(state, f'{name}.proj', torch.cat([m @ v for m, v in zip(maps, values, strict=True)], dim=-1))


# --- Mini-Swin


def mini_swin(
    state: State,
    images: torch.Tensor,
    windows: list[tuple[int, int]],
    mask_unshifted: bool = True,
    replace_residual: bool = True,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits (B, classes), and the map (B, H, W, C) after every logical layer.

    Args:
        state: Official state dict; its masks and indices are not used.
        images: (B, c, H, W) of whole patches. Maps that are not whole windows are filled up with zeros after the norm,
            as in timm's Swin; the released code knows whole windows only.
        windows: (h, w) of every stage.
        mask_unshifted: Mask also in layers whose windows are not shifted, as released.
        replace_residual: The local norm replaces the residual stream, as released; else it is part of the branch.
    """
    x = _norm(state, 'patch_embed.norm', _patches(state, images), 1e-5)
    layers, stage = [], 0
    while f'layers.{stage}.blocks.0.attn.qkv.weight' in state:
        block, layer = 0, 0
        while f'layers.{stage}.blocks.{block}.attn.qkv.weight' in state:
            name = f'layers.{stage}.blocks.{block}'
            for r in range(_repeats(state, f'{name}.norm1_list.')):
                shifted = layer % 2 == 1
                x = _swin_layer(state, name, r, x, windows[stage], shifted, mask_unshifted, replace_residual)
                layers.append(x)
                layer += 1
            block += 1
        if f'layers.{stage}.downsample.reduction.weight' in state:
            x = _merge(state, f'layers.{stage}.downsample', x)
        stage += 1
    return _linear(state, 'head', _norm(state, 'norm', x, 1e-5).flatten(1, 2).mean(1)), layers


def _merge(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
    corners = [x[:, i::2, j::2] for i, j in ((0, 0), (1, 0), (0, 1), (1, 1))]
    return _linear(state, f'{name}.reduction', _norm(state, f'{name}.norm', torch.cat(corners, -1), 1e-5))


def _swin_layer(
    state: State,
    name: str,
    r: int,
    x: torch.Tensor,
    window: tuple[int, int],
    shifted: bool,
    mask_unshifted: bool,
    replace_residual: bool,
) -> torch.Tensor:
    size = (x.shape[1], x.shape[2])
    # Where one axis has a single window, neither axis is shifted or masked.
    single = any(w >= s for w, s in zip(window, size, strict=True))
    shift = (0, 0) if single else (window[0] // 2, window[1] // 2)
    start = shift if shifted else (0, 0)
    whole = [-(-s // w) * w for w, s in zip(window, size, strict=True)]
    y = _norm(state, f'{name}.norm1_list.{r}', x, 1e-5)
    branch = torch.empty_like(x)
    for top in range(0, whole[0], window[0]):
        for left in range(0, whole[1], window[1]):
            here = [(top + i, left + j) for i in range(window[0]) for j in range(window[1])]
            # Where a cell of this window lies in the map; None for filling.
            cells = [
                ((i + start[0]) % size[0], (j + start[1]) % size[1]) if i < size[0] and j < size[1] else None
                for i, j in here
            ]
            regions = [(i >= whole[0] - shift[0], j >= whole[1] - shift[1]) for i, j in here]
            if not (shifted or mask_unshifted):
                regions = [(False, False)] * len(here)
            for b in range(len(x)):
                tokens = torch.stack([torch.zeros_like(y[b, 0, 0]) if cell is None else y[b][cell] for cell in cells])
                out = _swin_attention(state, name, r, tokens, window, regions)
                for cell, token in zip(cells, out, strict=True):
                    if cell is not None:
                        branch[b][cell] = token
    x = x + branch
    normed = _norm(state, f'{name}.local_norm_list.{r}', x, 1e-5)
    x = (normed if replace_residual else x) + _depthwise(state, f'{name}.local_conv_list.{r}', normed)
    return x + _mlp(state, f'{name}.mlp', _norm(state, f'{name}.norm2_list.{r}', x, 1e-5))


def _swin_attention(
    state: State,
    name: str,
    r: int,
    x: torch.Tensor,
    window: tuple[int, int],
    regions: list[tuple[bool, bool]],
) -> torch.Tensor:
    table = state[f'{name}.attn.relative_position_bias_table']
    heads, (h, w) = table.shape[1], window
    cells = [(i, j) for i in range(h) for j in range(w)]
    rows = torch.tensor([[(i - k + h - 1) * (2 * w - 1) + (j - m + w - 1) for k, m in cells] for i, j in cells])
    apart = torch.tensor([[one != other for other in regions] for one in regions])
    queries, keys, values = _split(_linear(state, f'{name}.attn.qkv', x), heads)
    logits = [
        (q / q.shape[-1] ** 0.5) @ k.T + table[rows, g]
        for g, (q, k) in enumerate(zip(queries, keys, strict=True))
    ]  # fmt: skip
    mixed = _mix(logits, state[f'{name}.proj_l.{r}.weight'], state[f'{name}.proj_l.{r}.bias'])
    maps = [(m - 100.0 * apart).softmax(-1) for m in mixed]
    maps = _mix(maps, state[f'{name}.proj_w.{r}.weight'], state[f'{name}.proj_w.{r}.bias'])
    return _linear(state, f'{name}.attn.proj', torch.cat([m @ v for m, v in zip(maps, values, strict=True)], dim=-1))


def _depthwise(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    """The convolution as a sum of shifted maps: one for each cell of the kernel."""
    kernel, (height, width) = state[f'{name}.weight'], x.shape[1:3]
    side = kernel.shape[-1]
    padded = F.pad(x, (0, 0, side // 2, side // 2, side // 2, side // 2))
    out = state[f'{name}.bias'].expand_as(x)
    for i in range(side):
        for j in range(side):
            out = out + padded[:, i : i + height, j : j + width] * kernel[:, 0, i, j]
    return out
