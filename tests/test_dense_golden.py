"""Dense-prediction forms: the numbers of the released code, and of the same computation written out."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dense_reference import released_dense
from golden_case import SINGLE, assert_close
from golden_rule import fill_by_rule, golden, manifest

from tinyvit_zoo.dense import (
    TinyMimTrunk,
    VitDetTrunk,
    load_dense,
    mae_lite_vitdet_tiny,
    official_state_dict,
    tinymim_base_seg,
    tinymim_star_tiny_seg,
)

CASES = {
    'tinymim_base_seg224': (tinymim_base_seg, 224, (224, 224)),
    'tinymim_base_seg512': (tinymim_base_seg, 512, (512, 512)),
    'tinymimstar_tiny_seg224': (tinymim_star_tiny_seg, 224, (224, 224)),
    'tinymimstar_tiny_seg512': (tinymim_star_tiny_seg, 512, (512, 512)),
    'maelite_vitdet_tiny_224': (mae_lite_vitdet_tiny, 224, (224, 224)),
    'maelite_vitdet_tiny_640': (mae_lite_vitdet_tiny, 640, (640, 640)),
    'maelite_vitdet_tiny_640_rect': (mae_lite_vitdet_tiny, 640, (512, 640)),
}


def case(name: str):
    return pytest.param(name, marks=() if '224' in name and 'base' not in name else pytest.mark.slow)


@pytest.mark.parametrize('name', [case(name) for name in CASES])
def test_released_weights_give_the_released_maps(name):
    make, img_size, (height, width) = CASES[name]
    model = make(img_size).eval()
    load_dense(model, released_dense(name.removesuffix('_rect')))
    model.double()
    expected = golden(name)
    outputs = 'p{}' if 'vitdet' in name else 'out{}'
    first = 2 if 'vitdet' in name else 0
    batch = len(expected[outputs.format(first)])
    images = np.random.RandomState(0).standard_normal((batch, 3, height, width)).astype(np.float32)

    with torch.no_grad():
        images = torch.from_numpy(images).double()
        levels = model(images)
        last = model.net(images) if 'last_feat' in expected else None
    assert len(levels) == (5 if 'vitdet' in name else 4)
    for i, level in enumerate(levels):
        output = outputs.format(i + first)
        assert tuple(level.shape) == tuple(expected[f'{output}_shape'])
        chans, rows, cols = expected[f'{output}_stride']
        sample = expected[output]
        n, c, h, w = sample.shape
        assert_close(level[:n, ::chans, ::rows, ::cols][:, :c, :h, :w], sample, SINGLE)
        assert_close(level.mean(), expected[f'{output}_meanstd'][0], SINGLE)
    if last is not None:
        assert_close(last[:, ::8, ::4, ::4], expected['last_feat'], 2 * SINGLE)  # these reach 30


@pytest.mark.parametrize('name', ['tinymim_base_seg224', 'tinymimstar_tiny_seg224', 'maelite_vitdet_tiny_224'])
def test_weights_go_back_to_the_released_names(name):
    """Every entry of the manifest is loaded and written again with the same shape, type and value."""
    make, img_size, _ = CASES[name]
    model, released = make(img_size), released_dense(name)
    load_dense(model, released)
    back = official_state_dict(model)
    assert {k: (tuple(v.shape), v.dtype) for k, v in back.items()} == manifest(name)
    for key, value in released.items():
        torch.testing.assert_close(back[key], value, rtol=0, atol=0)


# The same networks written out: loops over heads, gathers by index, a softmax. Weights under the trunks' own names.


def linear(x, w, name):
    return x @ w[f'{name}.weight'].T + w[f'{name}.bias']


def layer_norm(x, w, name):
    mean = x.mean(-1, keepdim=True)
    var = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (var + 1e-6).sqrt() * w[f'{name}.weight'] + w[f'{name}.bias']


def mlp(x, w, name):
    return linear(F.gelu(linear(x, w, f'{name}.fc1')), w, f'{name}.fc2')


def patches(images, w, size=16):
    B, _, H, W = images.shape
    cut = images.unfold(2, size, size).unfold(3, size, size).permute(0, 2, 3, 1, 4, 5).flatten(3)
    kernel = w['patch_embed.proj.weight'].flatten(1)
    return (cut @ kernel.T + w['patch_embed.proj.bias']).view(B, (H // size) * (W // size), -1)


def attention(x, w, name, heads, bias_of):
    """`bias_of(head, q)` gives the (N, N) numbers added to the scaled logits of a head, q unscaled."""
    B, _, C = x.shape
    d = C // heads
    qkv = linear(x, w, f'{name}.qkv')
    out = torch.empty_like(x)
    for b in range(B):
        for head in range(heads):
            q, k, v = (qkv[b, :, part * C + head * d : part * C + (head + 1) * d] for part in range(3))
            logits = q @ k.T / math.sqrt(d) + bias_of(head, q)
            out[b, :, head * d : (head + 1) * d] = logits.softmax(-1) @ v
    return linear(out, w, f'{name}.proj')


@pytest.mark.parametrize('distilled', [False, True])
def test_tinymim_trunk_is_a_plain_vit_with_tables(distilled):
    h, w_, P, heads = 3, 5, 1 + distilled, 2
    trunk = fill_by_rule(TinyMimTrunk((48, 80), embed_dim=16, depth=3, num_heads=heads, distilled=distilled).double())
    w = trunk.state_dict()
    images = torch.randn(2, 3, 48, 80, dtype=torch.float64)

    def row_of(i, j, T):
        """Row of the table for query token i and key token j; the class token's rows come before the other's."""
        if i < P or j < P:
            token = 0 if 0 in (i, j) else 1
            kind = 3 if i == token and j == token else (1 if i == token else 2)
            return T - 3 * (token + 1) + kind - 1
        (r1, c1), (r2, c2) = divmod(i - P, w_), divmod(j - P, w_)
        return (r1 - r2 + h - 1) * (2 * w_ - 1) + c1 - c2 + w_ - 1

    N = P + h * w_
    tokens = [w['cls_token'], w['dist_token']] if distilled else [w['cls_token']]
    x = torch.cat([t.expand(2, -1, -1) for t in tokens] + [patches(images, w)], 1) + w['pos_embed']
    expected = []
    for i in range(3):
        block = f'blocks.{i}'
        table = w[f'{block}.attn.relative_position_bias_table']
        index = torch.tensor([[row_of(a, b, len(table)) for b in range(N)] for a in range(N)])
        attended = attention(
            layer_norm(x, w, f'{block}.norm1'), w, f'{block}.attn', heads, lambda k, q, t=table, i=index: t[i, k]
        )
        x = x + w[f'{block}.gamma_1'] * attended
        x = x + w[f'{block}.gamma_2'] * mlp(layer_norm(x, w, f'{block}.norm2'), w, f'{block}.mlp')
        expected.append(x[:, P:].transpose(1, 2).view(2, 16, h, w_))
    last, maps = trunk.forward_intermediates(images)
    torch.testing.assert_close(maps, expected)
    torch.testing.assert_close(last, x)


def offsets_by_hand(table, size):
    """Embedding of offset a - b of every pair of cells, the table resized linearly if its length differs."""
    length = 2 * size - 1
    if len(table) != length:
        places = ((np.arange(length) + 0.5) * len(table) / length - 0.5).clip(0, len(table) - 1)
        low = np.floor(places).astype(int)
        high = np.minimum(low + 1, len(table) - 1)
        part = torch.from_numpy(places - low)[:, None]
        table = table[low] * (1 - part) + table[high] * part
    return torch.stack([torch.stack([table[a - b + size - 1] for b in range(size)]) for a in range(size)])


@pytest.mark.parametrize('size', [(4, 4), (3, 5), (7, 2)])
def test_vitdet_trunk_is_a_plain_vit_with_windows_and_offsets(size):
    """Also where windows need padding, the global offsets resizing, and the positions too."""
    heads, window, (h, w_) = 2, 3, size
    trunk = fill_by_rule(
        VitDetTrunk(
            64, embed_dim=16, depth=3, num_heads=heads, window_size=window, global_blocks=(1,), pretrain_img_size=48
        ).double()
    )
    w = trunk.state_dict()
    images = torch.randn(2, 3, 16 * h, 16 * w_, dtype=torch.float64)
    position = w['pos_embed'][:, 1:].transpose(1, 2).view(1, 16, 3, 3)
    position = F.interpolate(position, size, mode='bicubic', align_corners=False).flatten(2).transpose(1, 2)
    x = patches(images, w) + position

    def attend(y, name, rows, cols):
        by_row, by_col = (offsets_by_hand(w[f'{name}.rel_pos_{a}'], n) for a, n in (('h', rows), ('w', cols)))
        cells = [divmod(n, cols) for n in range(rows * cols)]

        def bias(_, q):
            r = torch.stack(
                [torch.stack([by_row[r1, r2] + by_col[c1, c2] for r2, c2 in cells]) for r1, c1 in cells]
            )  # N, N, d
            return torch.einsum('nd,nmd->nm', q, r)

        return attention(y.reshape(len(y), rows * cols, 16), w, name, heads, bias).view(len(y), rows, cols, 16)

    for i in range(3):
        block = f'blocks.{i}'
        y = layer_norm(x, w, f'{block}.norm1').view(2, h, w_, 16)
        if i == 1:
            y = attend(y, f'{block}.attn', h, w_)
        else:
            padded = F.pad(y, (0, 0, 0, -w_ % window, 0, -h % window))
            for top in range(0, h, window):
                for left in range(0, w_, window):
                    place = (slice(None), slice(top, top + window), slice(left, left + window))
                    padded[place] = attend(padded[place], f'{block}.attn', window, window)
            y = padded[:, :h, :w_]
        x = x + y.reshape(2, h * w_, 16)
        x = x + mlp(layer_norm(x, w, f'{block}.norm2'), w, f'{block}.mlp')
    torch.testing.assert_close(trunk(images), x.transpose(1, 2).view(2, 16, h, w_))
