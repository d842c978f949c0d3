"""torch.hub: a checkout is enough, every architecture has an entry point, and the arguments are timm's."""

import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch

from tinyvit_zoo.releases import all_releases

ROOT = Path(__file__).parents[1]


def load(name: str, **kwargs) -> torch.nn.Module:
    return torch.hub.load(str(ROOT), name, source='local', **kwargs)


@pytest.fixture(scope='module')
def hubconf() -> ModuleType:
    spec = importlib.util.spec_from_file_location('hubconf', ROOT / 'hubconf.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_architecture_has_an_entry_point_and_nothing_else_is_one(hubconf):
    # The rule of torch.hub.list.
    found = [name for name, value in vars(hubconf).items() if callable(value) and not name.startswith('_')]
    assert sorted(found) == sorted({release.architecture for release in all_releases()})


def test_a_model_is_the_one_that_timm_creates():
    torch.manual_seed(0)
    ours = load('tinyvit_5m_224', img_size=64, num_classes=3)
    torch.manual_seed(0)
    theirs = timm.create_model('tinyvit_5m_224', img_size=64, num_classes=3)
    assert type(ours) is type(theirs)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize('tag', ['dist_in22k', 'in1k'])
def test_a_tag_is_chosen_as_in_timm(tag):
    model = load('tinyvit_5m_224', pretrained_cfg=tag, device='meta')
    assert model.pretrained_cfg['tag'] == tag


def test_the_help_names_the_tags(hubconf):
    assert 'dist_in22k_ft_in1k, dist_in22k, in1k' in hubconf.tinyvit_21m_224.__doc__


def test_dependencies_are_those_of_the_package(hubconf):
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    assert sorted(hubconf.dependencies) == sorted(re.match(r'[\w-]+', line)[0] for line in project['dependencies'])
