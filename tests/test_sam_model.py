"""Segment Anything with a TinyViT encoder in transformers: the released masks, folders, sizes, rectangles, refusals."""

import copy
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_same, refused
from golden_case import EXACT, assert_close
from golden_rule import fill_by_rule, golden
from sam_reference import mobile_sam, sam_noise
from torch.nn import functional as F

pytest.importorskip('transformers')

from transformers import AutoConfig, AutoModel, AutoModelForMaskGeneration, AutoProcessor, SamModel, SamProcessor

from tinyvit_zoo.checkpoints import SAM_ENCODER_KEYS, SAM_KEYS, SAM_POSITIONS, WeightsNotFoundError
from tinyvit_zoo.common.errors import ModelError
from tinyvit_zoo.dense import sam_encoder
from tinyvit_zoo.hub.sam import (
    TinyVitSamConfig,
    TinyVitSamModel,
    convert_sam,
    load_sam,
    new_sam,
    official_sam_state_dict,
    sam_masks,
    sam_processor,
    save_sam,
)
from tinyvit_zoo.hub.sam import folder as sam_folder

SIDE = 128
PROMPT = dict(input_points=torch.tensor([[[[30.0, 40.0]]]]))


@pytest.fixture(scope='module')
def model() -> TinyVitSamModel:
    """The released form with weights by the rule, for images of 128 pixels."""
    return load_sam(mobile_sam(), SIDE)


@pytest.fixture(scope='module')
def folder(model, tmp_path_factory) -> Path:
    return save_sam(model, tmp_path_factory.mktemp('sam') / 'page', 'mobile_sam.pt')


def image(height: int, width: int) -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, (height, width, 3)).astype(np.uint8)


