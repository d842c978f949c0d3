"""BEiT tables: the row that every pair of tokens reads, and resizing to another grid."""

import numpy as np
import pytest
import torch
from golden_rule import golden
from scipy.interpolate import RectBivariateSpline
from timm.layers import resize_rel_pos_bias_table

from tinyvit_zoo.layers.beit_table import beit_offset_index, beit_table_rows, expand_beit_bias, resize_beit_table


@pytest.mark.parametrize(
    ('name', 'prefix_tokens'),
    [('maelite_relpos_index14', 1), ('tinymim_base_relpos_index14', 1), ('tinymimstar_tiny_relpos_index14', 2)],
)
def test_the_index_is_the_released_one(name, prefix_tokens):
    index = beit_offset_index((14, 14), prefix_tokens)
    assert index.dtype == torch.int64
    np.testing.assert_array_equal(index.numpy(), golden(name)['index'])


@pytest.mark.parametrize('prefix_tokens', [1, 2])
@pytest.mark.parametrize('grid', [(3, 5), (5, 2), (1, 4), (1, 1)])
def test_expanding_reads_the_rows_that_the_index_names(grid, prefix_tokens):
    table = torch.randn(beit_table_rows(grid, prefix_tokens), 3, dtype=torch.float64, requires_grad=True)
    expected = table[beit_offset_index(grid, prefix_tokens)].permute(2, 0, 1)
    actual = expand_beit_bias(table, grid, prefix_tokens)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    weight = torch.randn_like(expected)
    gradient, expected_gradient = (torch.autograd.grad((b * weight).sum(), table)[0] for b in (actual, expected))
    torch.testing.assert_close(gradient, expected_gradient)


def released_places(old: int, new: int) -> np.ndarray:
    """Positions of the old offsets of an axis, written out as a sum per offset."""
    left, right = 1.01, 1.5
    while right - left > 1e-6:
        q = (left + right) / 2
        if sum(q**i for i in range(old // 2)) > new // 2:
            right = q
        else:
            left = q
    outward = [sum(q**i for i in range(k)) for k in range(1, old // 2 + 1)]
    return np.array([-place for place in reversed(outward)] + [0.0] + outward)


@pytest.mark.parametrize('prefix_tokens', [1, 2])
@pytest.mark.parametrize(
    ('old', 'new'),
    [
        ((14, 14), (32, 32)),  # segmentation
        ((14, 14), (10, 10)),  # smaller: the outer offsets are dropped
        ((3, 14), (5, 7)),  # larger one way, smaller the other
        ((2, 2), (5, 5)),  # three offsets per axis: parabolas
        ((3, 3), (60, 60)),  # the positions end before the offsets do: clamped
    ],
)
def test_resizing_is_the_spline_of_fitpack_through_geometric_positions(old, new, prefix_tokens):
    table = torch.randn(beit_table_rows(old, prefix_tokens), 2, dtype=torch.float64)
    resized = resize_beit_table(table, old, new, prefix_tokens)
    assert resized.shape == (beit_table_rows(new, prefix_tokens), 2)

    extra = 3 * prefix_tokens
    y, x = (released_places(2 * a - 1, 2 * b - 1) for a, b in zip(old, new, strict=True))
    at_y, at_x = (np.arange(1 - size, size, dtype=float) for size in new)
    for head in range(2):
        values = table[:-extra, head].view(len(y), len(x)).numpy()
        spline = RectBivariateSpline(y, x, values, kx=min(3, len(y) - 1), ky=min(3, len(x) - 1), s=0)
        actual = resized[:-extra, head].view(len(at_y), len(at_x))
        np.testing.assert_allclose(actual, spline(at_y, at_x), rtol=0, atol=1e-12)
    torch.testing.assert_close(resized[-extra:], table[-extra:], rtol=0, atol=0)


@pytest.mark.filterwarnings('ignore:torch.searchsorted', 'ignore:Using a non-tuple sequence')
def test_timm_puts_the_old_offsets_at_the_same_positions():
    """It interpolates linearly between them, which is the same for a table that is linear in the position."""
    y, x = released_places(27, 63), released_places(27, 39)
    table = torch.from_numpy(np.add.outer(y, 100 * x)).reshape(-1, 1)
    table = torch.cat([table, torch.zeros(3, 1, dtype=table.dtype)])
    ours = resize_beit_table(table, (14, 14), (32, 20))
    timms = resize_rel_pos_bias_table(table, (32, 20), (63 * 39 + 3, 1))
    torch.testing.assert_close(ours, timms, rtol=0, atol=1e-3)  # timm computes in single precision
    torch.testing.assert_close(ours[:-3].view(63, 39)[31, 19], torch.zeros((), dtype=table.dtype))


def test_resizing_to_the_same_grid_returns_the_table_itself():
    table = torch.randn(beit_table_rows((3, 4)), 2)
    assert resize_beit_table(table, (3, 4), (3, 4)) is table


def test_an_axis_that_keeps_its_length_is_not_resampled():
    """A table that is constant over rows keeps its values when only the number of rows grows."""
    row = torch.randn(7, 2)
    table = torch.cat([row.repeat(5, 1), torch.randn(3, 2)])
    resized = resize_beit_table(table, (3, 4), (6, 4))
    torch.testing.assert_close(resized[:-3], row.repeat(11, 1))


def test_a_grid_of_one_patch_spreads_its_only_offset():
    table = torch.tensor([[4.0], [1.0], [2.0], [3.0]])
    resized = resize_beit_table(table, (1, 1), (2, 3))
    torch.testing.assert_close(resized[:-3], torch.full((15, 1), 4.0))


def test_half_precision_is_computed_in_double():
    table = torch.randn(beit_table_rows((4, 4)), 2).bfloat16()
    resized = resize_beit_table(table, (4, 4), (6, 6))
    assert resized.dtype == torch.bfloat16
    torch.testing.assert_close(resized, resize_beit_table(table.double(), (4, 4), (6, 6)).bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize(
    'action', [expand_beit_bias, lambda table, grid, prefix: resize_beit_table(table, grid, (4, 4), prefix)]
)
def test_a_table_of_another_grid_is_refused(action):
    with pytest.raises(ValueError, match=r'grid of 3x4 patches with 2 prefix tokens has the shape \(41, heads\)'):
        action(torch.randn(38, 2), (3, 4), 2)


def test_other_numbers_of_prefix_tokens_are_refused():
    with pytest.raises(ValueError, match='1 or 2 prefix tokens'):
        beit_offset_index((3, 3), 0)
