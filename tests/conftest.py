"""What the tests share: no network, no caches of the user, one thread per worker, official-layout files."""

# ruff: noqa: E402 (the environment is set first)

import importlib.util
import inspect
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Container, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

# Before huggingface_hub and torch are imported, here and in every subprocess that a test starts.
_HOME = tempfile.TemporaryDirectory(prefix='tinyvit-zoo-tests-')
os.environ.update(
    HF_HUB_OFFLINE='1',
    HF_HOME=f'{_HOME.name}/huggingface',
    TORCH_HOME=f'{_HOME.name}/torch',
    TINYVIT_ZOO_HOME=f'{_HOME.name}/tinyvit_zoo',
    NO_PROXY='127.0.0.1,localhost',
    no_proxy='127.0.0.1,localhost',
)
# Typer takes the output for a terminal where one of these is set; the next are settings of users.
for name in ('GITHUB_ACTIONS', 'FORCE_COLOR', 'PY_COLORS', 'COLUMNS', 'TERMINAL_WIDTH', 'TINYVIT_ZOO_ROUTES'):
    os.environ.pop(name, None)
if 'PYTEST_XDIST_WORKER' in os.environ:
    os.environ['OMP_NUM_THREADS'] = '1'

import pytest
import timm
import timm.layers.config
import torch
from golden_rule import fill_by_rule, official_state_dict
from hub_client import HubClient
from minihub import MiniHub
from timm.models._input import get_model_input_config

import tinyvit_zoo  # noqa: F401  registers the models
from tinyvit_zoo.checkpoints import KEY_MAPS, CheckpointError, KeyMap
from tinyvit_zoo.hub import pack as pack_module
from tinyvit_zoo.hub.expect import write_tensors
from tinyvit_zoo.releases import FAMILIES, TEACHERS, all_releases, find_family

if 'PYTEST_XDIST_WORKER' in os.environ:
    torch.set_num_threads(1)

COMPUTE_TENSORS = pack_module._compute_tensors
RELEASED = {release.architecture for release in all_releases()}
ARCHITECTURES = [name for name in timm.list_models() if name in RELEASED]
"""Every registered architecture with released weights."""

LARGE = {release.architecture for family in TEACHERS for release in FAMILIES[family]}
"""Teachers, which no test runs whole; a small model of their kind is tested with all others (SMALL_OF)."""

TAGGED = [release.name for release in all_releases() if release.architecture in ARCHITECTURES]
"""Every 'architecture.tag' of this package, also those whose weights no program can download."""

GRAPHS = (
    'tinyvit_5m_224',
    'mini_deit_tiny_patch16_224',
    'mini_swin_tiny_patch4_window7_224',
    'tinymim_vit_tiny_patch16_224',
    'tinymim_vit_tiny_student_patch16_224',
    'tinymim_vit_tiny_star_patch16_224',
    'mae_lite_vit_tiny_patch16_224',
    'mae_lite_vit_tiny_encoder_patch16_224',
    'mae_lite_vit_tiny_rpe_patch16_224',
)
"""The smallest architecture of every kind of graph; the others differ from one of these in width, depth and size."""


def rest_is_full(values: Iterable, usual: Container) -> list:
    """Values, or tuples of them, as parameters of a test; all but the usual ones are left to `make test-all`."""

    def parameter(value):
        each = value if isinstance(value, tuple) else (value,)
        return pytest.param(*each, marks=[] if value in usual else pytest.mark.full)

    return [parameter(value) for value in values]


def for_each(argument: str, values: Collection) -> Callable[[Callable], Callable]:
    """Makes a test of one value a single test of all values, for what takes no time. A failure names its value."""

    def decorate(test: Callable) -> Callable:
        def test_of_all(**fixtures) -> None:
            assert values
            for value in values:
                try:
                    test(**{argument: value}, **fixtures)
                except Exception as e:
                    e.add_note(f'{argument} = {value}')
                    raise

        parameters = inspect.signature(test).parameters
        test_of_all.__signature__ = inspect.Signature([p for name, p in parameters.items() if name != argument])
        test_of_all.__name__, test_of_all.__doc__, test_of_all.__module__ = test.__name__, test.__doc__, test.__module__
        return test_of_all

    return decorate