@torch.no_grad()
def assert_same_masks(one: TinyVitSamModel, other: TinyVitSamModel) -> None:
    """To the bit."""
    pixels = torch.randn(1, 3, SIDE, SIDE)
    a, b = one(pixels, **PROMPT), other(pixels, **PROMPT)
    assert torch.equal(a.pred_masks, b.pred_masks)
    assert torch.equal(a.iou_scores, b.iou_scores)
    assert a.pred_masks.shape == (1, 1, 3, SIDE // 4, SIDE // 4)


# --- the released masks


def released_pixels() -> torch.Tensor:
    """The input of the reference outputs as the released code prepares it: normalized, then padded."""
    values = [[123.675, 116.28, 103.53], [58.395, 57.12, 57.375]]
    mean, std = torch.tensor(values).double()[..., None, None]  # rounded to single precision first
    pixels = (sam_noise(3, 683, 1024) * 50 + 120 - mean) / std
    return F.pad(pixels, (0, 0, 0, 1024 - 683))[None]


@pytest.mark.slow
@torch.no_grad()
def test_every_prompt_gives_the_released_masks_and_scores():
    expected, whole = golden('mobile_sam'), load_sam(mobile_sam()).double()
    embedding = whole.get_image_embeddings(released_pixels())
    assert_close(embedding[:, ::16, ::8, ::8], expected['image_embedding_sub'], EXACT)
    assert_close(whole.get_image_wide_positional_embeddings()[0, ::8, ::16, ::16],
                 expected['dense_pe_sub'].reshape(32, 4, 4), EXACT)  # fmt: skip
    points, labels = (torch.from_numpy(expected[key]) for key in ('points', 'labels'))
    prompts = {
        'points': dict(input_points=points[None], input_labels=labels[None]),
        'box': dict(input_boxes=torch.from_numpy(expected['box'])[None]),
        'point_mask': dict(input_points=points[None, :1], input_labels=labels[None, :1],
                           input_masks=sam_noise(1, 1, 256, 256)),
    }  # fmt: skip
    for name, prompt in prompts.items():
        parts = [prompt.get(f'input_{part}') for part in ('points', 'labels', 'boxes', 'masks')]
        sparse, _ = whole.prompt_encoder(*parts)
        assert_close(sparse[0][..., ::4], expected[f'{name}_sparse'], EXACT)
        for several, suffix in ((True, ''), (False, '_single')):
            out = whole(image_embeddings=embedding, multimask_output=several, **prompt)
            low = f'{name}{suffix or "_low_res"}_sub'
            assert_close(out.pred_masks[0][:, :, ::16, ::16], expected[low], EXACT)
            assert_close(out.iou_scores[0], expected[f'{name}{suffix}_iou'], EXACT)
            if name == 'box' and several:
                full = sam_masks(out.pred_masks, [(341, 512)], [(683, 1024)], binarize=False)[0]
                assert_close(full[:, :, ::8, ::8], expected['box_full_sub'], EXACT)


def test_names_lead_both_ways(model):
    unused = ('image_encoder.head.', 'image_encoder.norm_head.')
    official = {k: v for k, v in mobile_sam().items() if not k.startswith(unused)}
    assert_same(official_sam_state_dict(model), official)
    ours, layout = SAM_KEYS.to_ours(official)
    assert layout == 'official'
    assert ours.keys() == model.state_dict().keys() - {SAM_POSITIONS[1]}
    assert len(official) == 298 + 17 + 120
    assert sum(v.numel() for k, v in model.named_parameters()) == 9_808_452 + 256
    assert_same(load_sam(model.state_dict(), SIDE).state_dict(), model.state_dict())
    wrapped = {'model': {f'module.{k}': v for k, v in mobile_sam().items()}}
    assert_same(load_sam(wrapped, SIDE).state_dict(), model.state_dict())
    prompts, images = model.prompt_encoder.shared_embedding, model.shared_image_embedding
    assert prompts.positional_embedding is images.positional_embedding


# --- folders


def test_a_saved_folder_gives_the_same_masks_to_the_bit(model, folder):
    assert sorted(p.name for p in folder.iterdir()) == sorted(sam_folder.FILES)
    for again in (load_sam(folder), AutoModelForMaskGeneration.from_pretrained(folder).eval()):
        assert type(again) is TinyVitSamModel
        assert_same(again.state_dict(), model.state_dict())
        assert_same_masks(again, model)
    assert_same(sam_encoder(weights=folder).state_dict(), model.vision_encoder.state_dict())
    assert type(AutoConfig.from_pretrained(folder)) is TinyVitSamConfig
    assert type(AutoModel.from_pretrained(folder)) is TinyVitSamModel
    assert again.config.mask_decoder_config.layer_norm_eps == 1e-5


def test_transformers_saves_and_loads_it_too(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert_same_masks(TinyVitSamModel.from_pretrained(tmp_path).eval(), model)


@torch.no_grad()
def test_a_folder_in_half_precision_takes_images_of_a_processor(model, tmp_path):
    page = save_sam(copy.deepcopy(model).half(), tmp_path / 'page')
    half, pixels = AutoModelForMaskGeneration.from_pretrained(page).eval(), torch.randn(1, 3, SIDE, SIDE)
    masks, expected = half(pixels, **PROMPT).pred_masks, model(pixels, **PROMPT).pred_masks
    assert masks.dtype == torch.float16
    assert (masks - expected).abs().max() < 0.02 * expected.abs().max()


def test_indices_of_the_attention_are_filled_after_loading(folder):
    loaded = TinyVitSamModel.from_pretrained(folder)
    layers = [m for m in loaded.modules() if hasattr(m, 'row_offsets')]
    assert len(layers) == 10
    for attn in layers:
        side = torch.arange(attn.window_size[0])
        assert torch.equal(attn.row_offsets, (side[:, None] - side).abs())


def test_the_processor_of_the_folder_prepares_images_and_masks(model, folder):
    processor = SamProcessor.from_pretrained(folder)
    assert type(AutoProcessor.from_pretrained(folder)) is SamProcessor
    inputs = processor(image(90, 120), input_points=[[[30, 40]]], return_tensors='pt')
    assert inputs['pixel_values'].shape == (1, 3, SIDE, SIDE)
    assert inputs['pixel_values'][:, :, 96:].abs().max() == 0
    inputs['input_points'] = inputs['input_points'].float()
    with torch.no_grad():
        masks = model(**inputs).pred_masks
    sizes = inputs['original_sizes'], inputs['reshaped_input_sizes']
    expected = processor.post_process_masks(masks, *sizes)[0]
    assert torch.equal(sam_masks(masks, *sizes)[0], expected)
    assert (expected.shape, expected.dtype) == ((1, 3, 90, 120), torch.bool)


def test_the_card_states_source_and_licenses(folder, model, tmp_path):
    card = (folder / 'README.md').read_text()
    for words in ('license: apache-2.0', 'mobile_sam.pt', 'ChaoningZhang/MobileSAM', 'segment-anything', '128 pixels'):
        assert words in card
    own = save_sam(model, tmp_path / 'own') / 'README.md'
    assert 'license:' not in own.read_text()


def test_plain_sam_model_does_not_load_the_folder(folder):
    """It would go on with a random encoder."""
    with pytest.raises(Exception, match='window_size'):
        SamModel.from_pretrained(folder)


def test_a_folder_loads_at_another_size(folder, model):
    larger = load_sam(folder, 160)
    expected = load_sam(mobile_sam(), 160)
    pixels = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(larger(pixels, **PROMPT).pred_masks, expected(pixels, **PROMPT).pred_masks)
    with pytest.raises(ValueError, match='160x160'):
        larger(pixels[..., :SIDE, :SIDE], **PROMPT)


@pytest.mark.parametrize('architecture', ['tinyvit_11m_224', pytest.param('tinyvit_21m_224', marks=pytest.mark.slow)])
def test_larger_encoders_and_other_windows_keep_their_form(architecture, tmp_path):
    made = fill_by_rule(new_sam(architecture, SIDE, window_sizes=(7, 5, 14, 7)))
    official = official_sam_state_dict(made)
    torch.save(official, tmp_path / 'sam.pt')
    _, folder = convert_sam(tmp_path / 'sam.pt', tmp_path / 'page', SIDE)
    again = load_sam(folder)
    assert again.config.vision_config.architecture == architecture
    assert again.vision_encoder.trunk.window_sizes == ((7, 7), (5, 5), (14, 14), (7, 7))
    assert_same_masks(again, made)


def test_a_released_tinyvit_starts_a_model(official_file):
    encoder = sam_encoder(weights=official_file('tiny_vit_5m_224'))
    made = new_sam(encoder=encoder, img_size=SIDE)
    assert_same(made.vision_encoder.state_dict(), encoder.state_dict())
    refused(lambda: new_sam('tinyvit_11m_224', SIDE, encoder), 'tinyvit_11m_224', kind=ModelError)
    assert made.shared_image_embedding.positional_embedding.std().item() == pytest.approx(1, abs=0.2)
    made.vision_encoder.gradient_checkpointing = True
    assert made.vision_encoder.trunk.stages[2].grad_checkpointing
    made.train()(torch.randn(1, 3, SIDE, SIDE), **PROMPT).pred_masks.square().mean().backward()
    assert all(p.grad is not None for p in made.vision_encoder.parameters())


# --- rectangles


@torch.no_grad()
def test_a_rectangle_is_computed_without_padding(folder):
    model, x = load_sam(folder, rectangular=True), torch.randn(1, 3, 70, SIDE)
    out = model(x, **PROMPT)
    assert out.pred_masks.shape == (1, 1, 3, 4 * 5, 4 * 8)
    by_hand = model.mask_decoder(
        sam_encoder(weights=SAM_ENCODER_KEYS.to_official(model.vision_encoder.state_dict()))(x),
        model.get_image_wide_positional_embeddings()[:, :, :5, :8],
        *model.prompt_encoder(PROMPT['input_points'], torch.ones(1, 1, 1), None, None),
        multimask_output=True,
    )
    torch.testing.assert_close(out.pred_masks, by_hand[0], rtol=0, atol=1e-6)
    square = torch.randn(1, 3, SIDE, SIDE)
    assert torch.equal(model(square, **PROMPT).pred_masks, load_sam(folder)(square, **PROMPT).pred_masks)
    with_mask = model(x, input_masks=torch.randn(1, 1, SIDE // 4, SIDE // 4), **PROMPT)
    assert with_mask.pred_masks.shape == out.pred_masks.shape
    assert model(x[:, :, :9], **PROMPT).pred_masks.shape[-2:] == (8, 32)


@torch.no_grad()
def test_masks_of_a_rectangle_have_the_size_of_the_image(folder):
    model = load_sam(folder, rectangular=True)
    processor = sam_processor(model.config)
    inputs = processor(image(75, 120), input_points=[[[30, 40]]], return_tensors='pt')
    assert inputs['pixel_values'].shape == (1, 3, 80, SIDE)
    inputs['input_points'] = inputs['input_points'].float()
    masks = sam_masks(model(**inputs).pred_masks, inputs['original_sizes'], inputs['reshaped_input_sizes'])
    assert masks[0].shape == (1, 3, 75, 120)


def test_images_of_another_shape_are_refused(model, folder):
    with pytest.raises(ValueError, match='rectangular=True'):
        model(torch.zeros(1, 3, 96, SIDE), **PROMPT)
    with pytest.raises(ValueError, match='larger than 128'):
        load_sam(folder, rectangular=True)(torch.zeros(1, 3, 96, 144), **PROMPT)


# --- refusals


def test_a_model_that_is_not_whole_is_refused():
    whole = mobile_sam()
    for key in ('prompt_encoder.not_a_point_embed.weight', 'mask_decoder.transformer.layers.1.norm4.bias',
                'prompt_encoder.pe_layer.positional_encoding_gaussian_matrix', 'image_encoder.neck.3.bias',
                'mask_decoder.output_hypernetworks_mlps.2.layers.1.weight'):  # fmt: skip
        refused(lambda key=key: load_sam({k: v for k, v in whole.items() if k != key}, SIDE), 'missing')
    for key in ('mask_decoder.extra.weight', 'pixel_mean', 'image_encoder.pos_embed'):
        refused(
            lambda key=key: load_sam(whole | {key: torch.zeros(1)}, SIDE), 'unknown', key.removeprefix('image_encoder.')
        )
    refused(lambda: load_sam(whole | {'mask_decoder.iou_token.weight': torch.zeros(1, 128)}, SIDE), 'wrong shape')
    encoder = {k.removeprefix('image_encoder.'): v for k, v in whole.items() if k.startswith('image_encoder.')}
    refused(lambda: load_sam(encoder, SIDE), 'no mask decoder')
    vit = {'image_encoder.blocks.0.attn.qkv.weight': torch.zeros(2304, 768)}
    refused(lambda: load_sam(vit, SIDE), 'ViT-B')
    refused(lambda: load_sam({'epoch': 3}, SIDE), 'not a state dict')


def test_a_folder_that_is_not_whole_is_refused(model, tmp_path):
    from safetensors.torch import load_file, save_file

    save_sam(model, tmp_path / 'page')
    file = tmp_path / 'page' / 'model.safetensors'
    tensors = load_file(file)
    for change, words in (
        ({k: v for k, v in tensors.items() if k != 'vision_encoder.neck.2.weight'}, 'missing'),
        (tensors | {'vision_encoder.more': torch.zeros(1)}, 'unknown'),
    ):
        save_file(change, file, metadata={'format': 'pt'})
        refused(lambda: load_sam(tmp_path / 'page'), words)
        refused(lambda: AutoModelForMaskGeneration.from_pretrained(tmp_path / 'page'), words)
    config = tmp_path / 'page' / 'config.json'
    config.write_text(json.dumps(json.loads(config.read_text()) | {'model_type': 'sam'}))
    refused(lambda: load_sam(tmp_path / 'page'), 'type sam')
    config.write_text('{')
    refused(lambda: load_sam(tmp_path / 'page'), 'not a configuration')
    config.unlink()
    refused(lambda: load_sam(tmp_path / 'page'), 'config.json', kind=WeightsNotFoundError)


def test_sizes_that_do_not_fit_are_refused(model):
    for side in (100, 16, 0, -32):
        refused(lambda side=side: new_sam(img_size=side), 'multiple of 16', kind=ModelError)
    config = model.config.to_dict()
    config['prompt_encoder_config'] = dict(image_size=256)
    refused(lambda: TinyVitSamModel(TinyVitSamConfig.from_dict(config)), '256', kind=ModelError)


def test_a_folder_with_other_files_is_kept(model, tmp_path):
    (tmp_path / 'page').mkdir()
    (tmp_path / 'page' / 'thesis.tex').write_text('years of work')
    with pytest.raises(FileExistsError, match=r'thesis\.tex'):
        save_sam(model, tmp_path / 'page')


@pytest.mark.skipif(os.name != 'posix', reason='Windows has no SIGKILL')
@pytest.mark.parametrize('file', ['config.json', 'model.safetensors', 'README.md'])
def test_a_killed_conversion_leaves_all_or_nothing(file, model, folder, tmp_path):
    """Killed while that file is the last one written; the next conversion takes what is left away."""
    target = tmp_path / 'page'

    def stall() -> None:
        steps = {'config.json': 'write_safetensors', 'model.safetensors': 'render_sam_card', 'README.md': 'check_keys'}
        setattr(sam_folder, steps[file], lambda *args: time.sleep(600))
        save_sam(model, target)

    process = multiprocessing.get_context('fork').Process(target=stall)
    process.start()
    while not list(tmp_path.glob(f'.page.*.new/{file}')) and process.is_alive():
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not target.exists()
    save_sam(model, target)
    assert [p.name for p in tmp_path.iterdir()] == ['page']
    assert_same(load_sam(target).state_dict(), model.state_dict())
