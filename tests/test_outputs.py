"""What a command writes: outside the images that it reads, and to a place that is found writable before the work."""

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from tinyvit_zoo.cli.app import app
from tinyvit_zoo.common.files import check_writable
from tinyvit_zoo.data.folders import lies_among_images
from tinyvit_zoo.data.registry import find_entry

NOWHERE = 'no_such_model'  # what would be named if the work had begun
REQUIRED = dict(params='3M', epochs='1', student=NOWHERE, teacher=NOWHERE, store='labels')


def commands(group: Any, names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, 'commands'):
            yield from commands(command, (*names, name))
        else:
            yield (*names, name), command


def read_and_write() -> Iterator[tuple[tuple[str, ...], str, Any]]:
    """Every command that reads a data set, with each option of a folder that it writes."""
    for names, command in commands(typer.main.get_command(app)):
        params = {param.name: param for param in command.params}
        written = {'output', 'cache'} | ({'store'} if names in (('distill', 'save'), ('sam', 'embed')) else set())
        if 'data' in params:
            yield from ((names, option, params) for option in sorted(written & params.keys()))


def words(params: Any, given: dict[str, Any]) -> list[Any]:
    """The least that a command needs, and what is given."""
    found = []
    for name, param in params.items():
        if param.required or name in given:
            value = given.get(name, REQUIRED.get(name, 'x'))
            found += [value] if param.param_type_name == 'argument' else [param.opts[0], value]
    return found


def test_no_command_writes_among_the_images_that_it_reads(cli, tmp_path) -> None:
    (tmp_path / 'data' / 'cat').mkdir(parents=True)
    tested = set()
    for names, option, params in read_and_write():
        if (names, option) == (('embed',), 'output'):
            continue  # a single file that is no image
        given = dict(data=tmp_path / 'data', output=tmp_path / 'out' / 'x.npz') | {option: tmp_path / 'data' / 'run'}
        code, _, err = cli(*names, *words(params, given))
        assert code == 2, (names, option, err)
        expected = f'--{option} {tmp_path}/data/run lies among the images of {tmp_path}/data, and what is written there'
        assert expected in err, (names, option, err)
        tested.add(names)
    several = {('finetune',), ('distill', 'save'), ('distill', 'train'), ('pretrain', 'mae'), ('knn',), ('contract',)}
    assert several <= tested
    assert sorted(path.name for path in (tmp_path / 'data').iterdir()) == ['cat']


def test_no_command_writes_among_the_images_of_a_data_set_that_has_a_root(cli, tmp_path) -> None:
    (tmp_path / 'data' / 'val' / 'n01440764').mkdir(parents=True)
    for names, option, params in read_and_write():
        if 'root' not in params or (names, option) == (('embed',), 'output'):
            continue
        given = dict(data='imagenet-1k', root=tmp_path / 'data', output=tmp_path / 'out' / 'x.npz')
        code, _, err = cli(*names, *words(params, given | {option: tmp_path / 'data' / 'val' / 'run'}))
        assert code == 2, (names, option, err)
        assert f'--{option} {tmp_path}/data/val/run lies among the images of {tmp_path}/data' in err, (names, err)
    assert [path.name for path in (tmp_path / 'data' / 'val').iterdir()] == ['n01440764']


@pytest.mark.parametrize(
    ('name', 'folder', 'places'),
    [
        ('imagenet-1k', 'val', {'val/run': True, 'val': True, 'run': False, '': False, '../run': False}),
        ('imagenet-22k', 'n00004475', {'run': True, '': True, '../run': False}),
        ('imagenet-22k', 'train/n00004475', {'train/run': True, 'run': False}),
        ('imagenet-a', 'imagenet-a/n01498041', {'imagenet-a/run': True, 'run': False}),
        ('imagenet-c', 'blur/defocus_blur/1', {'blur/defocus_blur/run': True, 'blur/run': False}),
        ('imagenet-c/fog/1', 'fog/1', {'fog/1/run': True, 'run': False}),
        ('eurosat', 'eurosat/2750/Forest', {'eurosat/2750/run': True, 'eurosat/run': False}),
        ('crop_disease', 'dataset/train/x', {'dataset/train/run': True, 'dataset/run': False}),
        ('flowers102', 'flowers-102/jpg', {'flowers-102/jpg/run': False, 'run': False}),  # its lists name the images
    ],
    ids=lambda value: value.replace('/', '-') if isinstance(value, str) else None,
)
def test_what_would_be_read_as_images_of_a_data_set_depends_on_its_layout(tmp_path, name, folder, places) -> None:
    (tmp_path / folder).mkdir(parents=True)
    entry = find_entry(name)
    assert {place: entry.lies_among_images(tmp_path / place, tmp_path) for place in places} == places


