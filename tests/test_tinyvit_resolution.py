"""Windows of TinyViT: from a size, given explicitly, in files; and any H, W >= 32. More in `test_resolution.py`."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import ARCHITECTURES, SMALL, assert_same, load
from golden_rule import official_state_dict
from timm.models._hub import save_for_hf

from tinyvit_zoo.checkpoints import CheckpointError, source_windows
from tinyvit_zoo.layers import per_stage_windows, resize_grid, scaled_windows, stage_grids

WINDOWS = {
    # image: windows of stages 1, 2 and 3
    224: ((7, 7), (14, 14), (7, 7)),
    384: ((12, 12), (24, 24), (12, 12)),
    512: ((16, 16), (32, 32), (16, 16)),
    1024: ((32, 32), (64, 64), (32, 32)),
    200: ((7, 7), (13, 13), (7, 7)),
    96: ((3, 3), (6, 6), (3, 3)),
    33: ((2, 2), (3, 3), (2, 2)),
    32: ((1, 1), (2, 2), (1, 1)),
    (256, 320): ((8, 10), (16, 20), (8, 10)),
    (320, 256): ((10, 8), (20, 16), (10, 8)),
    (192, 320): ((6, 10), (12, 20), (6, 10)),
    (112, 448): ((4, 14), (7, 28), (4, 14)),
    (448, 112): ((14, 4), (28, 7), (14, 4)),
    (128, 288): ((4, 9), (8, 18), (4, 9)),
}


def windows_in_use(model: torch.nn.Module) -> tuple[tuple[int, int], ...]:
    """Windows that the attention layers really have, which their tables and indices must agree with."""
    windows = []
    for stage in list(model.stages)[1:]:
        sizes = {block.attn.window_size for block in stage.blocks}
        assert len(sizes) == 1
        for block in stage.blocks:
            (h, w), attn = block.attn.window_size, block.attn
            assert attn.attention_biases.shape == (attn.num_heads, h * w)
            assert (attn.row_offsets.shape, attn.col_offsets.shape) == ((h, h), (w, w))
        windows += sizes
    return tuple(windows)


def tables(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v for k, v in model.state_dict().items() if k.endswith('attention_biases')}


# --- windows from a size


@pytest.mark.parametrize('img_size', WINDOWS, ids=str)
def test_windows_keep_their_number_per_side(img_size, small):
    assert windows_in_use(small(img_size=img_size)) == WINDOWS[img_size]
    resized = small()
    resized.set_input_size(img_size)
    assert windows_in_use(resized) == WINDOWS[img_size]


@pytest.mark.parametrize('name', [name for name in ARCHITECTURES if name.startswith('tinyvit')])
def test_an_architecture_has_the_windows_of_its_own_size(name):
    model = timm.create_model(name, device='meta')
    size = int(name.rsplit('_', 1)[1])
    assert model.img_size == (size, size)
    assert windows_in_use(model) == WINDOWS[size]


@pytest.mark.parametrize(
    ('img_size', 'grids'),
    [
        ((224, 224), ((56, 56), (28, 28), (14, 14), (7, 7))),
        ((200, 32), ((50, 8), (25, 4), (13, 2), (7, 1))),
        ((33, 65), ((9, 17), (5, 9), (3, 5), (2, 3))),
    ],
)
def test_stage_grids_are_the_real_map_sizes(img_size, grids, small):
    assert stage_grids(img_size) == grids
    _, stages = small().forward_intermediates(torch.zeros(1, 3, *img_size))
    assert tuple(tuple(s.shape[-2:]) for s in stages) == grids


def test_windows_round_up():
    assert scaled_windows([(50, 50), (25, 25), (13, 13), (7, 7)], (8, 4, 1, 1)) == ((7, 7), (7, 7), (13, 13), (7, 7))


@pytest.mark.parametrize('img_size', [31, (224, 31), (31, 224), 0, -224, (224, 224, 3), (224,)], ids=str)
def test_a_size_that_cannot_work_is_refused(img_size, small):
    with pytest.raises(ValueError, match='img_size must be'):
        small(img_size=img_size)
    model = small()
    with pytest.raises(ValueError, match='img_size must be'):
        model.set_input_size(img_size)
    assert model.img_size == (224, 224)


# --- windows given explicitly


@pytest.mark.parametrize(
    ('spec', 'windows'),
    [
        (8, ((8, 8), (8, 8), (8, 8))),
        ((8, 10), ((8, 10), (8, 10), (8, 10))),
        ((7, 14, 7), ((7, 7), (14, 14), (7, 7))),
        ((7, 6, 14, 5), ((6, 6), (14, 14), (5, 5))),
        ([7, 6, 14, 5], ((6, 6), (14, 14), (5, 5))),
        (((4, 14), (7, 28), (4, 14)), ((4, 14), (7, 28), (4, 14))),
        ((8, (4, 14), 9, [4, 14]), ((4, 14), (9, 9), (4, 14))),
    ],
    ids=str,
)
def test_windows_can_be_given_in_every_form(spec, windows, small):
    assert per_stage_windows(spec)[1:] == windows
    assert windows_in_use(small(window_sizes=spec)) == windows
    for alias in ('window_sizes', 'window_size'):
        model = small()
        model.set_input_size(**{alias: spec})
        assert windows_in_use(model) == windows
        assert model(torch.zeros(1, 3, 64, 96)).isfinite().all()


@pytest.mark.parametrize(
    'spec', [0, -7, 7.5, (7, 14, 7, 7, 7), (7,), (7, 0, 7), ((7, 7, 7), 7, 7), (7, 7.0, 7), (7, 'x', 7), ()], ids=str
)
def test_windows_that_cannot_work_are_refused_and_change_nothing(spec, small):
    with pytest.raises(ValueError, match='window'):
        small(window_sizes=spec)
    model = small()
    before, arguments, cfg = copy.deepcopy(model.state_dict()), dict(model._model_args), dict(model.pretrained_cfg)
    with pytest.raises(ValueError, match='window'):
        model.set_input_size(384, window_sizes=spec)
    assert_same(model.state_dict(), before)
    assert windows_in_use(model) == WINDOWS[224]
    assert (model.img_size, model._model_args, model.pretrained_cfg) == ((224, 224), arguments, cfg)


def test_two_names_for_the_windows_at_once_are_refused(small):
    model = small()
    with pytest.raises(ValueError, match='pass one of them'):
        model.set_input_size(window_sizes=7, window_size=7)
    assert windows_in_use(model) == WINDOWS[224]


def test_a_new_size_without_windows_returns_to_the_rule(small):
    model = small(window_sizes=5)
    model.set_input_size(384)
    assert windows_in_use(model) == WINDOWS[384]


# --- resizing of tables


@pytest.mark.parametrize('mode', ['bicubic', 'bilinear'])
@pytest.mark.parametrize('size', [384, 96, (112, 448)], ids=str)
def test_tables_are_interpolated_on_their_grid(mode, size, small, tmp_path):
    source = small()
    torch.save(source.state_dict(), tmp_path / 'at_224.pth')
    loaded = load('tinyvit_5m_224', tmp_path / 'at_224.pth', img_size=size, bias_interpolation=mode, **SMALL)
    resized = small(bias_interpolation=mode)
    resized.set_input_size(size)
    assert tables(source)
    for key, table in tables(source).items():
        stage = int(key.split('.')[1])
        old, new = WINDOWS[224][stage - 1], WINDOWS[size][stage - 1]
        expected = F.interpolate(table.view(1, -1, *old), size=new, mode=mode, align_corners=False).flatten(2)[0]
        torch.testing.assert_close(tables(resized)[key], expected, rtol=0, atol=0)
        torch.testing.assert_close(tables(loaded)[key], expected, rtol=0, atol=0)


def test_another_interpolation_is_refused(small):
    with pytest.raises(ValueError, match='bilinear'):
        small(bias_interpolation='nearest')


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_tables_are_interpolated_in_single(dtype):
    grid = torch.randn(3, 7, 7).to(dtype)
    expected = F.interpolate(grid[None].float(), size=(12, 10), mode='bicubic', align_corners=False)[0].to(dtype)
    torch.testing.assert_close(resize_grid(grid, (12, 10)), expected, rtol=0, atol=0)
    assert resize_grid(grid, (7, 7)) is grid


# --- the grid of a table of L entries


def test_an_official_384_file_loads_into_every_architecture_of_its_size(official_file):
    """The size of a square table follows from its length, whatever the name."""
    state_dict = official_state_dict('tiny_vit_21m_384')
    model = load('tinyvit_21m_224', official_file('tiny_vit_21m_384'), img_size=384)
    assert tables(model)
    for key, table in tables(model).items():
        torch.testing.assert_close(table, state_dict[key.replace('stages', 'layers')], rtol=0, atol=0)


def test_tables_of_an_unknown_shape_are_refused(small, tmp_path):
    torch.save(small(img_size=(112, 448)).state_dict(), tmp_path / 'saved.pth')
    with pytest.raises(CheckpointError, match=r'wrong shape: stages\.1\..*\(1, 56\), not \(1, 49\)'):
        load('tinyvit_5m_224', tmp_path / 'saved.pth', **SMALL)


@pytest.mark.parametrize(
    ('lengths', 'candidates', 'windows'),
    [
        ({1: 49, 2: 196}, [], {1: (7, 7), 2: (14, 14)}),
        ({1: 56, 2: 196}, [((8, 8), (4, 14), (7, 28))], {1: (4, 14), 2: (7, 28)}),
        # The first candidate that fits all stages; never a mixture.
        ({1: 36, 2: 144}, [((8, 8), (4, 9), (9, 9)), ((8, 8), (9, 4), (18, 8))], {1: (9, 4), 2: (18, 8)}),
        ({1: 56, 2: 196}, [], {2: (14, 14)}),
        ({4: 49}, [((8, 8), (7, 7), (14, 14), (7, 7))], {4: (7, 7)}),
        ({}, [((8, 8), (7, 7))], {}),
    ],
)
def test_source_windows(lengths, candidates, windows):
    assert source_windows(lengths, candidates) == windows


# --- forward at any size


@pytest.mark.parametrize('size', [(32, 32), (33, 47), (64, 200), (201, 199), (224, 224), (225, 223), (97, 32)], ids=str)
def test_forward_takes_any_size_from_32(size, small):
    model = small()
    final, stages = model.forward_intermediates(torch.randn(2, 3, *size))
    assert tuple(final.shape) == (2, 64, *stage_grids(size)[-1])
    assert [tuple(s.shape[-2:]) for s in stages] == list(stage_grids(size))
    assert model(torch.randn(2, 3, *size)).isfinite().all()


@torch.no_grad()
def test_a_window_larger_than_the_map_is_padding_as_released(small):
    """The 224 windows on a smaller map: padded cells take part as keys and values (no mask)."""
    model, x = small(), torch.randn(1, 3, 128, 160)
    block = model.stages[2].blocks[0]
    features = torch.randn(1, 8, 10, 32)
    padded = F.pad(features, (0, 0, 0, 4, 0, 6))
    expected = block.attn(padded.reshape(1, 196, 32)).view(1, 14, 14, 32)[:, :8, :10]
    torch.testing.assert_close(block._window_attention(features), expected)
    assert model(x).isfinite().all()


# --- timm and the Hub follow the size


@pytest.mark.parametrize('safe', [True, False])
@pytest.mark.parametrize(
    'resize', [dict(img_size=96), dict(img_size=(256, 320)), dict(img_size=96, window_sizes=(4, 5, 6))], ids=str
)
@torch.no_grad()
def test_a_resized_model_survives_a_hub_folder(resize, safe, small, tmp_path):
    model = small(in_chans=4, drop_path_rate=0.1)
    model.set_input_size(**resize)
    save_for_hf(model, tmp_path, safe_serialization=safe)
    again = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    assert windows_in_use(again) == windows_in_use(model)
    assert again.img_size == model.img_size
    assert again.num_classes == 11
    assert_same(again.state_dict(), model.state_dict())
    x = torch.randn(1, 4, *model.img_size)
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


def test_bias_interpolation_survives_a_hub_folder(small, tmp_path):
    save_for_hf(small(bias_interpolation='bilinear'), tmp_path, safe_serialization=True)
    assert timm.create_model(f'local-dir:{tmp_path}', pretrained=True).bias_interpolation == 'bilinear'


def test_a_pruned_model_can_be_resized(small):
    model = small()
    model.prune_intermediate_layers([2])
    model.set_input_size(96)
    assert windows_in_use(model) == WINDOWS[96][:2]
    assert model.forward_features(torch.randn(1, 3, 96, 96)).shape == (1, 32, 6, 6)


def test_an_official_file_is_square_even_where_the_model_has_as_many_cells(official_file):
    """9 x 16 cells are as many as 12 x 12: the released 384 tables must be resized, not read unchanged."""
    kwargs = dict(pretrained=True, pretrained_cfg_overlay=dict(file=official_file('tiny_vit_21m_384')))
    square = timm.create_model('tinyvit_21m_384', **kwargs)
    wide = timm.create_model('tinyvit_21m_224', img_size=(288, 512), **kwargs)
    square.set_input_size((288, 512))
    assert tables(square)
    assert_same(tables(wide), tables(square))
