"""Rooms import downwards only, as the table in CONTRIBUTING.md draws them."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = 'tinyvit_zoo'


def module_of(path: Path) -> str:
    """Import name of a file: the folder `downstream` is imported as `tinyvit_zoo.downstream`."""
    parts = list(path.relative_to(ROOT).with_suffix('').parts)
    if parts[-1] == '__init__':
        parts.pop()
    return '.'.join([PACKAGE, *parts] if parts[0] == 'downstream' else parts)


FILES = {
    module_of(path): path
    for top in (PACKAGE, 'downstream')
    for path in sorted((ROOT / top).rglob('*.py'))
    if 'configs' not in path.parts and path != ROOT / PACKAGE / 'downstream.py'
}


def folder_of(room: str) -> str:
    """'common/' -> 'tinyvit_zoo/common'; rooms of `downstream` are named from the top."""
    room = room.rstrip('/')
    return room if room.partition('/')[0] == 'downstream' else f'{PACKAGE}/{room}'


def read_table() -> dict[str, list[str]]:
    """Room -> rooms that it may import, in the order of CONTRIBUTING.md: from the lowest floor to the highest."""
    text = (ROOT / 'CONTRIBUTING.md').read_text()
    text = text[text.index('| room |') : text.index('Outside the rooms')]
    rooms: dict[str, list[str]] = {}
    for room, cell in re.findall(r'^\| `(.+?)` \| .+ \| (.+) \|$', text, flags=re.MULTILINE):
        named = [folder_of(other) for other in re.findall('`(.+?)`', cell)]
        rooms[folder_of(room)] = list(rooms) if cell == 'all above' else named
    return rooms


TABLE = read_table()


def room_of(module: str) -> str:
    """The row that a module belongs to: that of its file or of the nearest folder above it."""
    path = FILES[module].relative_to(ROOT)
    for candidate in (path, *path.parents):
        if str(candidate) in TABLE:
            return str(candidate)
    raise AssertionError(f'{path} belongs to no room of CONTRIBUTING.md')


def imported_by(module: str) -> set[str]:
    """Modules of this package that a module imports anywhere in its text, also inside functions."""
    path, found = FILES[module], set()
    folder = module if path.name == '__init__.py' else module.rpartition('.')[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = folder.split('.')[: len(folder.split('.')) - node.level + 1] if node.level else []
            base = '.'.join([*above, *filter(None, [node.module])])
            names = [name if (name := f'{base}.{alias.name}') in FILES else base for alias in node.names]
        else:
            continue
        found.update(name for name in names if name in FILES)
    return found - {module}


def test_the_table_names_rooms_that_exist():
    assert len(TABLE) > 20
    assert [room for room in TABLE if not (ROOT / room).exists()] == []


@pytest.mark.parametrize('room', TABLE)
def test_a_room_imports_only_what_its_row_allows(room):
    modules = [module for module in FILES if room_of(module) == room]
    assert modules, f'no file belongs to {room}'
    others = {
        f'{module} imports {other}'
        for module in modules
        for other in imported_by(module)
        if room_of(other) not in (room, *TABLE[room])
    }
    assert others == set()


def test_every_arrow_of_the_table_points_downwards():
    floors = list(TABLE)
    up = [(room, other) for room in floors for other in TABLE[room] if floors.index(other) >= floors.index(room)]
    assert up == []


def test_no_two_files_import_each_other():
    """Also within a room, where the table says nothing: a circle makes the order of imports matter."""
    seen: dict[str, int] = {}

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, ' -> '.join((*path, module))
        if module in seen:
            return
        for other in sorted(imported_by(module)):
            visit(other, (*path, module))
        seen[module] = 1

    for module in FILES:
        visit(module, ())
    assert seen.keys() >= set(FILES)
