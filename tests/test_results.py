"""Results of an evaluation: plain values, whole files, figures of every size."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from conftest import refused
from matplotlib.figure import Figure
from PIL import Image

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.hashes import state_hash
from tinyvit_zoo.data.offline import digits
from tinyvit_zoo.downstream.reports import plots
from tinyvit_zoo.downstream.results import eval_results_entry, plain, record, write
from tinyvit_zoo.downstream.statistics import half_width


@pytest.fixture(scope='module')
def model():
    return timm.create_model('test_vit', num_classes=10)


def test_a_record_describes_model_data_and_environment(model, monkeypatch):
    monkeypatch.setattr('sys.argv', ['tinyvit-zoo', 'evaluate', 'a model', '--seed', '3'])
    data = digits('test')
    made = record('knn', model=model, dataset=data, seed=3, name='my name', k=[10, 20])
    assert json.loads(json.dumps(made)) == made
    assert made['model'] == dict(
        name='my name',
        architecture='test_vit',
        parameters=sum(p.numel() for p in model.parameters()),
        weights_sha256=state_hash(model),
        input_size=[3, 160, 160],
    )
    assert made['data'] == dict(
        name='digits', split='test', images=len(data), classes=10, complete=True, unreadable_left_out=[],
        sha256=data.fingerprint(),
    )  # fmt: skip
    assert made['command'] == "tinyvit-zoo evaluate 'a model' --seed 3"
    assert made['versions']['torch'] == torch.__version__
    assert made['versions']['timm'] == timm.__version__
    assert (made['evaluator'], made['seed'], made['k']) == ('knn', 3, [10, 20])


def test_a_record_accepts_several_data_sets_or_none(model):
    made = record('probe', model=None, dataset=dict(train=digits('train'), test=digits('test')), seed=None)
    assert [made['data'][key]['split'] for key in ('train', 'test')] == ['train', 'test']
    assert made['model'] is None
    assert record('probe', model=model, dataset=None, seed=0)['data'] is None


def test_results_of_any_numeric_kind_become_plain():
    @dataclass(frozen=True)
    class Result:
        mean: float
        per_class: np.ndarray

    values = dict(
        a=Result(np.float32(0.5), np.array([1, 2])), b=torch.tensor([1.5, float('nan')]), c=(Path('x'), torch.float32),
        d=np.int64(3), e={1: float('inf')}, f=np.bool_(True),
    )  # fmt: skip
    assert plain(values) == dict(
        a=dict(mean=0.5, per_class=[1, 2]), b=[1.5, None], c=['x', 'torch.float32'], d=3, e={'1': None}, f=True
    )
    with pytest.raises(TypeError, match='object'):
        plain([object()])


def test_an_interval_of_few_samples_is_students():
    # Tables of t: 12.706 with 1 degree of freedom, 2.776 with 4.
    assert half_width(0.5, 2) == pytest.approx(0.5 * 12.706, abs=1e-3)
    assert half_width(np.array([[1.0, 2.0]]), 5) == pytest.approx(np.array([[2.776, 5.553]]), abs=1e-3)


def test_everything_is_written_and_reported(tmp_path):
    said = []
    path = write(
        tmp_path / 'new' / 'folder',
        dict(accuracy=np.float64(91.5)),
        tables=dict(classes=[dict(name='tench, a fish', top1=1.0), dict(name='cock', images=2)]),
        figures=dict(bars=plots.per_class_bars(np.array([50.0]), ['a'], title='t')),
        eval_results={'imagenet-1k': 'text\n', 'digits': None},
        say=said.append,
    )
    assert json.loads(path.read_text()) == dict(accuracy=91.5)
    with (path.parent / 'classes.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert rows == [dict(name='tench, a fish', top1='1.0', images=''), dict(name='cock', top1='', images='2')]
    with Image.open(path.parent / 'bars.png') as image:
        assert min(image.size) > 200
    files = {p.relative_to(path.parent).as_posix() for p in path.parent.rglob('*') if p.is_file()}
    assert files == {'results.json', 'classes.csv', 'bars.png', '.eval_results/imagenet-1k.yaml'}
    assert len(said) == 1
    assert all(name in said[0] for name in (*files, str(path.parent)))


def test_file_names_that_are_no_utf_8_are_written_as_escapes(tmp_path):
    name = b'b\xe9.png'.decode(errors='surrogateescape')
    path = write(tmp_path, dict(left_out=[name]), tables=dict(files=[dict(name=name)]), say=lambda line: None)
    assert json.loads(path.read_text()) == dict(left_out=[name])
    assert 'b\\udce9.png' in (tmp_path / 'files.csv').read_text()


def test_a_failing_file_keeps_the_old_ones_and_leaves_no_other(tmp_path):
    class Broken(Figure):
        def savefig(self, *args, **kwargs):
            raise OSError('No space left on device')

    write(tmp_path, dict(old=1), say=lambda line: None)
    refused(
        lambda: write(tmp_path, dict(new=1), figures=dict(f=Broken())),
        str(tmp_path), 'No space left', kind=EvaluationError,
    )  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ['results.json']
    assert json.loads((tmp_path / 'results.json').read_text()) == dict(old=1)


def test_a_file_in_place_of_the_folder_is_refused_in_one_sentence(tmp_path):
    (tmp_path / 'out').write_text('')
    refused(lambda: write(tmp_path / 'out', {}), 'out', kind=EvaluationError)


def test_an_entry_for_the_card_names_the_page_the_accuracy_and_this_package():
    (entry,) = yaml.safe_load(eval_results_entry('imagenet-v2', 70.12345, notes='top-1 accuracy, %; 224 px'))
    assert entry['dataset'] == dict(id='vaishaal/ImageNetV2', task_id='default')
    assert entry['value'] == 70.1235
    assert 'top-1 accuracy, %; 224 px; measured with tinyvit-zoo' in entry['notes']
    assert eval_results_entry('digits', 90.0, notes='') is None
    (entry,) = yaml.safe_load(eval_results_entry('eurosat', 90.0, notes='', hub_id='timm/eurosat-rgb'))
    assert entry['dataset']['id'] == 'timm/eurosat-rgb'
    (entry,) = yaml.safe_load(eval_results_entry('cifar100', 90.0, notes=''))  # from the registry
    assert entry['dataset']['id'] == 'uoft-cs/cifar100'


# figures


def texts(figure: Figure) -> list[str]:
    figure.canvas.draw()
    return [t.get_text() for t in figure.findobj(lambda a: hasattr(a, 'get_text')) if t.get_text()]


def test_accuracy_over_shots_shows_means_and_intervals():
    series = {'trained': {1: (60.0, 0.8), 5: (88.0, 0.4)}, 'random': {1: (40.0, 0.7), 5: (58.0, 0.5)}}
    shown = texts(plots.accuracy_over_shots(series, title='few-shot', chance=20.0))
    assert {'60.0 ± 0.8', '58.0 ± 0.5', 'trained', 'random', 'chance, 20 %', 'few-shot'} <= set(shown)


def test_differences_have_signs_and_intervals():
    figure = plots.differences(['few-shot', 'kNN'], [1.25, -3.0], [0.5, -4.0], [2.0, 0.5], title='a minus b')
    assert {'+1.2', '-3.0', 'few-shot', 'kNN', 'a minus b'} <= set(texts(figure))
    (lines,) = figure.axes[0].collections
    assert [segment[:, 0].tolist() for segment in lines.get_segments()] == [[0.5, 2.0], [-4.0, 0.5]]


def test_a_heat_map_names_its_rows_and_leaves_missing_cells_empty():
    values = np.array([[91.25, np.nan, 30.0], [1.0, 2.0, 3.0]])
    shown = texts(
        plots.heat_map(
            values, [0.0, 1e-6], [0.1, 1.0, 10.0], title='sweep', row_label='wd', column_label='lr', chosen=(0, 0)
        )
    )
    assert {'91.2', '30.0', '1e-06', '0.1', '10', 'wd', 'lr'} <= set(shown)
    assert 'nan' not in shown


@pytest.mark.parametrize('classes', [1, 10, 40, 41, 1000])
def test_class_figures_are_readable_for_any_number_of_classes(classes):
    rng = np.random.default_rng(0)
    names = [f'class {i}, and another name' for i in range(classes)]
    accuracy = 100 * rng.random(classes)
    bars = plots.per_class_bars(accuracy, names, title='t')
    shown = texts(bars)
    assert f'class {accuracy.argmin()}' in shown
    assert f'class {accuracy.argmax()}' in shown
    assert sum(text.startswith('class ') for text in shown) <= 2 * plots.MOST_BARS
    counts = np.diag(rng.integers(5, 9, classes))
    counts[0, -1] += 7
    figure = plots.confusion(counts, names, title='t')
    if classes > 40:
        assert f'class 0 → class {classes - 1}' in texts(figure)
    for f in (bars, figure):
        width, height = f.get_size_inches()
        assert width < 14
        assert height < 12


def test_a_class_without_images_is_left_out_of_the_bars():
    shown = texts(plots.per_class_bars(np.array([50.0, np.nan, 70.0]), ['a', 'b', 'c'], title='t'))
    assert 'b' not in shown
    assert 't (mean 60.0 %)' in shown


def test_tsne_is_repeatable_and_reports_what_it_left_out():
    rng = np.random.default_rng(0)
    labels = np.arange(180) % 45
    features = rng.normal(size=(45, 8))[labels] + 0.1 * rng.normal(size=(180, 8))
    names = [f'c{i}' for i in range(45)]
    one, two = (plots.tsne(features, labels, names, title='t') for _ in range(2))
    assert 't, 160 of 180 images' in texts(one)
    places = [[t.get_position() for t in figure.axes[0].texts] for figure in (one, two)]
    assert places[0] == places[1]
    assert len(places[0]) == plots.MOST_COLORS
    axis = one.axes[0]
    for dots, name in zip(axis.collections, axis.texts, strict=True):  # a name tells which dots it stands for
        assert tuple(name.get_color()) == pytest.approx(0.7 * dots.get_facecolor()[0, :3])
    refused(lambda: plots.tsne(features[:3], labels[:3], names, title='t'), 'at least 4', kind=EvaluationError)


def test_the_legend_shows_the_last_value_of_learning_curves():
    assert 'lr 0.1: 0.25' in texts(plots.learning_curves({'lr 0.1': [1.0, 0.25]}, title='t', y_label='loss'))


def test_figures_need_no_display_and_do_not_stay_in_memory():
    import sys

    plots.learning_curves({'a': [1.0]}, title='t')
    pyplot = sys.modules.get('matplotlib.pyplot')
    assert pyplot is None or pyplot.get_fignums() == []
