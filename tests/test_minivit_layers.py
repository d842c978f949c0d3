"""Layers of Mini-DeiT and Mini-Swin: head mixing, signed bias tables, shifted windows, sub-batches."""

import pytest
import timm
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from tinyvit_zoo.layers import (
    HeadMix,
    PerRepeat,
    expand_signed_bias,
    in_sub_batches,
    known_class,
    per_stage_windows,
    shifted_window_mask,
    signed_offset,
    signed_offset_index,
)
from tinyvit_zoo.layers.inference import SUB_BATCH_TOKENS


@pytest.mark.parametrize('bias', [False, True])
def test_head_mixing_is_a_linear_layer_over_the_heads(bias):
    mix = HeadMix(3, bias=bias, dtype=torch.float64)
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    if bias:
        nn.init.normal_(mix.bias)
    expected = nn.functional.linear(x.permute(0, 2, 3, 1), mix.weight, mix.bias).permute(0, 3, 1, 2)
    torch.testing.assert_close(mix(x), expected)


@pytest.mark.parametrize('bias', [False, True])
def test_head_mixing_can_be_initialized_as_the_identity(bias):
    mix = HeadMix(4, bias=bias)
    mix.init_identity()
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(mix(x), x, rtol=0, atol=0)


def test_each_repeat_calls_its_own_module_and_no_other():
    parts = PerRepeat([nn.Linear(4, 4) for _ in range(3)])
    x = torch.randn(2, 4)
    for repeat in range(3):
        torch.testing.assert_close(parts(x, repeat), parts[repeat](x), rtol=0, atol=0)
    with pytest.raises(IndexError, match='no such repeat'):
        parts(x, 3)


@pytest.mark.parametrize('window', [(1, 1), (3, 4), (5, 2), (7, 7)])
def test_signed_biases_are_those_of_the_index(window):
    h, w = window
    table = torch.randn((2 * h - 1) * (2 * w - 1), 3)
    expected = torch.empty(3, h * w, h * w)
    for i in range(h * w):
        for j in range(h * w):
            row = (i // w - j // w + h - 1) * (2 * w - 1) + i % w - j % w + w - 1
            assert signed_offset_index(window)[i, j] == row
            expected[:, i, j] = table[row]
    actual = expand_signed_bias(table, signed_offset(h), signed_offset(w))
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ('size', 'window', 'shift'), [((14, 21), (7, 7), (3, 3)), ((14, 7), (7, 7), (3, 0)), ((10, 9), (4, 6), (2, 3))]
)
def test_shifted_windows_separate_cells_that_the_shift_joined(size, window, shift):
    """Label every cell of the padded map before the shift with the side of the seam it is on; roll; compare pairs."""
    padded = [-(-n // w) * w for n, w in zip(size, window, strict=True)]
    labels = torch.zeros(padded)
    labels[: shift[0]] += 1
    labels[:, : shift[1]] += 2
    labels = labels.roll((-shift[0], -shift[1]), (0, 1))
    mask = shifted_window_mask(size, window, shift)
    windows = padded[1] // window[1]
    for index in range(len(mask)):
        top, left = index // windows * window[0], index % windows * window[1]
        cells = labels[top : top + window[0], left : left + window[1]].flatten()
        expected = torch.where(cells[:, None] == cells[None, :], 0.0, -100.0)
        torch.testing.assert_close(mask[index], expected, rtol=0, atol=0)


def test_a_stage_without_windows_may_be_left_out_only_where_there_is_one():
    assert per_stage_windows((7, 14, 7)) == ((7, 7), (7, 7), (14, 14), (7, 7))
    with pytest.raises(ValueError, match='4 entries'):
        per_stage_windows((7, 14, 7), conv_stage=False)


@known_class
class _Rows(nn.Module):
    """Counts the images of each call of its inner layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.seen: list[int] = []

    def run(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(x))
        return self.layer(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.clear()
        return in_sub_batches(self, self.run, x)


def test_plain_inference_treats_a_few_images_at_a_time():
    model, x = _Rows().eval(), torch.randn(5, SUB_BATCH_TOKENS // 2, 8)
    whole = model(x)
    assert model.seen == [5]
    with torch.no_grad():
        torch.testing.assert_close(model(x), whole)
        assert model.seen == [2, 2, 1]
        model(x[:, : SUB_BATCH_TOKENS // 8])
        assert model.seen == [5]
        model(torch.randn(3, 2 * SUB_BATCH_TOKENS, 8))
        assert model.seen == [1, 1, 1]
        model(x[:0])
        assert model.seen == [0]


@pytest.mark.parametrize('where', ['inside', 'everywhere'])
def test_a_hook_sees_the_whole_batch(where):
    model, x, heard = _Rows().eval(), torch.randn(5, SUB_BATCH_TOKENS, 8), []

    def listen(module: nn.Module, args: tuple, out: torch.Tensor) -> None:
        heard.append(len(out))

    if where == 'inside':
        handle = model.layer.register_forward_hook(listen)
    else:
        handle = nn.modules.module.register_module_forward_hook(listen)
    with torch.no_grad():
        model(x)
        assert set(heard) == {5}
        handle.remove()
        model(x)
        assert model.seen == [1] * 5


def test_a_hook_on_the_layer_itself_hears_the_whole_batch_and_costs_no_parts():
    model, x, heard = _Rows().eval(), torch.randn(5, SUB_BATCH_TOKENS, 8), []
    model.register_forward_hook(lambda module, args, out: heard.append((len(args[0]), len(out))))
    with torch.no_grad():
        model(x)
    assert heard == [(5, 5)]
    assert model.seen == [1] * 5


@pytest.mark.parametrize('name', ['mini_deit_tiny_patch16_224', 'mini_swin_tiny_patch4_window7_224'])
def test_the_mini_models_split_their_batch_and_give_the_same(name):
    model = (
        timm.create_model(name, depths=(2, 2, 2, 2), repeats=2) if 'swin' in name else timm.create_model(name, depth=2)
    )
    model, x = model.eval().double(), torch.randn(5, 3, 224, 224, dtype=torch.float64)

    def attentions() -> tuple[torch.Tensor, int]:
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            y = model(x)
        return y.detach(), sum(event.count for event in profiler.key_averages() if event.key == 'aten::softmax')

    whole, calls = attentions()
    with torch.no_grad():
        parts, more = attentions()
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)
    assert calls == (8 if 'swin' in name else 2)  # one a layer
    assert more > calls


def test_repeats_must_divide_the_depth():
    with pytest.raises(ValueError, match='divide the depth 12, got 5'):
        timm.create_model('mini_deit_tiny_patch16_224', repeats=5)
    with pytest.raises(ValueError, match='divide the depths'):
        timm.create_model('mini_swin_tiny_patch4_window7_224', repeats=(2, 2, 4, 2))
