"""Runs the Python blocks of a page in order, in one process and without network: `python tests/run_page.py PAGE.md`.

A line `NAME = VALUE  # tests: OTHER` of a block runs as `NAME = OTHER`: the page shows the settings of a real training
and the small ones that are run. Prints one line of JSON: blocks, settings, CPU seconds.
"""

import ast
import ipaddress
import json
import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

BLOCK = re.compile(r'^```python\n(.*?)^```$', re.DOTALL | re.MULTILINE)
SETTING = re.compile(r'^(\w+) = (\S.*?)  # tests: (\S.*)$', re.MULTILINE)


class Block(NamedTuple):
    """Python of a page, as it is run; `first_line` is where it begins in the page, counted from 1."""

    code: str
    first_line: int


def blocks_of(text: str) -> list[Block]:
    """The Python blocks of a page, with the settings of the tests.

    Raises:
        ValueError: If a setting is not on one line with its name.
    """
    blocks = []
    for found in BLOCK.finditer(text):
        code = SETTING.sub(r'\1 = \3', found[1])
        if '# tests:' in code:
            raise ValueError(f'Not of the form NAME = VALUE  # tests: OTHER, on one line:\n{code}')
        blocks.append(Block(code, text.count('\n', 0, found.start(1)) + 1))
    return blocks


def settings_of(text: str) -> dict[str, str]:
    """What the tests set, by name."""
    return {name: value for found in BLOCK.finditer(text) for name, _, value in SETTING.findall(found[1])}


def imported(text: str) -> Iterator[str]:
    """Top-level modules that the blocks of a page import."""
    for code, _ in blocks_of(text):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition('.')[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield str(node.module).partition('.')[0]


def forbid_network() -> list[str]:
    """From now on only loopback can be reached. Attempts are listed too: libraries often go on without an answer."""
    attempts: list[str] = []

    def is_near(host: object) -> bool:
        try:
            return host in (None, '', 'localhost', b'localhost') or ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    def guarded(function, host_of):
        def call(*args, **kwargs):
            host = host_of(*args)
            if not is_near(host):
                attempts.append(str(host))
                raise OSError(f'A page must not reach the network: {host}.')
            return function(*args, **kwargs)

        return call

    def peer(sock: socket.socket, address) -> object:
        return address[0] if sock.family in (socket.AF_INET, socket.AF_INET6) else None

    socket.socket.connect = guarded(socket.socket.connect, peer)
    socket.socket.connect_ex = guarded(socket.socket.connect_ex, peer)
    socket.getaddrinfo = guarded(socket.getaddrinfo, lambda host, *_: host)
    return attempts


def main(page: Path) -> None:
    os.environ['HF_HUB_OFFLINE'] = '1'
    attempts = forbid_network()
    text = page.read_text()
    blocks = blocks_of(text)
    runner, script = sys.modules['__main__'], ModuleType('__main__')
    sys.modules['__main__'] = script  # classes of the page can be pickled, and it has none of the names above
    for code, first_line in blocks:
        exec(compile('\n' * (first_line - 1) + code, str(page), 'exec'), script.__dict__)
    sys.modules['__main__'] = runner
    if attempts:
        sys.exit(f'{page.name} tried to reach {", ".join(sorted(set(attempts)))}.')
    seconds = round(sum(os.times()[:4]), 1)
    print(json.dumps(dict(page=page.stem, blocks=len(blocks), settings=settings_of(text), cpu_seconds=seconds)))


if __name__ == '__main__':
    main(Path(sys.argv[1]).resolve())