@pytest.mark.parametrize(
    'line',
    [
        ('evaluate', NOWHERE, '-d', 'imagenet-c', '--root', '.', '--clean-root', 'imagenet-1k', '-o', '{0}'),
        ('distill', 'info', 'missing', '--view', '0:0', '-d', 'imagenet-1k', '--root', 'imagenet-1k', '--image',
         '{0}.png'),
        ('reproduce', 'tinyvit/table4', '--scale', 'full', '--root', '.', '-o', '{0}'),
        ('reproduce', 'tinyvit/table4', '--scale', 'full', '--root', '.', '-o', 'run', '--jobs', '{0}'),
    ],
    ids=lambda line: f'{line[0]}{line[-2]}',
)  # fmt: skip
def test_nor_do_other_options_of_places(cli, tmp_path, monkeypatch, line) -> None:
    (tmp_path / 'imagenet-1k' / 'train').mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    code, _, err = cli(*(word.replace('{0}', 'imagenet-1k/train/run') for word in line))
    assert code == 2, err
    assert f'{line[-2].replace("-o", "--output")} ' in err
    assert 'lies among the images of imagenet-1k' in err


def test_a_table_needs_no_order_in_data_that_it_does_not_read(cli, tmp_path) -> None:
    for split in ('val', 'validation'):
        (tmp_path / 'data' / 'imagenet-1k' / split / 'n01440764').mkdir(parents=True)
    table = ('reproduce', 'tinyvit/table4', '--scale', 'full', '--root', tmp_path / 'data', '--only', 'glit-tiny')
    _, _, err = cli(*table, '--dry-run', '-o', tmp_path / 'run')
    assert 'may be the split' not in err


def test_beside_the_folders_of_splits_nothing_is_read(tmp_path) -> None:
    for name in ('train/cat', 'val/cat'):
        (tmp_path / name).mkdir(parents=True)
    for place, among in {
        'run': False, '': False, 'train/run': True, 'val/cat/run': True, 'test': True, '../elsewhere': False,
    }.items():  # fmt: skip
        assert lies_among_images(tmp_path / place, tmp_path) is among, place
    (tmp_path / 'train').rename(tmp_path / 'cats')  # now its folders are classes, or its images have no labels
    assert lies_among_images(tmp_path / 'run', tmp_path)
    assert lies_among_images(tmp_path, tmp_path)


@pytest.mark.parametrize(
    'line',
    [
        ('export', NOWHERE, '--random', '-o', '{0}.onnx'),
        ('export', NOWHERE, '--random', '-o', '{0}.onnx', '--int8', '--calibrate', 'missing'),
        ('sam', 'export', 'missing.pt', '--encoder', '{0}.onnx'),
        ('sam', 'convert', 'missing.pt', '{0}'),
        ('sam', 'segment', 'missing.png', '--weights', 'missing.pt', '--point', '1,1', '-o', '{0}.png'),
        ('compress', NOWHERE, '--random', '-o', '{0}'),
        ('convert', 'missing.pth', '{0}.safetensors'),
        ('pack', 'tinyvit_5m_224', '--random', '-o', '{0}'),
        ('embed', NOWHERE, '-d', 'missing', '-o', '{0}.npz'),
        ('classify', 'missing.png', '--model', NOWHERE, '-o', '{0}.csv'),
        ('bench', NOWHERE, '--csv', '{0}.csv'),
        ('browser', 'build', '-o', '{0}'),
        ('finetune', NOWHERE, '-d', 'missing', '-o', '{0}'),
        ('distill', 'train', NOWHERE, '-d', 'missing', '--store', 'missing', '-o', '{0}'),
        ('pretrain', 'mae', '-d', 'missing', '-o', '{0}'),
        ('distill', 'save', NOWHERE, '-d', 'missing', '--epochs', '0', '--store', '{0}'),
        ('sam', 'embed', NOWHERE, '-d', 'missing', '--store', '{0}'),
        ('sam', 'distill', '--student', NOWHERE, '--teacher', NOWHERE, '-d', 'missing', '-o', '{0}'),
    ],
    ids=lambda line: '-'.join(line[:2]),
)
def test_a_place_that_cannot_be_written_is_noticed_before_the_work(cli, tmp_path, line) -> None:
    (tmp_path / 'file').write_text('no folder')
    place = f'{tmp_path}/file/result'
    code, _, err = cli(*(word.replace('{0}', place) for word in line))
    assert code == 1
    assert f'{tmp_path}/file' in err
    assert 'cannot be written' in err or 'cannot be a path here' in err, err
    assert NOWHERE not in err
    assert 'missing' not in err


@pytest.mark.parametrize(
    'line',
    [
        ('finetune', NOWHERE),
        ('distill', 'train', NOWHERE, '--store', 'missing'),
        ('contract', NOWHERE, '--params', '3M'),
        ('pretrain', 'mae'),
        ('pretrain', 'minivit', '--student', NOWHERE, '--teacher', NOWHERE),
        ('pretrain', 'features', '--student', NOWHERE, '--teacher', NOWHERE),
    ],
    ids=lambda line: '-'.join(line[:2]),
)
def test_a_model_folder_of_others_is_noticed_before_the_training(cli, tmp_path, line) -> None:
    (tmp_path / 'model').mkdir()
    (tmp_path / 'model' / 'notes.txt').write_text('mine')
    code, _, err = cli(*line, '-d', 'missing', '-o', tmp_path)
    assert code == 1
    assert f'{tmp_path}/model holds other files (notes.txt), which would be lost' in err


