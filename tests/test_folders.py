"""Folders and files that are replaced whole: by several writers, under the eyes of a reader, after a kill."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tinyvit_zoo.common import files, folders
from tinyvit_zoo.common.files import new_file, new_files, process_mark
from tinyvit_zoo.common.folders import read_settled, swap_in
from tinyvit_zoo.hub.folder import write_safetensors

FILES = ('config.json', 'model.safetensors')


def save(folder: Path, text: str) -> None:
    with swap_in(folder, replaces=FILES) as new:
        for name in FILES:
            (new / name).write_text(text)


def save_often(folder: Path, text: str, times: int) -> None:
    for _ in range(times):
        save(folder, text)


def ended_process() -> int:
    process = subprocess.Popen(['true'])
    process.wait()
    return process.pid


def mark_of(process: int) -> str:
    """The mark that another process of this machine would have used."""
    return process_mark().replace(f'.{os.getpid()}.', f'.{process}.')


@pytest.fixture(params=['exchanged', 'renamed twice'])
def way(request, monkeypatch) -> str:
    """Systems with and without an exchange of two folders."""
    if request.param == 'renamed twice':
        monkeypatch.setattr(folders, '_exchanged', lambda one, other: False)
    return request.param


def test_several_writers_of_one_folder_end_without_error_and_leave_one_of_their_versions(tmp_path, way):
    folder = tmp_path / 'model'
    save(folder, 'first')
    context = multiprocessing.get_context('fork')
    writers = [context.Process(target=save_often, args=(folder, f'{i}', 40)) for i in range(4)]
    for writer in writers:
        writer.start()
    missing, mixed = 0, 0
    while any(writer.is_alive() for writer in writers):
        missing += way == 'exchanged' and not (folder / FILES[0]).exists()
        mixed += len(set(read_settled(folder, lambda: [(folder / name).read_text() for name in FILES]))) > 1
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert missing == 0
    assert mixed == 0
    assert [p.name for p in tmp_path.iterdir()] == ['model']
    assert len({(folder / name).read_text() for name in FILES}) == 1


def test_an_error_leaves_the_folder_as_it_was(tmp_path, way):
    save(tmp_path / 'model', 'first')
    with pytest.raises(ZeroDivisionError), swap_in(tmp_path / 'model', replaces=FILES) as new:
        (new / FILES[0]).write_text(f'{1 / 0}')
    assert (tmp_path / 'model' / FILES[0]).read_text() == 'first'
    assert [p.name for p in tmp_path.iterdir()] == ['model']


def test_a_file_that_appears_in_the_folder_meanwhile_is_not_lost(tmp_path, way):
    save(tmp_path / 'model', 'first')
    with pytest.raises(FileExistsError, match=r'thesis\.tex'), swap_in(tmp_path / 'model', replaces=FILES):
        (tmp_path / 'model' / 'thesis.tex').write_text('years of work')
    assert (tmp_path / 'model' / 'thesis.tex').read_text() == 'years of work'


def test_what_killed_writers_left_is_taken_away_by_the_next_and_nothing_else(tmp_path):
    gone, alive = ended_process(), os.getpid()
    names = [f'.model.{mark_of(p)}.{kind}' for p in (gone, alive) for kind in ('new', 'old')]
    others = [f'.model.b.{mark_of(gone)}.new', '.model', '.model.new', 'model.old', '.model.1.2.3.new']
    for name in [*names, *others]:
        (tmp_path / name).mkdir()
    save(tmp_path / 'model', 'new')
    assert {p.name for p in tmp_path.iterdir()} == {*names[2:], *others, 'model'}


def test_a_writer_that_is_killed_leaves_nothing_after_the_next(tmp_path):
    save(tmp_path / 'model', 'first')

    def stall() -> None:
        with swap_in(tmp_path / 'model', replaces=FILES) as new:
            (new / FILES[0]).write_text('half')
            time.sleep(600)

    writer = multiprocessing.get_context('fork').Process(target=stall)
    writer.start()
    while not list(tmp_path.glob(f'.model.*.new/{FILES[0]}')) and writer.is_alive():
        time.sleep(0.01)
    writer.kill()
    writer.join()
    assert writer.exitcode == -signal.SIGKILL
    assert (tmp_path / 'model' / FILES[0]).read_text() == 'first'
    save(tmp_path / 'model', 'second')
    assert [p.name for p in tmp_path.iterdir()] == ['model']


def test_a_folder_lost_between_two_renames_comes_back(tmp_path):
    save(tmp_path / 'model', 'first')
    (tmp_path / 'model').rename(tmp_path / f'.model.{mark_of(ended_process())}.old')
    with pytest.raises(ZeroDivisionError), swap_in(tmp_path / 'model', replaces=FILES):
        _ = 1 / 0
    assert (tmp_path / 'model' / FILES[0]).read_text() == 'first'


def test_a_reader_looks_again_when_the_folder_was_replaced_meanwhile(tmp_path):
    folder, looks = tmp_path / 'model', []
    save(folder, 'first')

    def read() -> list[str]:
        first = (folder / FILES[0]).read_text()
        looks.append(first)
        if len(looks) == 1:
            save(folder, 'second')
        return [first, (folder / FILES[1]).read_text()]

    assert read_settled(folder, read) == ['second', 'second']
    assert looks == ['first', 'second']


def test_a_new_folder_never_passes_for_the_one_that_was_read(tmp_path):
    """File systems give the number of a folder that is gone to the next one."""
    folder, numbers = tmp_path / 'model', set()
    save(folder, 'first')
    own = folder.stat().st_ino

    def read() -> list[str]:
        first = (folder / FILES[0]).read_text()
        if first == 'first':
            for _ in range(8):  # ends where it would be taken for the first
                save(folder, 'second')
                numbers.add(folder.stat().st_ino)
                if folder.stat().st_ino == own:
                    break
        return [first, (folder / FILES[1]).read_text()]

    assert read_settled(folder, read) == ['second', 'second']
    assert own not in numbers


def test_a_reader_of_a_folder_that_stays_looks_once(tmp_path):
    looks = []
    save(tmp_path / 'model', 'first')
    with pytest.raises(FileNotFoundError):
        read_settled(tmp_path / 'model', lambda: looks.append(1) or (tmp_path / 'model' / 'missing').read_text())
    assert len(looks) == 1


# --- files


def write_and_die(path: Path) -> None:
    """Be killed by the system in the middle of a file of weights."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    with new_file(path) as new:
        write_safetensors(dict(weight=torch.zeros(1000)), new)


