"""`tinyvit-zoo compress`: parameters before and after, a folder that timm makes the model from, clear refusals."""

from functools import partial

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import tinyvit_zoo  # noqa: F401  registers the models
from tinyvit_zoo.cli.compress import IMAGES, _read_images
from tinyvit_zoo.hub import save_folder

NAME = 'deit_tiny_patch16_224'


@pytest.fixture
def cli(cli):
    """Runs `tinyvit-zoo compress` in this process; gives exit code, stdout and stderr."""
    return partial(cli, 'compress')


@pytest.fixture
def small(tmp_path):
    """The name of a small DeiT in a folder, with weights."""
    model = timm.create_model(NAME, img_size=32, patch_size=8, embed_dim=48, depth=4, num_heads=3, num_classes=11)
    return f'local-dir:{save_folder(model, tmp_path / "small")}'


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / 'images'
    (folder / 'more').mkdir(parents=True)
    for i, name in enumerate(('a.png', 'b.JPG', 'more/c.webp')):
        Image.effect_noise((50, 40), 40 + 20 * i).convert('RGB').save(folder / name)
    (folder / 'notes.txt').write_text('no image')
    return folder


def assert_one_sentence(err, *parts):
    assert err.count('\n') == 1, err
    assert 'Traceback' not in err
    for part in parts:
        assert str(part) in err


def test_it_prints_parameters_before_and_after_and_how_to_load(cli, small, tmp_path):
    code, out, err = cli(small, '-o', tmp_path / 'out')
    assert (code, err) == (0, '')
    teacher = timm.create_model(small, pretrained=True)
    student = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (teacher, student))
    lines = out.splitlines()
    assert lines[0] == f'Before: {before:,} parameters, 0.5 MB'
    assert lines[1] == f'After:  {after:,} parameters, 0.3 MB'
    assert lines[2] == f'{before / after:.2f} times fewer. Written to {tmp_path / "out"}'
    exec(lines[3].removeprefix('In Python: '), {})
    assert student.blocks[0].attn.qkv is student.blocks[1].attn.qkv
    assert torch.equal(student.head.weight, teacher.head.weight)


def test_groups_weights_and_transformations_are_options(cli, small, tmp_path):
    teacher = timm.create_model(small, pretrained=True)
    options = ['--share-every', 'stage', '--init', 'mean', '--no-transform']
    assert cli(small, '-o', tmp_path / 'out', *options)[0] == 0
    student = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True)
    mean = torch.stack([block.mlp.fc1.weight for block in teacher.blocks]).mean(0)
    torch.testing.assert_close(student.blocks[3].mlp.fc1.weight, mean)
    assert not any('mix' in name for name in student.state_dict())
    assert cli(small, '-o', tmp_path / 'four', '--share-every', '4', '--init', 'first')[0] == 0
    student = timm.create_model(f'local-dir:{tmp_path / "four"}', pretrained=True)
    assert torch.equal(student.blocks[3].mlp.fc1.weight, teacher.blocks[0].mlp.fc1.weight)


def test_rows_of_the_ablation_are_options(cli, small, tmp_path):
    options = ['--init', 'first', '--no-transform', '--mlp-transform', '--mlp-conv-kernel', '3', '--share-norms']
    assert cli(small, '-o', tmp_path / 'out', *options)[0] == 0
    student = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True)
    assert student.blocks[0].norm1 is student.blocks[1].norm1
    assert student.blocks[1].mlp_conv.conv.kernel_size == (3, 3)
    assert not any('mix' in name for name in student.state_dict())


def test_the_structure_alone_needs_no_weights(cli, tmp_path):
    code, out, _ = cli(NAME, '-o', tmp_path / 'out', '--random', '--init', 'first', '--num-classes', '10')
    assert code == 0
    assert 'Before: 5,526,346 parameters, 22.1 MB\nAfter:  2,861,986 parameters, 11.5 MB\n' in out
    assert timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True).num_classes == 10


