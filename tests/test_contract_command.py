"""`tinyvit-zoo contract`: what it searches, its refusals, what it leaves, and two processes of a launcher."""

import csv
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from fake_datasets import class_folders
from PIL import Image

from tinyvit_zoo.build import build_model
from tinyvit_zoo.cli import contract as command
from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.data import load_dataset
from tinyvit_zoo.downstream.reports.contract import tree, write_contraction
from tinyvit_zoo.hub import save_folder
from tinyvit_zoo.training import short_training
from tinyvit_zoo.training.contraction import Contraction, Limits, Step, estimate
from tinyvit_zoo.training.contraction_factors import Candidate, factors_of
from tinyvit_zoo.training.contraction_outcomes import Outcome, rank
from tinyvit_zoo.training.recipes.contraction import CONTRACTION

START = dict(
    embed_dims=(32, 48, 64, 64), num_heads=(2, 3, 4, 4), depths=(1, 1, 1, 1), mlp_ratio=1.0, mbconv_expand_ratio=1.0,
    num_classes=10, img_size=32,
)  # fmt: skip


def make(**arguments) -> torch.nn.Module:
    return timm.create_model('tinyvit_5m_224', **{**START, **arguments})


@pytest.fixture
def asked_for(cli, tmp_path, monkeypatch):
    """The arguments of the search that a command line asks for; nothing is trained."""

    def run(*args):
        calls = []

        def stop(make, name, dataset, recipe, output, **options):
            calls.append(SimpleNamespace(make=make, name=name, dataset=dataset, recipe=recipe, **options))
            raise EvaluationError('Enough.')

        monkeypatch.setattr('tinyvit_zoo.training.contraction.contract', stop)
        code, _, err = cli('contract', *args, '-d', 'digits', '-o', tmp_path / 'out')
        return calls[0] if calls else (code, err)

    return run


def test_the_command_asks_for_what_it_is_given(asked_for):
    asked = asked_for('tinyvit_21m_224', '--params', '11M', '--throughput', '1.4x', '--img-size', 32, '--seed', 3)
    assert (asked.parameters, asked.throughput, asked.steps, asked.held_out) == (11_000_000, 1.4, None, None)
    assert (asked.recipe, asked.seed, asked.dataset.split) == (CONTRACTION, 3, 'train')
    model = asked.make(device='meta', depths=(1, 1, 1, 1))
    assert (model.num_classes, model.img_size) == (10, (32, 32))
    assert [len(stage.blocks) for stage in model.stages] == [1, 1, 1, 1]


def test_the_short_training_can_be_changed(asked_for):
    args = ('--params', '2.5M', '--epochs', 3, '--batch-size', 64, '--steps', 4, '--held-out', 0.3)
    asked = asked_for('tinyvit_5m_224', *args)
    assert (asked.recipe.epochs, asked.recipe.batch_size, asked.steps, asked.held_out) == (3, 64, 4, 0.3)
    assert asked_for('tinyvit_5m_224', '--params', '2M', '--recipe', 'tinyvit_scratch').recipe.name == 'tinyvit_scratch'


@pytest.mark.parametrize(
    ('text', 'number'), [('11M', 11_000_000), ('5.4m', 5_400_000), ('350k', 350_000), ('10,996,972', 10_996_972)]
)
def test_parameters_are_read_with_their_unit(text, number):
    assert command.read_parameters(text) == number
    assert command.read_parameters(str(command.read_parameters(text))) == number


@pytest.mark.parametrize(
    ('option', 'text', 'words'),
    [
        ('--params', 'many', "takes a number of parameters such as 11M or 350k, not 'many'"),
        ('--params', '0', 'takes a number of parameters'),
        ('--throughput', 'fast', "such as 1.4x, not 'fast'"),
    ],
)
def test_what_is_no_limit_is_a_wrong_command_line(asked_for, option, text, words):
    code, err = asked_for('tinyvit_5m_224', *(('--params', '2M') if option != '--params' else ()), option, text)
    assert code == 2
    assert words in ' '.join(err.split())


@pytest.mark.parametrize(
    ('args', 'words'),
    [
        (('tinyvit_5m_224', '--params', '30M'), '--params 30,000,000 is not below the'),
        (('resnet10t', '--params', '1M'), 'resnet10t is not a TinyViT'),
        (('tinyvit_5m_224', '--params', '1k'), 'is less than the smallest model'),
        (('tinyvit_5m_224', '--params', '2M', '--throughput', '0.5x'), 'is slower than tinyvit_5m_224 itself'),
        (('tinyvit_5m_224', '--params', '2M', '--batch-size', 5000), 'cannot fill a batch of 5000'),
        (('tinyvit_5m_224', '--params', '2M', '--recipe', 'long'), "There is no recipe 'long'"),
    ],
)
def test_a_search_that_cannot_be_is_refused_in_a_sentence(cli, tmp_path, args, words):
    code, _, err = cli('contract', *args, '-d', 'digits', '--img-size', 32, '-o', tmp_path / 'out')
    assert code == 1
    assert err.count('\n') == 1
    assert words in err
    assert not (tmp_path / 'out').exists()


