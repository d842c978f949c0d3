"""TinyViT as the image encoder of Segment Anything: the released outputs, other sizes, every file that starts one."""

import logging

import pytest
import torch
from conftest import assert_same, refused
from golden_case import EXACT, assert_close
from golden_rule import fill_by_rule, golden
from sam_reference import ENCODER, encode, mobile_sam, mobile_sam_encoder, sam_noise
from timm.models import reparameterize_model

from tinyvit_zoo.checkpoints import SAM_ENCODER_KEYS, WeightsNotFoundError
from tinyvit_zoo.common.errors import ModelError
from tinyvit_zoo.dense import SamImageEncoder, load_sam_encoder, sam_encoder
from tinyvit_zoo.layers import resize_grid

SINGLE = 3e-5


@pytest.fixture(scope='module')
def encoder() -> SamImageEncoder:
    """With the weights of the reference outputs, in double precision."""
    return sam_encoder(weights=mobile_sam_encoder(), dtype=torch.float64)


def check_map(y: torch.Tensor, expected: dict, name: str, rows: int, step: int) -> None:
    """A map against what the reference keeps of it: samples, statistics and two corners."""
    assert_close(y[:, ::rows, ::step, ::step], expected[f'{name}_sub'], EXACT)
    assert_close(y.mean((2, 3)), expected[f'{name}_mean'], EXACT)
    assert_close(y.std((2, 3), correction=0), expected[f'{name}_std'], EXACT)
    assert_close(y[:, :8, 0, :8], expected[f'{name}_first'], EXACT)
    assert_close(y[:, -8:, -1, -8:], expected[f'{name}_last'], EXACT)


# --- outputs


@pytest.mark.parametrize('size', [512, pytest.param(1024, marks=pytest.mark.slow)])
@torch.no_grad()
def test_squares_give_the_released_embeddings(size, encoder):
    expected, x, step = golden(f'mobile_sam_encoder_{size}'), sam_noise(1, 3, size, size), size // 256
    y = encoder(x)
    check_map(y, expected, 'noise', 8, step)
    assert_close(encoder.trunk.forward_features(x)[:, ::10, ::8, ::8], expected['noise_before_neck'], EXACT)
    assert_close(sam_encoder(weights=mobile_sam_encoder())(x.float())[:, ::8, ::step, ::step],
                 expected['noise_sub'], SINGLE)  # fmt: skip
    x[:, :, int(expected['padded_rows']) :] = 0
    check_map(encoder(x), expected, 'padded', 16, step)


@torch.no_grad()
def test_rectangles_and_batches_give_the_released_embeddings(encoder):
    expected = golden('mobile_sam_encoder_384x512')
    check_map(encoder(sam_noise(1, 3, 384, 512)), expected, 'noise', 8, 2)
    batch = encoder(sam_noise(2, 3, 512, 512))
    assert_close(batch[:, ::16, ::4, ::4], golden('mobile_sam_encoder_512')['batch2_sub'], EXACT)


