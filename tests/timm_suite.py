"""pytest plugin (`-p timm_suite`) that points timm's own `test_models.py` at this package's models.

That file takes its parameters from `timm.list_models` when it is imported, so the two listing functions are replaced
before pytest collects it. TIMM_SUITE_MODELS narrows the run to some architectures, separated by commas; those of
TIMM_SUITE_BRIEF run as well, but only in `BRIEF`.
"""

import functools
import os

import pytest
import timm

import tinyvit_zoo  # noqa: F401  registers the models
from tinyvit_zoo.releases import all_releases

BRIEF = ('test_model_forward', 'test_model_default_cfgs', 'test_model_default_cfgs_non_std')
"""Tests of what differs between architectures of one kind: that the model runs, and its configuration."""


def _named(variable: str) -> set[str]:
    return set(filter(None, os.environ.get(variable, '').split(',')))


RUN_BRIEFLY = _named('TIMM_SUITE_BRIEF')
OURS = {release.architecture for release in all_releases()} & set(timm.list_models())
if wanted := _named('TIMM_SUITE_MODELS') | RUN_BRIEFLY:
    OURS &= wanted

# Families of ours with the interface of a plain ViT. timm knows its own by the names in these filters.
PLAIN_VIT = ('mini_deit_*', 'tinymim_*', 'mae_lite_*', 'clip_vit_*')

_list_models = timm.list_models


def _patterns(filters: str | list[str]) -> list[str]:
    patterns = [filters] if isinstance(filters, str) else list(filters)
    return [*(p for p in patterns if p), *(PLAIN_VIT if 'vit_*' in patterns else ())]


def list_models(filter='', module='', exclude_filters='', **kwargs) -> list[str]:
    """As timm's, but of our models only, and of all modules: timm's tests name modules of their own."""
    names = _list_models(_patterns(filter), exclude_filters=_patterns(exclude_filters), **kwargs)
    return [name for name in names if name.partition('.')[0] in OURS]


def list_pretrained(filter='', exclude_filters='') -> list[str]:
    return list_models(filter, exclude_filters=exclude_filters, pretrained=True, include_tags=True)


timm.list_models, timm.list_pretrained = list_models, list_pretrained


@pytest.fixture(autouse=True)
def every_block_runs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where timm asks for a gradient of every parameter, a TinyMIM student runs its untrained tail, too.

    By default it does not; `test_tinymim_contract.py` says of which parameters then no gradient comes.
    """
    test = getattr(request.node, 'originalname', '')
    if test.startswith('test_model_backward') and '_student_' in request.node.name:
        create = request.module.create_model
        monkeypatch.setattr(request.module, 'create_model', functools.partial(create, forward_depth=12))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Drop what timm's tests do with models that they name themselves, and all but `BRIEF` where that is asked for."""

    def is_wanted(item: pytest.Item) -> bool:
        name = item.callspec.params.get('model_name') if hasattr(item, 'callspec') else None
        if not isinstance(name, str) or (architecture := name.partition('.')[0]) not in OURS:
            return False
        return architecture not in RUN_BRIEFLY or item.originalname in BRIEF

    wanted = [item for item in items if is_wanted(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in wanted])
    items[:] = wanted
