"""`tinyvit-zoo pretrain tinymim|mae|d_mae|mocov3`: what is written, how to go on, chains, refusals."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import refused
from PIL import Image
from safetensors.torch import load_file
from timm.scheduler import CosineLRScheduler

from tinyvit_zoo.checkpoints import CheckpointError
from tinyvit_zoo.cli.console import quiet_logs
from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.downstream.reports.pretraining import finetune_words
from tinyvit_zoo.hub import save_folder
from tinyvit_zoo.models import PlainVit
from tinyvit_zoo.pretrain import (
    DMae,
    RelationEncoder,
    load_pretraining,
    mae_lite_small,
    mae_lite_tiny,
    mocov3_tiny,
    tinymim_student,
    tinymim_teacher,
)
from tinyvit_zoo.training.chain import find_stages
from tinyvit_zoo.training.pretraining import Pretraining
from tinyvit_zoo.training.pretraining_forms import d_mae_form, encoder_of, load_teacher, tinymim_form

SHAPE = dict(img_size=32, patch_size=16)
BRIEF = ('--small', '--epochs', 1, '--batch-size', 8, '--device', 'cpu')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """32 images of noise in two classes, a quarter of them to test on."""
    folder, rng = tmp_path_factory.mktemp('data'), np.random.default_rng(0)
    for i in range(32):
        place = folder / ('train' if i % 4 else 'test') / 'ab'[i // 4 % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (36, 40, 3), dtype=np.uint8)).save(place / f'{i}.png')
    return folder


@pytest.fixture(scope='module')
def teacher_file(tmp_path_factory):
    file = tmp_path_factory.mktemp('teacher') / 'small.pth'
    torch.manual_seed(2)
    torch.save({'model': tinymim_teacher('small', **SHAPE).vit.state_dict()}, file)
    return file


def next_command(out: str) -> list[str]:
    (line,) = [line for line in out.splitlines() if line.startswith('Next: ')]
    program, *words = shlex.split(line.removeprefix('Next: '))
    assert program == 'tinyvit-zoo'
    return words


def test_mae_leaves_an_encoder_its_form_and_the_way_on(cli, data, tmp_path):
    run = tmp_path / 'run'
    code, out, err = cli('pretrain', 'mae', '-d', data, '-o', run, '--img-size', 32, *BRIEF)
    assert code == 0, err
    results = json.loads((run / 'results.json').read_text())
    assert (results['heads'], results['heads_in_finetuning'], results['mask_ratio']) == (12, 12, 0.75)
    assert results['recipe']['name'] == 'mae_small'
    form = mae_lite_tiny(**SHAPE)
    load_pretraining(form, load_file(run / 'form.safetensors'))
    encoder = timm.create_model(f'local-dir:{run / "model"}', pretrained=True)
    own = form.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in encoder.state_dict().items())
    assert json.loads((run / 'model' / 'config.json').read_text())['model_args']['num_heads'] == 12
    assert next_command(out)[:5] == [
        'finetune', 'mae_lite_vit_tiny_patch16_224', '--weights', str(run / 'model'), '--img-size'
    ]  # fmt: skip


@pytest.mark.parametrize('keep', [False, True])
def test_tiny_is_fine_tuned_with_the_released_heads_or_with_its_own(keep, cli, data, teacher_file, tmp_path):
    run = tmp_path / 'run'
    options = ('--keep-heads',) if keep else ()
    code, out, err = cli(
        'pretrain', 'tinymim', '--student', 'tiny', '--teacher', 'small', '--teacher-weights', teacher_file, '-d', data,
        '-o', run, *BRIEF, *options,
    )  # fmt: skip
    assert code == 0, err
    arguments = json.loads((run / 'model' / 'config.json').read_text())['model_args']
    assert (arguments['num_heads'], arguments['last_heads']) == (6, 12)
    assert ('--keep-heads keeps 6' in out) is not keep
    if keep:
        assert next_command(out)[1] == str(run / 'finetune')
        assert timm.create_model(f'local-dir:{run / "finetune"}', pretrained=True).blocks[0].attn.num_heads == 6
    else:
        assert next_command(out)[1] == 'tinymim_vit_tiny_patch16_224'
    student = tinymim_student('tiny', **SHAPE)
    load_pretraining(student, run / 'model')


@pytest.mark.parametrize('keep', [False, True])
def test_finetune_says_that_the_encoder_had_other_heads_and_keeps_them_where_it_is_told_to(keep, cli, data, tmp_path):
    encoder = timm.create_model('tinymim_vit_tiny_student_patch16_224', img_size=32)
    save_folder(encoder, tmp_path / 'encoder')
    options = ('--keep-heads',) if keep else ()
    code, out, err = cli(
        'finetune', 'tinymim_vit_tiny_patch16_224', '--weights', tmp_path / 'encoder', '--as-init', '--img-size', 32,
        '-d', data, '-o', tmp_path / 'run', '--epochs', 1, '--batch-size', 8, '--device', 'cpu', *options,
    )  # fmt: skip
    assert code == 0, err
    assert ('Heads: 3, where the encoder was pre-trained with 6' in out) is not keep
    model = timm.create_model(f'local-dir:{tmp_path / "run" / "model"}', pretrained=True)
    assert {block.attn.num_heads for block in model.blocks} == {6 if keep else 3}


def test_heads_that_nothing_shows_cannot_be_kept(cli, data, tmp_path):
    file = saved(tmp_path, tinymim_student('tiny', **SHAPE).vit.state_dict())
    finetune = ('finetune', 'tinymim_vit_tiny_patch16_224', '--keep-heads', '-d', data, '-o', tmp_path / 'run')
    for options, words in (
        ((), 'only with --as-init'),
        (('--as-init', '--weights', file), 'shows its number of heads'),
    ):
        code, _, err = cli(*finetune, *options)
        assert code == 2
        assert words in ' '.join(err.replace('│', ' ').split())


@pytest.mark.slow
def test_a_chain_hands_each_result_on_and_goes_on_in_the_stage_that_was_killed(
    cli, data, teacher_file, tmp_path, monkeypatch
):
    run = tmp_path / 'run'
    torch.manual_seed(2)
    teacher = tmp_path / 'base.pth'
    torch.save({'model': tinymim_teacher('base', depth=12, **SHAPE).vit.state_dict()}, teacher)
    arguments = (
        'pretrain', 'tinymim', '--chain', 'base,small,tiny', '--teacher-weights', teacher, '-d', data, '-o', run, *BRIEF
    )  # fmt: skip
    train, trained = Pretraining.train, []

    def killed_in_the_second(self, output):
        if trained:
            raise KeyboardInterrupt
        trained.append(output)
        return train(self, output)

    monkeypatch.setattr(Pretraining, 'train', killed_in_the_second)
    assert cli(*arguments)[0] == 130
    monkeypatch.setattr(Pretraining, 'train', train)
    before = load_file(run / 'small' / 'form.safetensors')
    code, out, err = cli(*arguments)
    assert code == 0, err
    assert f'{run / "small"}: resumed after epoch 1 of 1.' in out
    after = load_file(run / 'small' / 'form.safetensors')
    assert all(torch.equal(before[key], after[key]) for key in after)
    results = json.loads((run / 'tiny' / 'results.json').read_text())
    assert results['teacher_weights'] == str(run / 'small' / 'model' / 'model.safetensors')


@pytest.mark.parametrize(
    ('student', 'teacher', 'chain', 'words'),
    [
        (None, None, None, 'give --student and --teacher, or --chain'),
        ('tiny', None, ('large', 'base'), 'leave --student out'),
        (None, None, ('large',), 'such as large,base,small,tiny, not large'),
        (None, None, ('large', 'huge'), 'not large,huge'),
        (None, None, ('base', 'tiny', 'small'), 'it teaches nobody'),
    ],
)
def test_chains_that_are_none_are_refused(student, teacher, chain, words, tmp_path):
    with pytest.raises(EvaluationError, match=words):
        find_stages(student, teacher, None, chain, tmp_path)


def test_a_dry_run_says_steps_hours_and_memory_and_writes_nothing(cli, data, tmp_path):
    code, out, _ = cli('pretrain', 'mae', '-d', data, '-o', tmp_path / 'run', '--img-size', 32, *BRIEF, '--dry-run')
    assert code == 0
    assert out.startswith('3 updates in 3 steps; about ')
    assert not (tmp_path / 'run').exists()


# refusals, each one sentence


def refusal(cli, data, tmp_path, *arguments) -> str:
    code, _, err = cli('pretrain', *arguments, '-d', data, '-o', tmp_path / 'run', *BRIEF)
    assert code == 1
    assert err.count('\n') == 1
    return err


def saved(tmp_path, state_dict):
    torch.save({'model': state_dict}, tmp_path / 'teacher.pth')
    return tmp_path / 'teacher.pth'


def test_a_fine_tuned_file_is_no_teacher(cli, data, tmp_path):
    file = saved(tmp_path, timm.create_model('tinymim_vit_small_patch16_224', img_size=32).state_dict())
    taught = ('tinymim', '--student', 'tiny', '--teacher', 'small', '--teacher-weights', file)
    assert 'is a fine-tuned model, and a teacher is a pre-trained encoder' in refusal(cli, data, tmp_path, *taught)


def test_a_decoder_shows_that_the_heads_are_others(cli, data, tmp_path):
    file = saved(tmp_path, mae_lite_small(**SHAPE).state_dict())
    taught = ('tinymim', '--student', 'tiny', '--teacher', 'small', '--teacher-weights', file)
    assert 'is of a model with 12 heads (it holds the decoder' in refusal(cli, data, tmp_path, *taught)


def test_a_fine_tuned_file_or_folder_is_no_teacher_whatever_its_name(tmp_path):
    model = timm.create_model('vit_tiny_patch16_224', img_size=32, depth=1, num_classes=3)
    save_folder(model, tmp_path / 'folder')
    for teacher in (
        ('vit_tiny_patch16_224', saved(tmp_path, model.state_dict())), (str(tmp_path / 'folder'),)
    ):  # fmt: skip
        refused(lambda teacher=teacher: load_teacher(*teacher), 'is a fine-tuned model', kind=EvaluationError)


def test_the_decoder_of_a_file_is_left_out_and_a_name_with_other_heads_refused(tmp_path):
    mae = mae_lite_tiny(**SHAPE)
    file, own = saved(tmp_path, mae.state_dict()), mae.state_dict()
    teacher = load_teacher('mae_lite_vit_tiny_encoder_patch16_224', file)
    assert (teacher.heads, teacher.vit.patch_embed.img_size) == (12, (32, 32))
    assert all(torch.equal(value, own[key]) for key, value in teacher.vit.state_dict().items())
    refused(lambda: load_teacher('vit_tiny_patch16_224', file), 'is of a model with 12 heads', kind=CheckpointError)


def test_heads_that_do_not_divide_the_width_of_the_student_are_refused():
    teacher = RelationEncoder(PlainVit(embed_dim=40, depth=1, num_heads=5, **SHAPE), 1, frozen=True)
    with pytest.raises(EvaluationError, match='5 heads in its block 1, and the width 192 of the tiny student'):
        tinymim_form('tiny', teacher, **SHAPE)


def test_what_does_not_match_is_named_before_the_first_batch(cli, data, teacher_file, tmp_path):
    taught = ('--teacher', 'small', '--teacher-weights', teacher_file)
    assert 'Of 4 patches' in refusal(cli, data, tmp_path, 'mae', '--img-size', 32, '--mask-ratio', 0.9)
    for method in (('tinymim', '--student', 'tiny'), ('d_mae',)):
        assert 'patches' in refusal(cli, data, tmp_path, *method, *taught, '--patch-size', 8)
    assert 'block counts from 1' in refusal(cli, data, tmp_path, 'tinymim', '--student', 'tiny', *taught, '--block', 13)
    assert 'attention_blocks count from 1' in refusal(cli, data, tmp_path, 'd_mae', *taught, '--attention-blocks', 13)


def test_blocks_of_d_mae_are_compared_one_by_one():
    teacher = PlainVit(embed_dim=24, depth=3, num_heads=3, **SHAPE)
    refused(
        lambda: d_mae_form('tiny', teacher, (2,), (), depth=2, **SHAPE), 'the student has 2, the teacher 3',
        kind=EvaluationError,
    )  # fmt: skip


def test_a_model_folder_with_other_files_is_refused_before_the_training(cli, data, tmp_path):
    (tmp_path / 'run' / 'model').mkdir(parents=True)
    (tmp_path / 'run' / 'model' / 'notes.txt').write_text('mine')
    said = refusal(cli, data, tmp_path, 'mae', '--img-size', 32, *BRIEF)
    assert 'holds other files (notes.txt)' in said
    assert [path.name for path in (tmp_path / 'run').iterdir()] == ['model']


def test_relations_that_are_none_leave_no_run(cli, data, teacher_file, tmp_path):
    options = ('--student', 'tiny', '--teacher', 'small', '--teacher-weights', teacher_file, '--relations', 'qq,xx')
    assert 'qq, kk, vv, qk' in refusal(cli, data, tmp_path, 'tinymim', *options, '--img-size', 32, *BRIEF)
    assert not (tmp_path / 'run').exists()


def test_the_next_command_is_one_of_the_shell():
    encoder = encoder_of(mae_lite_tiny(**SHAPE), 'tiny')
    words = finetune_words(Path('my run'), encoder, ['my images', '--root', 'data'])
    assert shlex.split(words)[2:] == [
        'mae_lite_vit_tiny_patch16_224', '--weights', 'my run/model', '--img-size', '32', '--as-init',
        '-d', 'my images', '--root', 'data', '-o', 'my run-finetuned',
    ]  # fmt: skip


def test_timm_does_not_warn_of_a_training_of_one_update(caplog):
    quiet_logs()
    CosineLRScheduler(torch.optim.SGD([torch.zeros(1)]), t_initial=1)
    assert not caplog.records


def test_no_room_for_the_form_is_one_sentence_and_the_same_command_writes_the_rest(cli, data, tmp_path, monkeypatch):
    arguments = ('pretrain', 'mae', '-d', data, '-o', tmp_path / 'run', '--img-size', 32, *BRIEF)

    def full(*args):
        raise OSError(28, 'No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr('tinyvit_zoo.downstream.reports.pretraining.write_safetensors', full)
        code, _, err = cli(*arguments)
    assert (code, err.count('\n')) == (1, 1)
    assert 'No space left on device' in err
    assert not (tmp_path / 'run' / 'form.safetensors').exists()
    assert cli(*arguments)[0] == 0
    assert (tmp_path / 'run' / 'form.safetensors').exists()


def test_a_size_without_weights_says_which_name_has_them(cli, data, tmp_path):
    message = refusal(cli, data, tmp_path, 'tinymim', '--student', 'base', '--teacher', 'large')
    assert 'give --teacher-weights FILE, or the name vit_large_patch16_224.mae' in message


def test_only_plain_vits_teach(cli, data, tmp_path):
    file = saved(tmp_path, timm.create_model('test_resnet').state_dict())
    with pytest.raises(EvaluationError, match='only plain ViTs can teach here'):
        load_teacher('test_resnet', file)


# end to end


@pytest.mark.slow
@pytest.mark.parametrize('method', ['tinymim', 'mae', 'd_mae', 'mocov3'])
def test_what_each_says_at_its_end_fine_tunes(method, cli, data, teacher_file, tmp_path):
    taught = ('--teacher', 'small', '--teacher-weights', teacher_file)
    of = dict(tinymim=('--student', 'tiny', *taught), d_mae=(*taught, '--hidden-layers', '6,12'))
    patch = () if method in ('tinymim', 'd_mae') else ('--img-size', 32)
    code, out, err = cli('pretrain', method, *of.get(method, ()), *patch, '-d', data, '-o', tmp_path / 'run', *BRIEF)
    assert code == 0, err
    code, out, err = cli(*next_command(out), '--epochs', 1, '--batch-size', 8, '--device', 'cpu')
    assert code == 0, err
    assert 'test accuracy' in out
    if method == 'd_mae':
        form = DMae(mae_lite_tiny(**SHAPE), tinymim_teacher('small', **SHAPE).vit, hidden_layers=(6, 12))
        load_pretraining(form, tmp_path / 'run' / 'form.safetensors')
    if method == 'mocov3':
        load_pretraining(mocov3_tiny(**SHAPE), tmp_path / 'run' / 'form.safetensors')


@pytest.mark.slow
@pytest.mark.parametrize(
    'options',
    [
        ('--target', 'attention_residual', '--drop-path', 0.2),
        ('--target', 'cls', '--teacher-drop-path', 0.1),
        ('--relations', 'qq,kk,vv', '--no-softmax', '--block', 9),
        ('--mask-ratio', 0.5, '--reconstruct'),
    ],
    ids=['feature', 'cls', 'relations', 'masked'],
)
def test_the_options_of_tinymims_study_train(options, cli, data, teacher_file, tmp_path):
    code, _, err = cli(
        'pretrain', 'tinymim', '--student', 'tiny', '--teacher', 'small', '--teacher-weights', teacher_file, '-d', data,
        '-o', tmp_path / 'run', *BRIEF, *options,
    )  # fmt: skip
    assert code == 0, err
    encoder = timm.create_model(f'local-dir:{tmp_path / "run" / "model"}', pretrained=True)
    assert encoder.stops_early is ('--relations' in options)