@pytest.mark.parametrize(
    ('name', 'size'),
    [('tinyvit_5m_224', (101, 70)), ('tinyvit_11m_224', (32, 130)), ('tinyvit_21m_224', (33, 47))],
)
@torch.no_grad()
def test_every_architecture_at_odd_sizes_is_the_encoder_in_plain_steps(name, size):
    made = fill_by_rule(sam_encoder(name, dtype=torch.float64))
    official = SAM_ENCODER_KEYS.to_official(made.state_dict())
    x = sam_noise(2, 3, *size)
    expected = encode(official, x)
    assert expected.shape == (2, 256, -(-size[0] // 16), -(-size[1] // 16))
    torch.testing.assert_close(made(x), expected, rtol=0, atol=EXACT)
    torch.testing.assert_close(made.float()(x.float()).double(), expected, rtol=0, atol=SINGLE)


@torch.no_grad()
def test_windows_can_be_chosen():
    made = fill_by_rule(sam_encoder(window_sizes=(7, 5, 9, 3), dtype=torch.float64))
    x = sam_noise(1, 3, 64, 96)
    expected = encode(SAM_ENCODER_KEYS.to_official(made.state_dict()), x, (7, 5, 9, 3))
    torch.testing.assert_close(made(x), expected, rtol=0, atol=EXACT)


@torch.no_grad()
def test_the_deploy_form_is_the_same_function(encoder):
    x = sam_noise(2, 3, 96, 70)
    deployed = reparameterize_model(encoder)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in deployed.modules())
    torch.testing.assert_close(deployed(x), encoder(x), rtol=0, atol=1e-10)


def test_every_size_has_the_same_windows_and_parameters():
    shapes = {}
    for size in (224, 1024, (384, 512)):
        made = sam_encoder(img_size=size, device='meta')
        assert made.trunk.window_sizes == ((7, 7), (7, 7), (14, 14), (7, 7))
        shapes[size] = {k: v.shape for k, v in made.state_dict().items()}
    assert shapes[224] == shapes[1024] == shapes[384, 512]
    assert sum(p.numel() for p in made.parameters()) == 5_743_892
    assert len(shapes[224]) == 298


@pytest.mark.parametrize('size', [(31, 64), (64, 16)], ids=str)
def test_images_below_32_pixels_are_refused(size, encoder):
    with pytest.raises(AssertionError, match='at least 32 pixels'):
        encoder(torch.zeros(1, 3, *size, dtype=torch.float64))


def test_every_parameter_learns():
    made = sam_encoder(drop_path_rate=0.1).train()
    made.set_grad_checkpointing()
    made(torch.randn(1, 3, 64, 64)).square().sum().backward()
    assert all(p.grad is not None for p in made.parameters())
    assert {name for name, _ in made.named_parameters() if name.endswith('_biases')} == made.no_weight_decay()


# --- weights


def test_every_form_of_the_file_gives_the_same_encoder(tmp_path):
    whole = mobile_sam()
    bare = {k.removeprefix(ENCODER): v for k, v in whole.items() if k.startswith(ENCODER)}
    expected = sam_encoder(weights=whole).state_dict()
    torch.save(whole, tmp_path / 'mobile_sam.pt')
    forms = {
        'file': tmp_path / 'mobile_sam.pt',
        'bare': bare,
        'without classifier': {k: v for k, v in bare.items() if not k.startswith(('head.', 'norm_head.'))},
        'encoder with prefix': {k: v for k, v in whole.items() if k.startswith(ENCODER)},
        'wrapped': {'model': {f'module.{k}': v for k, v in whole.items()}},
        'with old buffers': bare | {'layers.1.blocks.0.attn.attention_bias_idxs': torch.zeros(49, 49)},
        'ours': expected,
        'ours, whole': {f'vision_encoder.{k}': v for k, v in expected.items()},
        'in half': {k: v.half() if v.is_floating_point() else v for k, v in bare.items()},
    }
    for name, form in forms.items():
        made = sam_encoder(weights=form).state_dict()
        if name == 'in half':
            made = {k: v.half() if v.is_floating_point() else v for k, v in made.items()}
            assert_same(made, {k: v.half() if v.is_floating_point() else v for k, v in expected.items()})
        else:
            assert_same(made, expected)
    official = SAM_ENCODER_KEYS.to_official(expected)
    assert_same(official, forms['without classifier'])


def test_names_that_do_not_fit_are_refused():
    whole, encoder = mobile_sam(), sam_encoder()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    norm, table = f'{ENCODER}layers.1.blocks.0.attn.norm.weight', f'{ENCODER}layers.2.blocks.3.attn.attention_biases'
    neck = f'{ENCODER}neck.2.weight'
    bad = {
        'norm.weight': {k: v for k, v in whole.items() if k != norm},
        'neck.2.weight': {k: v for k, v in whole.items() if k != neck},
        'missing': {k: v for k, v in whole.items() if not k.startswith(f'{ENCODER}neck.')},
        'neck.4.weight': whole | {f'{ENCODER}neck.4.weight': torch.zeros(1)},
        'layers.9.x': whole | {f'{ENCODER}layers.9.x': torch.zeros(1)},
        'wrong shape': whole | {neck: torch.zeros(256, 256, 1, 1)},
        'attention_biases': whole | {table: torch.zeros(5, 190)},
        'wrong type': whole | {norm: torch.ones(128, dtype=torch.long)},
    }
    for words, state_dict in bad.items():
        refused(lambda s=state_dict: load_sam_encoder(encoder, s), words)
    refused(lambda: sam_encoder('tinyvit_11m_224', weights=whole), 'wrong shape')
    assert_same(encoder.state_dict(), before)


def test_other_encoders_are_refused_by_name():
    block = torch.zeros(2304, 768)
    for names in (['image_encoder.pos_embed', 'image_encoder.blocks.0.attn.qkv.weight'],
                  ['vision_encoder.pos_embed', 'vision_encoder.layers.0.attn.qkv.weight']):  # fmt: skip
        refused(lambda names=names: sam_encoder(weights=dict.fromkeys(names, block)), 'ViT-B (width 768)', 'SamModel')
    other = {'image_encoder.features.0.weight': block, 'mask_decoder.iou_token.weight': block}
    refused(lambda: sam_encoder(weights=other), 'Not a SAM with a TinyViT encoder')


@pytest.mark.parametrize('layout', ['official', 'ours'])
def test_a_released_tinyvit_starts_an_encoder_and_a_warning_names_the_new_neck(layout, official_file, caplog):
    source = official_file('tiny_vit_5m_224')
    with caplog.at_level(logging.WARNING):
        made = sam_encoder(weights=source).state_dict()
    assert 'neck' in caplog.text
    official = torch.load(source)['model']
    ours = SAM_ENCODER_KEYS.to_official({k: v for k, v in made.items() if not k.startswith('neck.')})
    assert_same(ours, {k: official[k] for k in ours})
    assert not any(k.startswith(('head', 'norm_head')) for k in ours)
    if layout == 'ours':
        trunk = {k.removeprefix('trunk.'): v for k, v in made.items() if k.startswith('trunk.')}
        again = sam_encoder(weights=trunk | {'head.fc.weight': torch.zeros(7, 320)}).state_dict()
        assert_same({k: v for k, v in again.items() if k.startswith('trunk.')},
                    {k: v for k, v in made.items() if k.startswith('trunk.')})  # fmt: skip


def test_tables_of_other_windows_are_resized():
    whole = mobile_sam()
    key = 'layers.1.blocks.0.attn.attention_biases'
    made = sam_encoder(weights=whole, window_sizes=(7, 9, 14, 7))
    expected = resize_grid(whole[ENCODER + key].view(-1, 7, 7), (9, 9), 'bicubic').flatten(1)
    assert torch.equal(made.state_dict()['trunk.stages.1.blocks.0.attn.attention_biases'], expected)


def test_names_of_other_models_are_refused():
    refused(lambda: sam_encoder('resnet18'), 'not a TinyViT', kind=ModelError)
    refused(lambda: sam_encoder('tinyvit_6m_224'), 'Unknown model', kind=ModelError)
    refused(lambda: sam_encoder(weights='no_such_file.pt'), 'No checkpoint', kind=WeightsNotFoundError)