@pytest.mark.skipif(os.name != 'posix', reason='Windows has no limit on the size of a file')
def test_weights_whose_writer_was_killed_leave_nothing_after_the_next(tmp_path):
    path = tmp_path / 'form[1].safetensors'
    (tmp_path / f'.other.pt.{mark_of(ended_process())}.part.pt').touch()
    writer = multiprocessing.get_context('fork').Process(target=write_and_die, args=(path,))
    writer.start()
    writer.join()
    assert writer.exitcode == -signal.SIGXFSZ
    left = sorted(tmp_path.iterdir())
    assert len(left) == 2
    assert all(file.name.startswith(('.other.pt.', f'.{path.name}.')) for file in left)
    with new_file(path) as new:
        write_safetensors(dict(weight=torch.zeros(1000)), new)
    assert sorted(tmp_path.iterdir()) == [next(file for file in left if file.name.startswith('.other')), path]


def write_pair(folder: Path, text: str) -> None:
    with new_files(*(folder / name for name in FILES)) as pair:
        for file in pair:
            file.write_text(text)


def test_files_that_belong_together_are_never_an_old_and_a_new_one_on_disk(tmp_path, monkeypatch):
    """A process may be killed before and after every step that changes a name."""
    seen: list[set[str]] = []

    def look() -> None:
        seen.append({path.read_text() for name in FILES if (path := tmp_path / name).exists()})

    def watched(step: Callable[..., Any]) -> Callable[..., Any]:
        def looking(*args: Any, **kwargs: Any) -> Any:
            look()
            done = step(*args, **kwargs)
            look()
            return done

        return looking

    write_pair(tmp_path, 'old')
    with monkeypatch.context() as patch:
        for name in ('rename', 'replace', 'unlink'):
            patch.setattr(Path, name, watched(getattr(Path, name)))
        write_pair(tmp_path, 'new')
    assert {'old', 'new'} not in seen
    assert seen[0] == {'old'}
    assert seen[-1] == {'new'}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


