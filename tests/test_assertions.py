"""Every test can fail: it asserts something, and neither a condition, a `return` nor an empty loop steps over that.

Assertions are `assert`, `pytest.raises` and `pytest.warns`, what NumPy and PyTorch assert, and calls of functions of
these tests that assert. A loop counts as certain to run if what it goes over is written down: a literal, a range, or
a constant in capitals.
"""

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

TESTS = sorted(Path(__file__).parent.glob('test_*.py'))
HELPERS = sorted(set(Path(__file__).parent.glob('*.py')) - set(TESTS))
CHECKS = ('raises', 'warns', 'fail', 'assert_close', 'assert_allclose', 'assert_array_equal')
PASSES_ON = ('enumerate', 'zip', 'product', 'reversed', 'sorted', 'list', 'tuple', 'items', 'values', 'keys')


def called(node: ast.AST) -> str:
    """Name of the function or method that a node calls."""
    function = node.func if isinstance(node, ast.Call) else None
    return function.id if isinstance(function, ast.Name) else getattr(function, 'attr', '')


def is_test(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef) and node.name.startswith('test_')


@cache
def asserting_helpers() -> frozenset[str]:
    """Names of the functions of these tests that assert, themselves or by another."""
    files = [ast.parse(path.read_text()) for path in (*TESTS, *HELPERS)]
    helpers = [f for file in files for f in file.body if isinstance(f, ast.FunctionDef) and not is_test(f)]
    found: set[str] = set()
    while new := {f.name for f in helpers if any(is_check(n, found) for n in ast.walk(f))} - found:
        found |= new
    return frozenset(found)


def is_check(node: ast.AST, helpers: Iterable[str]) -> bool:
    if isinstance(node, ast.Assert) or called(node) in CHECKS:
        return True
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in helpers


def checks(node: ast.AST) -> bool:
    return any(is_check(n, asserting_helpers()) for n in ast.walk(node))


def is_written_down(iterable: ast.AST, literals: set[str]) -> bool:
    """Whether a loop over this is certain to run. A strict zip is as long as its shortest part is said to be."""
    match iterable:
        case ast.Tuple(elts=elements) | ast.List(elts=elements) | ast.Set(elts=elements):
            return bool(elements)
        case ast.Dict(keys=keys):
            return bool(keys)
        case ast.Constant(value=str(text)):
            return bool(text)
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name.isupper() or name in literals
        case ast.Subscript(value=value) | ast.Starred(value=value):
            return is_written_down(value, literals)
        case ast.IfExp(body=body, orelse=orelse):
            return is_written_down(body, literals) and is_written_down(orelse, literals)
        case ast.Call(func=function, args=arguments):
            if called(iterable) == 'range':
                return True
            parts = arguments or [function.value] if isinstance(function, ast.Attribute) else arguments
            certain = [is_written_down(part, literals) for part in parts]
            strict = any(keyword.arg == 'strict' for keyword in iterable.keywords)
            return called(iterable) in PASSES_ON and (any(certain) if strict else bool(certain) and all(certain))
    return False


def is_certain(body: list[ast.stmt], literals: set[str]) -> bool:
    """Whether one of these statements asserts something whatever happens."""
    for statement in body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if is_written_down(value, literals):
                literals = literals | {name}
        match statement:
            case ast.FunctionDef() | ast.While():
                found = False
            case ast.For(iter=iterable, body=inner):
                found = is_written_down(iterable, literals) and is_certain(inner, literals)
            case ast.If(body=inner, orelse=orelse):
                found = is_certain(inner, literals) and is_certain(orelse, literals)
            case ast.With(items=items, body=inner):
                found = any(map(checks, items)) or is_certain(inner, literals)
            case ast.Try(body=inner, finalbody=last):
                found = is_certain(inner, literals) or is_certain(last, literals)
            case ast.Return():
                return statement.value is not None and checks(statement.value)
            case _:
                found = checks(statement)
        if found:
            return True
        if any(isinstance(node, ast.Return) for node in own_nodes(statement)):
            return False
    return False


def own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes within a statement, without those of functions that it defines."""
    if not isinstance(node, (ast.FunctionDef, ast.Lambda)):
        yield node
        for child in ast.iter_child_nodes(node):
            yield from own_nodes(child)


def idle_tests(source: str) -> list[str]:
    """Names of the tests in a file that can pass without having asserted anything."""
    return [test.name for test in filter(is_test, ast.walk(ast.parse(source))) if not is_certain(test.body, set())]


def test_every_test_asserts_something_whatever_happens():
    found = {path.name: idle_tests(path.read_text()) for path in TESTS}
    assert len(found) > 50
    assert {name: tests for name, tests in found.items() if tests} == {}


IDLE = [
    'f()',
    'client.run(f)',
    'if f():\n  assert g()',
    'if f():\n  return\nassert g()',
    'for x in f():\n  assert x',
    'for x in [y for y in VALUES if y]:\n  assert x',
    'for x in []:\n  assert x',
    'def check():\n  assert f()',
    'for a, b in zip(f(), g(), strict=True):\n  assert a == b',
]
ASSERTING = [
    'assert f()',
    'with pytest.raises(ValueError):\n  f()',
    'with f(), pytest.warns(UserWarning):\n  g()',
    'torch.testing.assert_close(f(), g())',
    'refused(f)',
    'for x in (1, 2):\n  assert f(x)',
    'for x in VALUES.items():\n  assert f(x)',
    'for i, x in enumerate(VALUES):\n  assert f(x)',
    'for a, b in zip(f(), (1, 2), strict=True):\n  assert a == b',
    'if f():\n  assert g()\nelse:\n  assert h()',
    'assert f()\nif g():\n  return\nassert h()',
    'cases = [1, 2]\nfor x in cases:\n  assert f(x)',
]


@pytest.mark.parametrize(('body', 'idle'), [(b, True) for b in IDLE] + [(b, False) for b in ASSERTING])
def test_a_test_is_idle_if_it_can_pass_without_an_assertion(body, idle):
    indented = ''.join(f'  {line}\n' for line in body.splitlines())
    assert idle_tests(f'def test_it():\n{indented}') == (['test_it'] if idle else [])