SMALL_OF = {
    'tinyvit': (
        'tinyvit_5m_224',
        dict(embed_dims=(16, 32, 32, 64), num_heads=(1, 1, 2, 2), depths=(1, 1, 2, 1), num_classes=11),
    ),
    'mini_deit': (
        'mini_deit_tiny_patch16_224',
        dict(embed_dim=48, depth=4, num_heads=3, num_classes=11),
    ),
    'mini_swin': (
        'mini_swin_tiny_patch4_window7_224',
        dict(embed_dim=16, depths=(2, 2, 4, 2), num_heads=(1, 2, 2, 4), repeats=2, num_classes=11),
    ),
    'tinymim': ('tinymim_vit_tiny_patch16_224', dict(embed_dim=48, depth=4, num_heads=3, num_classes=11)),
    'tinymim_student': (
        'tinymim_vit_tiny_student_patch16_224',
        dict(embed_dim=48, depth=5, num_heads=3, last_heads=6, num_classes=11),  # four blocks and one not trained
    ),
    'tinymim_star': (
        'tinymim_vit_tiny_star_patch16_224',
        dict(embed_dim=48, depth=4, num_heads=6, expand_dim=64, num_classes=11),
    ),
    'mae_lite_rpe': ('mae_lite_vit_tiny_rpe_patch16_224', dict(embed_dim=48, depth=4, num_heads=6, num_classes=11)),
    'clip_vit': (
        'clip_vit_large_patch14_224',
        dict(patch_size=16, embed_dim=48, depth=4, num_heads=3, proj_dim=24, num_classes=11),
    ),
}
"""By family, or kind of model where a family has several: an architecture, and arguments that make it small with every
kind of layer, for tests of behavior."""

FEW_BLOCKS = {
    'tinyvit_': dict(depths=(1, 1, 2, 1)),
    'mini_deit_': dict(depth=4),  # pairs share their weights
    'mini_swin_': dict(depths=(2, 2, 6, 2)),
    'tinymim_': dict(depth=3),
    'mae_lite_': dict(depth=3),
    'clip_vit_': dict(depth=2, patch_size=16, embed_dim=192, num_heads=3),  # its own width takes seconds
}


def few_blocks(name: str) -> dict[str, Any]:
    """Arguments that leave an architecture its width, but few blocks and images of 64 pixels.

    For tests that have seen the one of GRAPHS of its kind whole.
    """
    return {'img_size': 64, **next(depth for start, depth in FEW_BLOCKS.items() if name.startswith(start))}


def shallow(name: str) -> torch.nn.Module:
    """An architecture with few blocks, weights and statistics far from their initial values, in eval mode."""
    return fill_by_rule(timm.create_model(name, **few_blocks(name)))


SMALL = SMALL_OF['tinyvit'][1]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _compute_tensors_here(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        patch.setattr(timm.layers.config, '_USE_FUSED_ATTN', 0)  # restored: what is called here sets it for good
        write_tensors(folder)


@pytest.fixture(scope='session', autouse=True)
def _pack_in_this_process() -> Iterator[None]:
    """The test tensors of a page are computed here, not by a process that spends seconds on imports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack_module, '_compute_tensors', _compute_tensors_here)
        yield


@pytest.fixture
def pack_by_another_process(monkeypatch) -> None:
    """As for a user."""
    monkeypatch.setattr(pack_module, '_compute_tensors', COMPUTE_TENSORS)


def key_map_of(family: str) -> KeyMap:
    """Names of the models of a family, or kind."""
    return KEY_MAPS[find_family(SMALL_OF[family][0])]


def small_of(family: str, **kwargs) -> torch.nn.Module:
    """A small model of a family with weights and statistics far from their initial values, in eval mode."""
    architecture, arguments = SMALL_OF[family]
    return fill_by_rule(timm.create_model(architecture, **{**arguments, **kwargs}))


@pytest.fixture
def small() -> Callable[..., torch.nn.Module]:
    """Builds a small TinyViT, see `small_of`."""
    return partial(small_of, 'tinyvit')


@pytest.fixture(params=SMALL_OF)
def family(request) -> str:
    """Every family in turn."""
    return request.param


@pytest.fixture
def any_small(family) -> Callable[..., torch.nn.Module]:
    """Builds a small model of every family in turn, see `small_of`."""
    return partial(small_of, family)


FEATURE_CLASSES = {
    'tinyvit': ('list', 'dict', 'hook', 'fx', 'getter'),
    'mini_deit': ('getter',),  # timm's way for models of tokens
    'mini_swin': ('list', 'dict', 'hook', 'fx', 'getter'),
    **dict.fromkeys(('tinymim', 'tinymim_student', 'tinymim_star', 'mae_lite_rpe', 'clip_vit'), ('getter',)),
}
"""By family: timm's wrappers that can make a feature extractor of it."""


def used_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Parameters that `forward` reads: all, but the tail of a TinyMIM student, which was never trained."""
    tail = range(getattr(model, 'forward_depth', 0), len(model.blocks)) if hasattr(model, 'forward_depth') else ()
    unused = (*(f'blocks.{i}.' for i in tail), *(['norm.'] if tail else []))
    return {key: p for key, p in model.named_parameters() if not key.startswith(unused)}


def classifiers(model: torch.nn.Module) -> tuple[torch.nn.Module, ...]:
    """Its classifier, or both of them."""
    head = model.get_classifier()
    return head if isinstance(head, tuple) else (head,)


def size_of(model: torch.nn.Module) -> tuple[int, int]:
    """Image size (H, W) that a model is laid out for."""
    return tuple(get_model_input_config(model)['input_size'][-2:])


def images_for(model: torch.nn.Module, batch: int = 2, **kwargs) -> torch.Tensor:
    """Random images of the model's own size."""
    return torch.randn(batch, model.in_chans, *size_of(model), **kwargs)


@pytest.fixture(scope='session')
def official_file() -> Iterator[Callable[[str], Path]]:
    """Path of a file as the authors released it: `{'model': official names}`, filled by the golden rule."""
    with tempfile.TemporaryDirectory(prefix='official-') as folder:

        def path(manifest_name: str) -> Path:
            path = Path(folder) / f'{manifest_name}.pth'
            if not path.exists():
                torch.save({'model': official_state_dict(manifest_name)}, path)
            return path

        yield path


def load(name: str, file: str | Path, **kwargs) -> torch.nn.Module:
    """A model with the weights of a file, in eval mode."""
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=dict(file=str(file)), **kwargs).eval()