def test_images_of_one_class_rank_nothing(tmp_path):
    digits = load_dataset('digits', 'train')
    ones = digits.subset(np.flatnonzero(digits.labels == 1))
    with pytest.raises(EvaluationError, match='are of one class: there is nothing to rank candidates by'):
        estimate(make, 'x', ones, CONTRACTION, parameters=60_000)


def test_an_estimate_names_candidates_within_the_limit_and_a_time():
    digits = load_dataset('digits', 'train').subset(range(100))
    found = estimate(make, 'x', digits, CONTRACTION, parameters=68_000, device=torch.device('cpu'))
    assert found.limits[-1] == Limits(68_000, None)
    assert {candidate.name for candidate in found.first} > {'D', 'D1', 'E'}
    assert max(candidate.parameters for candidate in found.first) <= found.limits[0].parameters
    assert found.seconds > 0


def test_a_throughput_is_measured_in_turn_with_the_start_model(monkeypatch):
    monkeypatch.setattr(short_training, 'ROUNDS', 1)
    digits = load_dataset('digits', 'train').subset(range(40))
    start = factors_of(make(device='meta'), 'x')
    run = dict(device=torch.device('cpu'))
    training = short_training.ShortTraining(make, start, digits, digits, CONTRACTION, run)
    calls = []

    def measured(variants, rounds):
        calls.append((list(variants), rounds, [call().shape for call in variants.values()]))
        return dict(start=[3.0], candidate=[2.0])

    monkeypatch.setattr(short_training, 'measure', measured)
    assert training.throughput(Candidate('E', start, 10)) == 1.5
    assert calls == [(['start', 'candidate'], 1, [(32, 10), (32, 10)])]


def test_the_files_of_a_search(tmp_path):
    model, digits = make(), load_dataset('digits', 'train').subset(range(40))
    start = factors_of(model, 'x')
    found = [Outcome(Candidate(name, start, size), 1.5, np.arange(20) < right)
             for name, size, right in (('D', 50_000, 4), ('E', 60_000, 19))]  # fmt: skip
    slow = Outcome(Candidate('R', start, 55_000), 1.1, None)
    step = Step(1, Limits(70_000, 1.4), tuple(rank(found)), (slow,))
    result = Contraction(model, start.arguments(start), start, 96_977, (step,), 20, 20, CONTRACTION)
    said = []
    write_contraction(tmp_path, result, digits, name='tinyvit_5m_224', seed=0, say=said.append)
    content = json.loads((tmp_path / 'tree.json').read_text())
    assert content == tree(result, 'tinyvit_5m_224')
    assert [c['name'] for c in content['steps'][0]['candidates']] == ['E', 'D']
    assert content['steps'][0]['too_slow'][0]['held_out_accuracy'] is None
    assert content['winner']['arguments']['embed_dims'] == [32, 48, 64, 64]
    with (tmp_path / 'candidates.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert [(row['place'], row['name'], row['D']) for row in rows] == [
        ('1', 'E', '32-48-64-64'), ('2', 'D', '32-48-64-64'), ('', 'R', '32-48-64-64')
    ]  # fmt: skip
    with Image.open(tmp_path / 'parameters.png') as image:
        assert min(image.size) > 300
    results = json.loads((tmp_path / 'results.json').read_text())
    assert (results['evaluator'], results['winner']['name']) == ('contract', 'tinyvit_5m_224')
    again = timm.create_model(f'local-dir:{tmp_path / "model"}', pretrained=True)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in again.state_dict().items())
    assert any(line.startswith('As arguments: ') and 'embed_dims=(32, 48, 64, 64)' in line for line in said)


@pytest.mark.slow
def test_two_processes_of_torchrun_search_together_and_the_result_can_be_loaded(tmp_path):
    save_folder(make(num_classes=2), tmp_path / 'start')
    class_folders(tmp_path / 'photos' / 'train', ('cat', 'dog'), images=20)
    args = [
        sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2', '-m', 'tinyvit_zoo.cli',
        'contract', tmp_path / 'start', '-d', tmp_path / 'photos', '--params', '68k', '--steps', '1', '--epochs', '1',
        '--device', 'cpu', '-o', tmp_path / 'run',
    ]  # fmt: skip
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    texts = [
        subprocess.run([str(arg) for arg in args], capture_output=True, text=True, timeout=500, env=env, check=True)
        for _ in range(2)
    ]
    found = json.loads((tmp_path / 'run' / 'tree.json').read_text())
    candidates = found['steps'][0]['candidates']
    assert len(candidates) > 4
    assert max(candidate['parameters'] for candidate in candidates) <= 68_000
    assert [text.stdout.count('Step 1 goes to') for text in texts] == [1, 1]  # one process speaks
    rankings = [[line for line in text.stdout.splitlines() if line.startswith('  ')] for text in texts]
    assert rankings[0] == rankings[1]  # the second run has read all of it
    model = build_model(str(tmp_path / 'run'), pretrained=True)
    assert sum(p.numel() for p in model.parameters()) == found['winner']['parameters']
