"""timm's own tests, over our models.

They come from timm's source distribution of the installed version, fetched once into `.cache/`; nothing of them is
kept in this repository. They prove the interface; numbers are proved by `test_tinyvit_golden.py`.
"""

import os
import re
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
import safetensors.torch
import timm
from conftest import ARCHITECTURES, GRAPHS, TAGGED, rest_is_full
from filelock import FileLock
from minihub import MiniHub, Page

from tinyvit_zoo.releases import FAMILIES, TEACHERS, find_family

pytestmark = pytest.mark.slow

# Models of tokens.
TOKENS = ('mini_deit_', 'tinymim_', 'mae_lite_', 'clip_vit_')
INAPPLICABLE_TO_TOKENS = {
    'test_prune_intermediate_layers_last_feature',
    'test_reset_classifier_keeps_pool',
    'test_head_hidden_size',
    'test_features_only_grad_checkpointing_backward',
}
INAPPLICABLE_TO_TIMMS_VIT = {*INAPPLICABLE_TO_TOKENS, 'test_feature_getter_stage_ends_torchscript'}
INAPPLICABLE_TO_TIMMS_BEIT = {*INAPPLICABLE_TO_TIMMS_VIT, 'test_model_init_weights_after_to_empty'}

HERE = Path(__file__).parent
CACHE = HERE.parent / '.cache'

PER_ARCHITECTURE = {
    'test_model_forward',
    'test_model_backward',
    'test_model_forward_torchscript',
    'test_model_forward_features',
    'test_model_forward_intermediates',
    'test_model_forward_intermediates_features',
    'test_prune_intermediate_layers_contract',
    'test_model_forward_fx',
    'test_model_backward_fx',
}
FUNCTIONS = {
    'test_prune_intermediate_layers_params_used',
    'test_forward_after_prune_intermediate_layers',
    'test_prune_intermediate_layers_last_feature',
    'test_reset_classifier_keeps_pool',
    'test_head_hidden_size',
    'test_features_only_grad_checkpointing_backward',
    'test_feature_getter_stage_ends_torchscript',
    'test_model_init_weights_after_to_empty',
    'test_headless_checkpoint_reload',
    'test_relpos_family_set_input_size',
    'test_relpos_non_square_checkpoint_reload',
    'test_relpos_non_square_set_input_size',
    'test_default_resize_hub_roundtrip',
}


def inapplicable(architecture: str) -> set[str]:
    """FUNCTIONS that do not apply to an architecture."""
    if '_rpe_' in architecture:
        return INAPPLICABLE_TO_TIMMS_BEIT
    if architecture.startswith(('tinymim_', 'mae_lite_', 'clip_vit_')):
        return INAPPLICABLE_TO_TIMMS_VIT
    if architecture.startswith('mini_swin_'):
        return {'test_prune_intermediate_layers_last_feature'}
    return INAPPLICABLE_TO_TOKENS if architecture.startswith('mini_deit_') else set()