def test_a_checkpoint_decides_on_the_classes_unless_they_are_given(cli, tmp_path):
    teacher = timm.create_model(NAME, num_classes=7)
    torch.nn.init.normal_(teacher.head.weight)
    save_file(teacher.state_dict(), tmp_path / 'teacher.safetensors')
    options = ['--weights', tmp_path / 'teacher.safetensors', '--init', 'first']
    assert cli(NAME, '-o', tmp_path / 'out', *options)[0] == 0
    weights = load_file(tmp_path / 'out' / 'model.safetensors')
    assert torch.equal(weights['head.weight'], teacher.head.weight)
    assert torch.equal(weights['blocks.0.mlp.fc1.weight'], teacher.blocks[0].mlp.fc1.weight)
    assert cli(NAME, '-o', tmp_path / 'three', *options, '--num-classes', 3)[0] == 0
    weights = load_file(tmp_path / 'three' / 'model.safetensors')
    assert weights['head.weight'].shape == (3, 192)
    assert torch.equal(weights['blocks.0.mlp.fc1.weight'], teacher.blocks[0].mlp.fc1.weight)


def test_the_weights_are_fitted_on_the_images(cli, small, images, tmp_path):
    assert cli(small, '-o', tmp_path / 'plain', '--init', 'first')[0] == 0
    assert cli(small, '-o', tmp_path / 'fitted', '--init', 'first', '--images', images)[0] == 0
    plain, fitted = (load_file(tmp_path / name / 'model.safetensors') for name in ('plain', 'fitted'))
    assert torch.equal(plain['blocks.0.mlp.fc1.weight'], fitted['blocks.0.mlp.fc1.weight'])
    assert not torch.equal(plain['blocks.1.norm2.weight'], fitted['blocks.1.norm2.weight'])


def test_images_come_from_subfolders_too_and_are_spread_evenly(small, images):
    model = timm.create_model(small)
    assert [batch.shape for batch in _read_images(images, model)] == [(3, 3, 32, 32)]
    for i in range(3 * IMAGES):
        Image.new('RGB', (32, 32), (i, i, i)).save(images / 'more' / f'{i:03}.png')
    batches = _read_images(images, model)
    assert sum(len(batch) for batch in batches) == IMAGES
    assert len(torch.cat(batches).flatten(1).unique(dim=0)) == IMAGES


def test_pretrained_weights_that_are_missing_end_in_one_sentence(cli, tmp_path):
    code, out, err = cli(NAME, '-o', tmp_path / 'out')
    assert (code, out) == (1, '')
    assert_one_sentence(err, NAME, '--weights FILE', '--random')
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('args', 'code', 'parts'),
    [
        (['resnet18', '--random'], 1, ['resnet18', 'ResNet cannot be multiplexed']),
        ([NAME, '--random', '--share-every', '5'], 1, ['does not divide', '1, 2, 3, 4, 6, 12']),
        ([NAME, '--random', '--mlp-conv-kernel', '3'], 1, ['mlp_conv_kernel is for the MLP transformation']),
        ([NAME, '--random', '--share-every', 'two'], 2, ["'two' is neither"]),
        ([NAME, '--random', '--weights', 'x.pth'], 2, ['--weights', '--random']),
        ([NAME, '--weights', 'nowhere.pth'], 1, ['nowhere.pth']),
        ([NAME, '--random', '--images', 'nowhere'], 1, ['No folder at nowhere']),
        (['no_such_model'], 1, ["Unknown model 'no_such_model'"]),
    ],
)
def test_refusals_are_one_sentence(cli, tmp_path, args, code, parts):
    got, out, err = cli(*args, '-o', tmp_path / 'out')
    assert (got, out) == (code, '')
    assert_one_sentence(err, *parts)
    assert not (tmp_path / 'out').exists()


def test_folders_without_images_and_damaged_images_are_named(cli, small, tmp_path):
    empty = tmp_path / 'empty'
    empty.mkdir()
    _, _, err = cli(small, '-o', tmp_path / 'out', '--images', empty)
    assert_one_sentence(err, empty, 'no images')
    (empty / 'bad.png').write_bytes(b'no image')
    code, _, err = cli(small, '-o', tmp_path / 'out', '--images', empty)
    assert code == 1
    assert_one_sentence(err, 'bad.png')


def test_a_folder_with_other_files_is_left_alone(cli, small, tmp_path):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'notes.txt').write_text('mine')
    code, _, err = cli(small, '-o', tmp_path / 'out', '--init', 'first')
    assert code == 1
    assert_one_sentence(err, 'notes.txt')
    assert [p.name for p in (tmp_path / 'out').iterdir()] == ['notes.txt']
