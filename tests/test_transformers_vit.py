"""Plain ViTs of transformers as teachers of TinyMIM and D-MAE: what they are read as, and what others lack."""

import json
from pathlib import Path

import pytest
import torch
from conftest import refused

from tinyvit_zoo.common.errors import EvaluationError, ModelError
from tinyvit_zoo.data import load_dataset
from tinyvit_zoo.data.replay import ModelInput
from tinyvit_zoo.pretrain import TinyMim
from tinyvit_zoo.training.pretraining import input_of
from tinyvit_zoo.training.pretraining_forms import d_mae_form, load_teacher, tinymim_form
from tinyvit_zoo.training.transformers_vit import as_plain_vit

transformers = pytest.importorskip('transformers')

SMALL = dict(
    hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, image_size=32, patch_size=8
)
SHAPE = dict(img_size=32, patch_size=8)
HALF = [0.5] * 3
IMAGENET = dict(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
MODELS = {
    'ViT': ('ViT', dict(hidden_act='gelu')),
    'MAE': ('ViTMAE', dict(decoder_hidden_size=24, decoder_num_hidden_layers=1, decoder_num_attention_heads=3)),
    'DINOv2': ('Dinov2', dict(mlp_ratio=2)),
    'CLIP': ('CLIPVision', dict(hidden_act='quick_gelu')),
    'BEiT': ('Beit', dict(use_relative_position_bias=True)),
    'BEiT, shared positions': ('Beit', dict(use_shared_relative_position_bias=True)),
}


def random(kind: str, **settings):
    """A small model with weights that are far from their initial values, tables of relative positions included."""
    torch.manual_seed(0)
    model = getattr(transformers, f'{kind}Model')(getattr(transformers, f'{kind}Config')(**{**SMALL, **settings}))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def written(folder: Path, model, **processor) -> Path:
    model.save_pretrained(folder)
    settings = dict(image_processor_type='ViTImageProcessor', size=dict(height=32, width=32), do_resize=True)
    settings |= dict(do_normalize=True, image_mean=HALF, image_std=HALF) | processor
    (folder / 'preprocessor_config.json').write_text(json.dumps(settings))
    return folder


def parts_of(model, images: torch.Tensor, block: int, **settings) -> dict[str, torch.Tensor]:
    """Queries, keys and values of a block, counted from 0, taken from the model of transformers itself."""
    found, layer = {}, [m for m in model.modules() if type(m).__name__.endswith('Layer')][block]
    for name, module in layer.named_modules():
        if name.endswith(('q_proj', 'k_proj', 'v_proj')):
            part = name[-len('q_proj')]
            module.register_forward_hook(lambda m, a, out, part=part: found.setdefault(part, out))
    model(pixel_values=images, **settings)
    return {part: out.unflatten(-1, (3, -1)).transpose(1, 2) for part, out in found.items()}


@torch.no_grad()
@pytest.mark.parametrize('name', MODELS)
def test_relations_are_those_of_the_model_itself(name, tmp_path):
    """In float64, by ten plain lines from transformers' own modules to the loss."""
    kind, settings = MODELS[name]
    model, images = random(kind, **settings), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    teacher = load_teacher(str(written(tmp_path, model)), block=2)
    form = tinymim_form('tiny', teacher, depth=2, **SHAPE).double().eval()
    losses = form(images, images)

    if kind == 'ViTMAE':
        model.config.mask_ratio = 0.0  # which shuffles the patches all the same
        parts = parts_of(model.double(), images, 1, noise=torch.arange(16.0).expand(2, 16))
    else:
        parts = parts_of(model.double(), images, 1)
    student = form.student.encoder(images)
    for pair in ('qk', 'vv'):
        one, two = ((part[pair[0]], part[pair[1]]) for part in (parts, dict(zip('qkv', student, strict=True))))
        target, output = (a @ b.transpose(2, 3) / a.shape[-1] ** 0.5 for a, b in (one, two))
        log_target = target - target.logsumexp(-1, keepdim=True)
        log_output = output - output.logsumexp(-1, keepdim=True)
        loss = (log_target.exp() * (log_target - log_output)).sum(-1).mean()
        assert losses[pair].item() == pytest.approx(loss.item(), abs=1e-9)


def test_a_teacher_takes_images_as_its_preprocessing_says_or_of_another_size(tmp_path):
    folder = written(tmp_path, random('Dinov2', image_size=48), image_mean=[0.1, 0.2, 0.3])
    own, other = load_teacher(str(folder)), load_teacher(f'local-dir:{folder}', img_size=(64, 32), block=1)
    assert input_of(own.vit) == ModelInput((32, 32), (0.1, 0.2, 0.3), (0.5,) * 3)
    assert (own.block, own.heads, own.vit.patch_embed.grid_size) == (2, 3, (4, 4))
    assert (other.block, other.vit.patch_embed.grid_size) == (1, (8, 4))
    assert not any(parameter.requires_grad for parameter in own.parameters())


def test_relative_positions_do_not_run_on_visible_patches_and_in_half_precision_they_do(tmp_path):
    teacher = load_teacher(str(written(tmp_path, random('Beit', use_relative_position_bias=True), **IMAGENET)))
    images = torch.randn(1, 3, 32, 32)
    with torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(teacher(images).q.float(), teacher(images.float()).q.float(), rtol=0, atol=0.5)
    refused(
        lambda: tinymim_form('tiny', teacher, mask_ratio=0.5, **SHAPE), 'relative positions of all patches',
        kind=EvaluationError,
    )  # fmt: skip
    refused(
        lambda: d_mae_form('tiny', teacher.vit, (2,), (), depth=2, **SHAPE), 'relative positions', kind=EvaluationError
    )


@pytest.mark.parametrize('target', ['attention_residual', 'cls'])
def test_other_targets_are_read_too(target, tmp_path):
    teacher = load_teacher(str(written(tmp_path, random('CLIPVision'))), drop_path=0.1)
    form = tinymim_form('tiny', teacher, target=target, depth=2, **SHAPE)
    assert isinstance(form, TinyMim)
    assert form(torch.randn(1, 3, 32, 32), torch.randn(1, 3, 32, 32))['loss'].isfinite()


@pytest.mark.parametrize(
    ('model', 'words'),
    [
        (('Dinov2WithRegisters', {}), ('embeddings.register_tokens besides',)),
        (('Dinov2', dict(use_swiglu_ffn=True)), ('lacks the mlp.fc1 of one',)),
        (('SiglipVision', {}), ('lacks the cls_token of one',)),
        (('ViT', dict(head_dim=16)), ('not laid out as those of one',)),
    ],
    ids=['registers', 'gated', 'no class token', 'wide heads'],
)
def test_what_a_model_lacks_is_one_sentence(model, words):
    kind, settings = model
    refused(lambda: as_plain_vit(random(kind, **settings), 'm', (32, 32)), *words, 'plain ViTs', kind=EvaluationError)


def test_a_model_that_computes_something_else_from_such_weights_is_refused():
    model = random('ViT')
    model.layers[0].attention.scaling = 1.0
    refused(lambda: as_plain_vit(model, 'm', (32, 32)), 'computes something else', kind=EvaluationError)


def test_sizes_and_heads_that_do_not_fit_are_named_before_the_first_batch(tmp_path):
    folder = written(tmp_path, random('ViT', hidden_size=20, num_attention_heads=5))
    refused(lambda: load_teacher(str(folder), img_size=(36, 36)), '36', kind=EvaluationError)
    teacher = load_teacher(str(folder))
    refused(lambda: tinymim_form('tiny', teacher, **SHAPE), '5 heads', 'not a multiple', kind=EvaluationError)
    refused(lambda: load_teacher(str(folder), tmp_path / 'file.pth'), 'weights beside it', kind=ModelError)
    refused(lambda: load_teacher(str(folder), block=3), 'block counts from 1', kind=EvaluationError)


@pytest.mark.slow
@pytest.mark.parametrize('method', ['tinymim', 'd_mae'])
def test_the_commands_take_a_folder_of_transformers(method, cli, tmp_path):
    model = random('ViTMAE', num_hidden_layers=12, patch_size=16)
    folder, data = written(tmp_path / 'teacher', model, **IMAGENET), tmp_path / 'images'
    data.mkdir()
    digits = load_dataset('digits', 'train')
    for i in range(8):
        digits.image(i).save(data / f'{i}.png')
    student = ('--student', 'tiny') if method == 'tinymim' else ('--attention-blocks', 12)
    code, _, err = cli(
        'pretrain', method, *student, '--teacher', folder, '-d', data, '-o', tmp_path / 'run', '--epochs', 1,
        '--batch-size', 8, '--device', 'cpu',
    )  # fmt: skip
    assert code == 0, err
    results = json.loads((tmp_path / 'run' / 'results.json').read_text())
    assert results['teacher'] == str(folder)