@pytest.mark.parametrize('names', [FILES[:1], FILES], ids=['one', 'two'])
def test_an_interrupt_at_any_line_of_the_renames_leaves_all_old_or_all_new_files(tmp_path, names):
    """Files that are there when it begins are there when it ends, whatever is pressed meanwhile."""
    renames = files._rename_together.__code__
    paths = [tmp_path / name for name in names]

    def renamed(line: int) -> tuple[set[str], bool]:
        """What the files hold after an interrupt at this line of those that run, and whether there was one."""
        left = itertools.count(line, -1)

        def trace(frame: Any, event: str, _: Any) -> Any:
            if frame.f_code is not renames:
                return None
            if event == 'line' and next(left) == 0:
                raise KeyboardInterrupt
            return trace

        for path in paths:
            path.write_text('old')
        before, interrupted = sys.gettrace(), False
        try:
            with new_files(*paths) as new:
                for file in new:
                    file.write_text('new')
                sys.settrace(trace)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            sys.settrace(before)
        return {path.read_text() for path in paths}, interrupted

    ends = [renamed(0)]
    while ends[-1][1]:
        ends.append(renamed(len(ends)))
    assert [len(texts) for texts, _ in ends] == [1] * len(ends)
    assert ends[0] == ({'old'}, True)
    assert ends[-1] == ({'new'}, False)


def test_files_that_belong_together_stay_when_an_error_comes_while_or_after_they_are_written(tmp_path, monkeypatch):
    write_pair(tmp_path, 'old')
    with pytest.raises(KeyError), new_files(*(tmp_path / name for name in FILES)):
        raise KeyError
    with monkeypatch.context() as patch:
        patch.setattr(Path, 'replace', lambda *names: (_ for _ in ()).throw(OSError('no room')))
        with pytest.raises(OSError, match='no room'):
            write_pair(tmp_path, 'new')
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(FILES, 'old')


@pytest.mark.parametrize('old', ['old', None], ids=['replaced', 'fresh'])
@pytest.mark.parametrize('failing', range(2), ids=FILES)
def test_a_rename_that_fails_leaves_all_files_that_belong_together_as_they_were(tmp_path, monkeypatch, failing, old):
    """On the way back, too, no old one lies beside a new one."""
    if old:
        write_pair(tmp_path, old)
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    seen: list[set[str]] = []
    replace, unlink = Path.replace, Path.unlink

    def failing_replace(source: Path, target: Path) -> Path:
        if target.name == FILES[failing] and source.read_text() == 'new':
            raise PermissionError('in use')
        return watched(replace)(source, target)

    def watched(step: Callable[..., Any]) -> Callable[..., Any]:
        def looking(*args: Any, **kwargs: Any) -> Any:
            done = step(*args, **kwargs)
            seen.append({path.read_text() for name in FILES if (path := tmp_path / name).exists()})
            return done

        return looking

    with monkeypatch.context() as patch:
        patch.setattr(Path, 'replace', failing_replace)
        patch.setattr(Path, 'unlink', watched(unlink))
        with pytest.raises(PermissionError, match='in use'):
            write_pair(tmp_path, 'new')
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before
    assert {'old', 'new'} not in seen
    assert ({'new'} in seen) == (failing == 1)  # the first was there before the second failed


def test_a_folder_in_the_place_of_the_second_file_keeps_the_first(tmp_path):
    first, second = (tmp_path / name for name in FILES)
    first.write_text('old')
    second.mkdir()
    with pytest.raises((IsADirectoryError, PermissionError)):
        write_pair(tmp_path, 'new')
    assert (first.read_text(), sorted(tmp_path.iterdir())) == ('old', [first, second])


@pytest.mark.skipif(sys.platform == 'win32', reason='links need rights there')
def test_of_a_link_the_folder_behind_it_is_replaced(tmp_path, way):
    (tmp_path / 'disk').mkdir()
    (tmp_path / 'link').symlink_to(tmp_path / 'disk' / 'real', target_is_directory=True)
    for text in 'first', 'second':
        save(tmp_path / 'link', text)
        assert (tmp_path / 'disk' / 'real' / 'config.json').read_text() == text
        assert (tmp_path / 'link').is_symlink()
    assert sorted(path.name for path in tmp_path.rglob('*') if path.is_dir()) == ['disk', 'link', 'real']
    assert read_settled(tmp_path / 'link', (tmp_path / 'link' / 'config.json').read_text) == 'second'


@pytest.mark.parametrize('name', ['.', '..', '/'])
def test_a_folder_without_a_name_of_its_own_is_refused_in_a_sentence(tmp_path, monkeypatch, name):
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    with pytest.raises(FileExistsError, match='give the name of a folder'):
        save(Path(name), 'text')
    assert [path.name for path in tmp_path.iterdir()] == ['here']