@pytest.fixture(scope='session')
def timm_tests() -> Path:
    """Folder that holds timm's `tests/` and its settings for pytest."""
    folder = CACHE / f'timm-{timm.__version__}'
    CACHE.mkdir(exist_ok=True)
    with FileLock(folder.with_suffix('.lock')):
        if not (folder / 'complete').exists():
            command = [sys.executable, '-m', 'pip', 'download', '--quiet', '--disable-pip-version-check']
            command += ['--no-deps', '--no-binary', 'timm', f'timm=={timm.__version__}', '--dest', str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
            assert done.returncode == 0, f"timm's source distribution cannot be fetched: {done.stderr}"
            with tarfile.open(next(folder.glob('*.tar.gz'))) as archive:
                wanted = [m for m in archive if m.name.split('/')[1] in ('tests', 'pyproject.toml')]
                for member in wanted:
                    member.name = member.name.split('/', 1)[1]
                archive.extractall(folder, wanted, filter='data')
            (folder / 'complete').touch()
    return folder


@dataclass(frozen=True)
class Suite:
    """Runs timm's tests in a process of their own."""

    folder: Path
    report: Path

    def __call__(
        self,
        models: Iterable[str],
        brief: Iterable[str] = (),
        files: Iterable[str | Path] = ('tests/test_models.py',),
        select: str = 'not pretrained',
        **environment: str,
    ) -> dict[str, Counter]:
        """How often each of timm's tests passed, by architecture: all tests of `models`, those of BRIEF of `brief`.

        None failed, or was skipped for another reason than a size limit.
        """
        command = [sys.executable, '-m', 'pytest', '-q', '-p', 'timm_suite', '-p', 'no:cacheprovider', '-p', 'no:xdist']
        command += ['-c', 'pyproject.toml', '-W', 'ignore', f'--junit-xml={self.report}', '-k', select]
        environment = os.environ | dict(
            PYTHONPATH=os.pathsep.join(map(str, (HERE, self.folder, HERE.parent))),
            OMP_NUM_THREADS='1',
            TIMM_SUITE_MODELS=','.join(models),
            TIMM_SUITE_BRIEF=','.join(brief),
            **environment,
        )
        environment.pop('GITHUB_ACTIONS', None)  # there timm leaves some tests out
        for name in [n for n in environment if n.startswith('PYTEST_')]:
            del environment[name]
        command += map(str, files)
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
        passed = defaultdict(Counter)
        for case in ET.parse(self.report).iter('testcase'):
            assert case.find('failure') is None
            assert case.find('error') is None
            skipped, name = case.find('skipped'), case.get('name')
            if skipped is None:
                (architecture,) = {a for a in ARCHITECTURES if re.search(rf'[\[-]{a}[\].-]', name)}
                passed[architecture][name.partition('[')[0]] += 1
            else:
                assert 'input size' in skipped.get('message').lower(), skipped.get('message')
        return passed


@pytest.fixture
def suite(timm_tests, tmp_path) -> Suite:
    return Suite(timm_tests, tmp_path / 'report.xml')


def cfg_test(architecture: str) -> str:
    """Name of timm's test of a configuration: of a plain ViT it asks something else."""
    return 'test_model_default_cfgs_non_std' if architecture.startswith(TOKENS) else 'test_model_default_cfgs'


def model_tests(architecture: str) -> set[str]:
    """Tests of `test_models.py` that an architecture must have passed at least."""
    cfg = timm.get_pretrained_cfg(architecture)
    if cfg.fixed_input_size and max(cfg.input_size) > 256:  # timm leaves most out for their cost
        return {'test_model_forward'}
    left_out = {'test_model_forward_features'} if architecture.startswith(TOKENS) else set()
    return PER_ARCHITECTURE - left_out | {cfg_test(architecture)}


def assert_every_tag_was_seen(architecture: str, passed: Counter) -> None:
    test = cfg_test(architecture)
    if test in model_tests(architecture):
        assert passed[test] == sum(t.partition('.')[0] == architecture for t in TAGGED)


@pytest.mark.parametrize('family', rest_is_full(FAMILIES, FAMILIES.keys() - TEACHERS))
def test_timms_tests_of_a_family(family, suite):
    """Everything for each kind of graph; of the other architectures that they run, and their configurations.

    What of the named families' tests does not apply, and why, is said in `timm_functions.py`.
    """
    members = [name for name in ARCHITECTURES if find_family(name) == family]
    kinds = [name for name in members if name in GRAPHS]
    passed = suite(kinds, set(members) - set(kinds), ['tests/test_models.py', HERE / 'timm_functions.py'])
    assert passed.keys() == set(members)
    for name in members:
        assert_every_tag_was_seen(name, passed[name])
        if name in kinds:
            assert passed[name].keys() >= model_tests(name)
            assert passed[name].keys() & FUNCTIONS == FUNCTIONS - inapplicable(name)
        else:
            brief = {'test_model_forward', cfg_test(name)}
            assert brief & model_tests(name) <= passed[name].keys() <= brief


@pytest.mark.full
@pytest.mark.parametrize('architecture', [name for name in ARCHITECTURES if name not in GRAPHS])
def test_timms_model_tests_of_an_architecture(architecture, suite):
    passed = suite([architecture])[architecture]
    assert passed.keys() >= model_tests(architecture)
    assert_every_tag_was_seen(architecture, passed)


def test_timms_tests_of_pretrained_weights(suite, tmp_path):
    tags = [t for t in TAGGED if t.startswith('tinyvit_5m_224.')]
    with MiniHub() as hub:
        for tag in tags:
            weights = safetensors.torch.save(timm.create_model(tag).state_dict())
            hub.pages[timm.get_pretrained_cfg(tag).hf_hub_id] = Page({'model.safetensors': weights})
        home = str(tmp_path / 'huggingface')
        passed = suite(['tinyvit_5m_224'], select='pretrained', HF_HOME=home, **hub.environment)['tinyvit_5m_224']
        assert set(hub.downloads) == {f'{timm.get_pretrained_cfg(t).hf_hub_id}/model.safetensors' for t in tags}
    assert passed['test_model_load_pretrained'] == passed['test_model_features_pretrained'] == len(tags)