@pytest.mark.parametrize(
    'content',
    ['{"command": "tinyvit-zoo knn x -d digits"}', '{"mine": 1}', 'no JSON'],
    ids=['command', 'mine', 'damaged'],
)
def test_results_of_another_command_are_not_replaced(cli, tmp_path, content) -> None:
    results = tmp_path / 'results.json'
    results.write_text(content)
    data = ('-d', 'missing', '-o', tmp_path)
    for line in (
        ('fewshot', NOWHERE, *data), ('finetune', NOWHERE, *data), ('analyze', 'cka', NOWHERE, *data),
        ('pretrain', 'mae', *data), ('demo', '-o', tmp_path),
    ):  # fmt: skip
        code, _, err = cli(*line)
        assert code == 2, err
        assert f'{tmp_path} has the results of another command, which would be lost: choose another folder' in err
    assert results.read_text() == content
    assert list(tmp_path.iterdir()) == [results]


def test_a_command_that_leaves_results_alone_writes_beside_them(cli, tmp_path) -> None:
    """`detect predict` writes results.json of an image results.png, which the next run replaces."""
    (tmp_path / 'results.json').write_text('{"command": "tinyvit-zoo knn x -d digits"}')
    for line in (('predict', 'no_such_config', 'missing.pth', 'missing.png'), ('bench', 'no_such_backbone')):
        code, _, err = cli('detect', *line, '-o', tmp_path)
        assert code == 1, err  # there are no such files, or mmdet is not installed
        assert 'results of another command' not in err


def test_results_of_the_same_command_may_be_replaced(cli, tmp_path) -> None:
    for program in ('tinyvit-zoo', "'/a b/tinyvit_zoo/cli/__main__.py'"):  # the latter as torchrun calls it
        written = dict(command=f'{program} analyze cka x -d digits')
        (tmp_path / 'results.json').write_text(json.dumps(written))
        code, _, err = cli('analyze', 'cka', NOWHERE, '-d', 'missing', '-o', tmp_path)
        assert code == 1
        assert 'missing' in err


def test_a_place_may_begin_with_the_home_folder(cli, tmp_path, monkeypatch) -> None:
    home, here = tmp_path / 'home', tmp_path / 'here'
    (home / 'photos' / 'cat').mkdir(parents=True)
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv('HOME', str(home))
    _, _, err = cli('knn', NOWHERE, '--data=~/photos', '--output=~/photos/run')
    assert f'{home}/photos/run lies among the images of {home}/photos' in err
    _, _, err = cli('bench', NOWHERE, '--csv=~/photos')
    assert f'{home}/photos cannot be written (it is a folder)' in err
    _, _, err = cli('analyze', 'hard-samples', '-d', 'digits', '--store=~/labels', '--output=~/kept.json')
    assert f'{home}/labels holds no soft labels' in err
    _, _, err = cli('detect', 'predict', 'missing', 'missing.pth', '~/missing.png', '--output=~nobody_here/x')
    assert 'missing' in err
    assert not list(here.iterdir())


def test_a_chain_looks_into_the_folders_of_all_its_students(cli, tmp_path) -> None:
    (tmp_path / 'tiny' / 'model').mkdir(parents=True)
    (tmp_path / 'tiny' / 'model' / 'notes.txt').write_text('mine')
    code, _, err = cli('pretrain', 'tinymim', '--chain', 'base,small,tiny', '-d', 'missing', '-o', tmp_path)
    assert code == 1
    assert f'{tmp_path}/tiny/model holds other files' in err


def test_a_place_is_checked_without_a_trace(tmp_path) -> None:
    check_writable(tmp_path / 'new' / 'deep' / 'file.onnx')
    check_writable(tmp_path, is_folder=True)
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError, match='it is a folder'):
        check_writable(tmp_path)


def test_a_store_may_grow_where_the_folder_around_it_cannot_be_written(cli, tmp_path, monkeypatch) -> None:
    """A disk that is mounted at /store has such a folder around it."""
    store = tmp_path / 'store'
    store.mkdir()
    make = tempfile.TemporaryFile

    def make_below(dir: Path) -> Any:
        if dir == tmp_path:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return make(dir=dir)

    monkeypatch.setattr(tempfile, 'TemporaryFile', make_below)
    check_writable(store, is_folder=True, grows=True)
    for place in (store, tmp_path / 'other'):
        with pytest.raises(OSError, match='Read-only file system'):
            check_writable(place, is_folder=True, grows=place != store)
    for line in (('distill', 'save', NOWHERE, '--epochs', '0'), ('sam', 'embed', NOWHERE)):
        code, _, err = cli(*line, '-d', 'missing', '--store', store)
        assert code == 1
        assert 'missing' in err


def test_relative_places_are_those_of_the_working_directory(monkeypatch, tmp_path) -> None:
    (tmp_path / 'images').mkdir()
    monkeypatch.chdir(tmp_path)
    assert lies_among_images(Path('images/run'), tmp_path / 'images')
    assert lies_among_images(tmp_path / 'images' / 'run', Path('images'))
    assert not lies_among_images(Path('images_run'), Path('images'))
