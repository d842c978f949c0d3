"""The published numbers and the tables that say what each needs."""

import re
import shlex
from collections import Counter
from pathlib import Path

import pytest
import timm
from typer.main import get_command

from tinyvit_zoo.cli.app import app
from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.data.registry import find_entry as find_data
from tinyvit_zoo.downstream.reproduce.entries import ENTRIES, PAPERS, find_entry, find_rows, numbers_of, subject_of
from tinyvit_zoo.downstream.reproduce.numbers import read_numbers
from tinyvit_zoo.downstream.reproduce.record import DATA, Need, need_of
from tinyvit_zoo.downstream.reproduce.tasks import COUNT

DOWNSTREAM = Path(__file__).parent.parent / 'downstream'
NUMBERS = read_numbers()
SUBJECTS = [subject for paper in PAPERS.values() for subject in paper.subjects.values()]


def test_every_number_has_an_id_of_its_own():
    ids = [number.id for number in NUMBERS]
    assert len(ids) == len(set(ids)) == 1029
    wrong = [i for i in ids if not re.fullmatch(r'[a-z_]+/[a-z0-9_]+/[a-z0-9.-]+/[\w.-]+(/[a-z0-9-]+)?', i)]
    assert wrong == []
    assert [n.id for n in NUMBERS if n.id.endswith(n.dataset) != (n.dataset != '-')] == []


def test_every_number_belongs_to_one_of_39_entries():
    per_entry = Counter(number.entry for number in NUMBERS)
    assert per_entry.keys() == ENTRIES.keys()
    assert len(ENTRIES) == 39
    assert sum(name.endswith('/text') for name in ENTRIES) == 3
    assert sum(name.endswith('/readme') for name in ENTRIES) == 4
    assert sum(len(numbers_of(entry)) for entry in ENTRIES.values()) == 1029
    assert Counter(n.paper for n in NUMBERS) == dict(tinyvit=420, minivit=358, tinymim=155, mae_lite=96)


def test_an_id_names_paper_table_row_metric_and_data_set():
    number = next(n for n in NUMBERS if n.id == 'tinyvit/table5/tinyvit-21m-in-1k-scratch/accuracy-20shot/eurosat')
    assert (number.value, number.model, number.task) == ('91.0', 'TinyViT-21M (IN-1k scratch)', 'few_shot_5way_20shot')
    assert (number.entry, number.row, number.cell) == (
        'tinyvit/table5', 'tinyvit-21m-in-1k-scratch', 'accuracy-20shot/eurosat',
    )  # fmt: skip
    assert number.half_unit == 0.05


def test_what_the_numbers_need():
    needs = Counter(need_of(number.task, number.dataset) for number in NUMBERS)
    assert needs == {
        Need.NOTHING: 273, Need.IMAGENET: 455, Need.TRANSFER: 134, Need.COCO: 64, Need.ADE20K: 42, Need.HARDWARE: 54,
        Need.IMAGENET_22K: 7,
    }  # fmt: skip


def test_every_row_has_a_model_or_is_quoted():
    for paper in PAPERS.values():
        names = {number.model for number in NUMBERS if number.paper == paper.name}
        named = {name.partition(' @ ')[0] for name in paper.subjects}
        assert named | paper.quoted == names, paper.name
        assert not named & paper.quoted, paper.name


def test_models_and_weights_are_those_of_timm_and_of_this_package():
    names = {name for subject in SUBJECTS for name in (subject.name, *subject.also) if name}
    assert {name for name in names if not timm.is_model(name)} == set()
    tagged = {subject.name for subject in SUBJECTS if subject.weights}
    assert len(tagged) > 50
    assert {name for name in tagged if '.' not in name or timm.get_pretrained_cfg(name) is None} == set()


def test_every_number_has_a_job_and_its_data_a_source():
    for number in NUMBERS:
        assert number.task in ENTRIES[number.entry].jobs, number.id
        if number.dataset != '-':
            assert DATA[number.dataset].url.startswith('https://'), number.id
    names = {data.name for data in DATA.values()} - {'', 'imagenet-c'}
    assert [name for name in names if find_data(name) is None] == []


def test_every_trainer_is_a_command_with_its_options():
    steps = [subject.trainer.split(' && ') for subject in SUBJECTS if subject.trainer]
    assert len(steps) > 30
    lines = {line.removeprefix('tinyvit-zoo ') for each in steps for line in each}
    root = get_command(app)
    for line in lines:
        command, words = root, shlex.split(line)
        while hasattr(command, 'commands'):
            command = command.commands[words.pop(0)]
        options = {option for p in command.params for option in (*p.opts, *p.secondary_opts)}
        assert [word for word in words if word.startswith('-') and word not in options] == [], line


def test_a_student_that_is_made_first_is_the_one_that_is_counted():
    made = [subject for subject in SUBJECTS if subject.name == 'multiplexed']
    assert made
    for subject in made:
        first, then = subject.trainer.split(' && ')
        words = shlex.split(first)
        options = dict(subject.options)
        assert words[:2] == ['compress', options['base']]
        assert words[words.index('--share-every') + 1] == str(options['share_every'])
        assert ('--no-transform' in words, '--share-norms' in words) == (not options['transform'], True)
        assert words[words.index('-o') + 1] == 'START'
        assert '--student START' in then


def test_detectors_and_segmenters_have_packaged_configs():
    configs = {subject.config for subject in SUBJECTS} - {''}
    assert len(configs) > 5
    assert configs <= {path.stem for path in DOWNSTREAM.glob('*/configs/*.py')}


def test_a_job_that_counts_is_that_of_a_number_that_needs_nothing():
    for number in NUMBERS:
        counted = ENTRIES[number.entry].jobs[number.task] == COUNT
        assert counted == (need_of(number.task, number.dataset) is Need.NOTHING), number.id


def test_rows_are_found_by_name():
    entry = find_entry('minivit/table2')
    some = find_rows(entry, ['mini-deit-b-sharing-all-layers'])
    assert [number.cell for number in some] == ['params_m', 'params_ratio_x', 'top1/imagenet-1k', 'top5/imagenet-1k']
    assert subject_of(some[0]).options == {'repeats': 12}
    with pytest.raises(EvaluationError, match=r"minivit/table2 has no row 'mini-deit': .* mini-deit-b-sharing"):
        find_rows(entry, ['mini-deit'])
    with pytest.raises(
        EvaluationError, match=r"No table is called 'tinyvit/tabel5': the nearest names are tinyvit/table5"
    ):
        find_entry('tinyvit/tabel5')


def test_weights_may_depend_on_the_data_set():
    rows = {number.cell: subject_of(number) for number in numbers_of(ENTRIES['mae_lite/table5'])}
    assert rows['top1/imagenet-1k'].name.endswith('dmae_in1k_ft_in1k')
    assert rows['top1/flowers-102'].name.endswith('encoder_patch16_224.dmae_in1k')