def assert_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Two state dicts hold the same names and exactly the same numbers."""
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value, rtol=0, atol=0, msg=lambda m, k=key: f'{k}: {m}')


@contextmanager
def imported_benchmark(name: str, folder: str = 'benchmarks') -> Iterator[ModuleType]:
    """A file of `benchmarks/`, or of `docs/`, as a module; those that it imports lie beside it."""
    path = Path(__file__).parent.parent / folder / f'{name}.py'
    spec = importlib.util.spec_from_file_location(f'{folder}_{name}', path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(path.parent))
        del sys.modules[spec.name]


def forget_modules(monkeypatch: pytest.MonkeyPatch, start: str) -> None:
    """Modules whose names start so are imported anew in this test; after it both ways to them lead to the old ones."""
    names = [name for name in sys.modules if name.startswith(start)]
    for name in names:
        parent, _, child = name.rpartition('.')
        if hasattr(sys.modules.get(parent), child):
            monkeypatch.setattr(sys.modules[parent], child, getattr(sys.modules[parent], child))  # put back afterwards
    for name in names:
        monkeypatch.delitem(sys.modules, name)


def refused(action, *words: str, kind: type[Exception] = CheckpointError) -> str:
    """The message of the one error that an action ends in: of this very kind, short, and with these words."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  the kind is checked below
        action()
    assert type(caught.value) is kind, repr(caught.value)
    message = str(caught.value)
    assert '\n' not in message
    assert 'Traceback' not in message
    assert len(message) < 1000
    for word in words:
        assert word in message
    return message


@pytest.fixture
def cli(monkeypatch, capsys):
    """Runs a command line in this process; gives exit code, stdout and stderr."""

    from tinyvit_zoo.cli.app import run_app

    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['tinyvit-zoo', *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            run_app()
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return run


@pytest.fixture(scope='session')
def zoo_browser(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """One site and one Chromium for all tests, see `browser_page`."""
    from browser_page import opened

    with opened(tmp_path_factory.mktemp('browser'), small_of('tinyvit', img_size=32, num_classes=12)) as browser:
        yield browser


@pytest.fixture
def page(zoo_browser) -> Iterator[SimpleNamespace]:
    """The zoo browser at its site, with a console that is empty after each test, and no request beyond loopback."""
    from browser_page import asked_elsewhere

    if not zoo_browser.driver.current_url.startswith(zoo_browser.address):
        zoo_browser.open()
    yield zoo_browser
    assert zoo_browser.log() == []
    assert asked_elsewhere() == []


@pytest.fixture(scope='module')
def hub_server() -> Iterator[MiniHub]:
    """A Hub on loopback, for the tests of a module."""
    with MiniHub() as hub:
        yield hub


@pytest.fixture(scope='module')
def hub_processes(hub_server, tmp_path_factory) -> Iterator[HubClient]:
    """Its clients."""
    client = HubClient(tmp_path_factory.mktemp('client'), hub_server.environment)
    yield client
    client.close()


@pytest.fixture
def hub(hub_server, hub_processes) -> Iterator[MiniHub]:
    """The server without pages, and a client without cache."""
    hub_server.clear()
    shutil.rmtree(hub_processes.home, ignore_errors=True)
    yield hub_server
    hub_server.clear()
    shutil.rmtree(hub_processes.home, ignore_errors=True)


@pytest.fixture
def client(hub, hub_processes) -> HubClient:
    """Runs tinyvit-zoo in processes of its own against `hub`."""
    return hub_processes
