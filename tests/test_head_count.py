"""Evidence in a checkpoint for its model's attention heads, and the errors for a wrong model.

The files here carry no numbers that matter; `test_plain_vit_loading.py` has those of released layouts.
"""

from argparse import Namespace
from pathlib import Path

import pytest
import timm
import torch
from conftest import load, refused

from tinyvit_zoo.checkpoints import Clues, find_heads
from tinyvit_zoo.hub.convert import import_weights
from tinyvit_zoo.layers import beit_offset_index

FINE_TUNED = 'tinymim_vit_tiny_patch16_224'


@pytest.fixture(scope='module')
def fine_tuned() -> dict[str, torch.Tensor]:
    """State dict of a classifier of width 192, under released names."""
    return timm.create_model(FINE_TUNED).state_dict()


def saved(path: Path, state_dict: dict[str, torch.Tensor], **others) -> Path:
    torch.save({'model': state_dict, **others}, path)
    return path


def test_the_error_for_another_width_does_not_mention_heads(tmp_path, fine_tuned):
    path = saved(tmp_path / 'w.pth', fine_tuned, args=Namespace(model='vit_tiny_patch16'))
    message = refused(lambda: load('tinymim_vit_small_patch16_224', path), 'wrong shape', '(384,')
    assert 'would load' not in message


# --- evidence for the heads


def test_tinymim_star_is_known_by_its_tensors_whatever_name_it_was_trained_under(tmp_path):
    star = timm.create_model('tinymim_vit_tiny_star_patch16_224')
    path = saved(tmp_path / 'w.pth', star.state_dict(), args=Namespace(model='vit_tiny_patch16'))
    assert load('tinymim_vit_tiny_star_patch16_224', path).blocks[0].attn.num_heads == 12


@pytest.mark.parametrize(('width', 'heads'), [(192, 12), (384, 12), (768, 12), (1024, 16)])
def test_a_decoder_of_mae_shows_the_heads_of_every_released_width(width, heads):
    state_dict = {
        'cls_token': torch.zeros(1, 1, width),
        'blocks.0.norm1.weight': torch.zeros(width),
        'decoder_embed.weight': torch.zeros(512, width),
    }
    assert find_heads(Clues(), state_dict).heads == (heads,)


@pytest.mark.parametrize(('name', 'heads'), [('deit_tiny_patch16_224', 3), ('mae_lite_vit_tiny_patch16_224', 12)])
def test_a_name_of_timm_in_the_saved_arguments_shows_the_heads(name, heads, fine_tuned):
    assert find_heads(Clues(trained_as=name), fine_tuned).heads == (heads,) * 12


@pytest.mark.parametrize(
    'file', ['mae_tiny_400e_ft_300e.pth.tar', 'mae_tiny_400e_ft_300e (1).pth.tar', 'mae_tiny_400e_ft_300e.safetensors']
)
def test_a_released_file_is_known_by_its_name_also_as_a_copy_or_converted(file, fine_tuned):
    assert find_heads(Clues(file=file), fine_tuned).heads == (12,) * 12


@pytest.mark.parametrize('file', ['', 'mae_tiny.pth', 'mae_tiny_400e_ft_300e_2.pth', 'resnet50.pth'])
def test_an_unknown_name_is_no_evidence(file, fine_tuned):
    assert find_heads(Clues(file=file, trained_as='resnet50'), fine_tuned) is None


# --- files of equal shapes, distinguished by their names alone


@pytest.mark.parametrize(
    ('file', 'name'),
    [
        ('TinyMIM-PT-Tstar.pth', 'tinymim_vit_tiny_student_patch16_224.mim_in1k'),
        ('mae_tiny_400e (2).pth.tar', 'mae_lite_vit_tiny_encoder_patch16_224.dmae_in1k'),
    ],
)
def test_a_file_that_is_known_to_be_another_is_not_imported(file, name, tmp_path, monkeypatch):
    monkeypatch.setenv('TINYVIT_ZOO_HOME', str(tmp_path / 'store'))
    path = saved(tmp_path / file, timm.create_model(name).state_dict())
    refused(lambda: import_weights(path, name), file, f'not of {name}', 'rename it')
    assert not (tmp_path / 'store').exists()


def test_the_name_of_a_file_counts_inside_a_folder_too(tmp_path, monkeypatch):
    monkeypatch.setenv('TINYVIT_ZOO_HOME', str(tmp_path / 'store'))
    name = 'mae_lite_vit_tiny_encoder_patch16_224.dmae_in1k'
    saved(tmp_path / 'mae_tiny_400e.pth.tar', timm.create_model(name).state_dict())
    refused(lambda: import_weights(tmp_path, name), 'mae_lite_vit_tiny_encoder_patch16_224.mae_in1k')


# --- errors when the classes differ


def test_the_error_for_an_encoder_in_place_of_a_classifier_does_not_mention_22k_heads(tmp_path):
    path = saved(tmp_path / 'w.pth', timm.create_model('tinymim_vit_tiny_student_patch16_224').state_dict())
    for action in (lambda: load(FINE_TUNED, path), lambda: import_weights(path, FINE_TUNED)):
        assert '22k' not in refused(action, 'no classes', 'as_init=True')


def test_the_error_for_a_classifier_in_place_of_an_encoder_does_not_mention_22k_heads(tmp_path, fine_tuned):
    path, encoder = saved(tmp_path / 'w.pth', fine_tuned), 'tinymim_vit_tiny_student_patch16_224'
    for action in (lambda: load(encoder, path), lambda: import_weights(path, encoder)):
        message = refused(action, '1000 classes', 'none', 'Is it the file of another')
        assert '22k' not in message
        assert 'as_init' not in message


# --- files whose shapes are odd


@pytest.mark.parametrize('rows', [0, 1])
def test_positions_of_fewer_tokens_than_a_model_has_are_of_a_wrong_shape(rows, tmp_path):
    for architecture in (FINE_TUNED, 'tinymim_vit_tiny_star_patch16_224'):
        state_dict = timm.create_model(architecture).state_dict() | {'pos_embed': torch.zeros(1, rows, 192)}
        path = saved(tmp_path / 'w.pth', state_dict)
        refused(lambda n=architecture, p=path: load(n, p), f'pos_embed is (1, {rows}, 192)')


@pytest.mark.parametrize('rows', [0, 2])
def test_tables_of_fewer_rows_than_the_extra_ones_are_of_a_wrong_shape(rows, tmp_path):
    name = 'mae_lite_vit_tiny_rpe_patch16_224'
    state_dict = timm.create_model(name).state_dict()
    state_dict |= {k: v[:rows] for k, v in state_dict.items() if k.endswith('_table')}
    refused(lambda: load(name, saved(tmp_path / 'w.pth', state_dict)), f'_table is ({rows}, 12)')


def test_a_table_with_the_index_of_another_order_is_refused_by_create_model_too(tmp_path):
    name = 'mae_lite_vit_tiny_rpe_patch16_224'
    state_dict = timm.create_model(name).state_dict()
    key = 'blocks.3.attn.relative_position_index'
    index = beit_offset_index((14, 14))
    load(name, saved(tmp_path / 'w.pth', state_dict | {key: index}))
    refused(lambda: load(name, saved(tmp_path / 'w.pth', state_dict | {key: index.flip(0)})), key, 'another order')
