"""Options that another option leaves nothing to say are refused, not ignored: each would seem to have worked."""

import pytest
import timm

from tinyvit_zoo.data.unlabelled import load_unlabelled
from tinyvit_zoo.downstream.embed import find_images
from tinyvit_zoo.hub import save_folder

TINYMIM = ('pretrain', 'tinymim', '--student', 'small', '--teacher', 'x', '-d', 'digits', '-o', 'run')


@pytest.mark.parametrize(
    ('line', 'sentence'),
    [
        ((*TINYMIM, '--target', 'cls', '--relations', 'qk,vv'), '--relations needs --target relation.'),
        ((*TINYMIM, '--target', 'cls', '--no-softmax'), '--no-softmax needs --target relation.'),
        ((*TINYMIM, '--keep-heads'), '--keep-heads needs a tiny student.'),
        (
            ('pretrain', 'features', '--student', 'x', '--student-weights', 'w', '--student-pretrained', '--teacher',
             'x', '-d', 'digits', '-o', 'run'),
            '--student-pretrained cannot be combined with --student-weights.',
        ),
        (
            ('pretrain', 'minivit', '--student', 'x', '--store', 's', '--teacher-weights', 'w', '-d', 'digits', '-o',
             'run'),
            '--teacher-weights needs --teacher NAME.',
        ),
        (('distill', 'check', 's', '-d', 'digits', '--weights', 'w'), '--weights needs --against TEACHER.'),
        (('distill', 'check', 's', '-d', 'digits', '--tolerance', 0.005), '--tolerance needs --against TEACHER.'),
        (('distill', 'check', 's', '-d', 'digits', '--workers', 2), '--workers needs --against TEACHER.'),
        (('distill', 'info', 's', '-d', 'digits', '--subset', '1%'), '--data, --subset need --view EPOCH'),
        (('analyze', 'cka', 'x', '-d', 'digits', '--random-b'), '--random-b needs a second model B.'),
        (
            ('analyze', 'hard-samples', '-d', 'digits', '--store', 's', '--batch-size', 64, '-o', 'kept.json'),
            '--batch-size needs --teacher NAME.',
        ),
        (
            ('analyze', 'hard-samples', '-d', 'digits', '--store', 's', '--device', 'cpu', '--workers', 2, '-o',
             'kept.json'),
            '--device, --workers need --teacher NAME.',
        ),
        (
            ('analyze', 'class-relations', 'x', '-d', 'digits', '--per-class', 8, '--images', 1024),
            '--images cannot be combined with --per-class.',
        ),
        (('evaluate', 'x', '-d', 'digits', '--clean-root', '.'), '--clean-root needs -d imagenet-c.'),
        (('evaluate', 'x', '-d', 'imagenet-c', '--root', '.', '--split', 'test'), '--split cannot be combined'),
        (('probe', 'x', '-d', 'digits', '--views', 4), '--views cannot be combined with --mode live.'),
        (
            ('probe', 'x', '-d', 'digits', '--mode', 'ridge', '--lrs', 0.1, '--epochs', 9),
            '--lrs, --epochs cannot be combined with --mode ridge.',
        ),
        (('export', 'x', '-o', 'x.onnx', '--calibration-images', 128), '--calibration-images needs --int8.'),
        (('sam', 'export', 'x', '--encoder', 'x.onnx', '--all-masks'), '--all-masks needs --decoder.'),
        (('bench', 'x', '--routes', '--csv', 'x.csv'), '--csv cannot be combined with --routes.'),
        (('list', '--json', '--markdown'), '--markdown cannot be combined with --json.'),
        (('detect', 'config', '-o', 'x.py'), '--output needs a CONFIG.'),
        (('reproduce', '--list', '--scale', 'digits', '-o', 'x'), '--scale, --output cannot be combined with --list.'),
        (('reproduce', 'mae_lite/figure1', '--scale', 'digits'), '--scale cannot be combined with a figure'),
        (('fewshot', 'x', '-d', 'digits', '--root', '.'), '--root: digits comes with a library'),
        (('pretrain', 'mae', '-d', '.', '--root', '.', '-o', '../run'), '--root is for data sets by name, and . is'),
    ],
    ids=lambda value: '-'.join(map(str, value[:2])) if isinstance(value, tuple) else value.split()[0].strip(':,'),
)  # fmt: skip
def test_an_option_that_nothing_reads_is_refused(cli, tmp_path, monkeypatch, line, sentence) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = cli(*line)
    assert (code, out) == (2, '')
    assert sentence in err
    assert len(err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('line', 'sentence'),
    [
        (('export', 'test_vit', '--random', '--part', 'teacher', '-o', 'x.onnx'), '--part'),
        (('compress', 'test_vit', '--random', '--part', 'teacher', '-o', 'x'), '--part'),
        (('fewshot', 'test_vit', '--random', '--part', 'teacher', '-d', 'digits'), '--part'),
        (('convert', 'x.pth', 'x.safetensors', '--num-classes', 10), '--num-classes is checked with the model'),
        (('convert', 'x.pth', 'x.safetensors', '--img-size', 384), '--img-size is checked with the model'),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else value.split()[0],
)
def test_an_argument_that_no_file_or_model_takes_is_refused(cli, tmp_path, monkeypatch, line, sentence) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = cli(*line)
    assert code == 1
    assert sentence in err
    assert not list(tmp_path.iterdir())


def test_the_default_of_an_option_is_not_taken_for_one_that_was_given(cli, tmp_path) -> None:
    code, _, err = cli('pretrain', 'tinymim', '--student', 'small', '--teacher', 'no_such_model', '--target', 'cls',
                       '-d', 'digits', '-o', tmp_path / 'run')  # fmt: skip
    assert code == 1
    assert 'no_such_model' in err


def test_a_temperature_of_hard_predictions_is_refused(cli, tmp_path) -> None:
    teacher = save_folder(timm.create_model('test_vit', num_classes=10, img_size=32), tmp_path / 'teacher')
    line = ('finetune', 'tinymim_vit_tiny_star_patch16_224', '--random', '-d', 'digits', '--img-size', 32)
    options = ('--teacher', teacher, '--distillation-tau', 2, '-o', tmp_path / 'run')  # of a model with a token: hard
    code, _, err = cli(*line, *options)
    assert code == 2
    assert '--distillation-tau cannot be combined with hard predictions of a teacher.' in err


def test_a_folder_in_the_way_does_not_change_what_a_registered_name_means(tmp_path, monkeypatch) -> None:
    (tmp_path / 'digits').mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_unlabelled('digits').name == 'digits'
    assert find_images('digits').classes
