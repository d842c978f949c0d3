"""timm's own tests, over our models.

They come from timm's source distribution of the installed version, fetched once into `.cache/`; nothing of them is
kept in this repository. They prove the interface; numbers are proved by `test_tinyvit_golden.py`.
"""

import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
import safetensors.torch
import timm
from conftest import ARCHITECTURES, TAGGED
from filelock import FileLock
from minihub import MiniHub, Page

pytestmark = pytest.mark.slow

# Models of tokens.
TOKENS = ('mini_deit_', 'tinymim_', 'mae_lite_')
INAPPLICABLE_TO_TOKENS = {
    'test_prune_intermediate_layers_last_feature',
    'test_reset_classifier_keeps_pool',
    'test_head_hidden_size',
    'test_features_only_grad_checkpointing_backward',
}
INAPPLICABLE_TO_TIMMS_VIT = {*INAPPLICABLE_TO_TOKENS, 'test_feature_getter_stage_ends_torchscript'}

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


def run_suite(
    timm_tests: Path, report: Path, files: Iterable[str | Path], models: str, select: str = '', **environment: str
) -> Counter:
    """How often each of timm's tests passed. None failed, or was skipped for another reason than a size limit."""
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'timm_suite', '-p', 'no:cacheprovider', '-p', 'no:xdist']
    command += ['-c', 'pyproject.toml', '-W', 'ignore', f'--junit-xml={report}', *(['-k', select] if select else [])]
    environment = os.environ | dict(
        PYTHONPATH=os.pathsep.join([str(HERE), str(timm_tests)]),
        OMP_NUM_THREADS='1',
        TIMM_SUITE_MODELS=models,
        **environment,
    )
    environment.pop('GITHUB_ACTIONS', None)  # there timm leaves some tests out
    for name in [n for n in environment if n.startswith('PYTEST_')]:
        del environment[name]
    done = subprocess.run(
        [*command, *map(str, files)], cwd=timm_tests, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    passed = Counter()
    for case in ET.parse(report).iter('testcase'):
        assert case.find('failure') is None
        assert case.find('error') is None
        skipped = case.find('skipped')
        if skipped is None:
            passed[case.get('name').partition('[')[0]] += 1
        else:
            assert 'input size' in skipped.get('message').lower(), skipped.get('message')
    return passed


@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_timms_model_tests(architecture, timm_tests, tmp_path):
    cfg = timm.get_pretrained_cfg(architecture)
    tests, of_tags = set(PER_ARCHITECTURE), 'test_model_default_cfgs'
    if architecture.startswith(TOKENS):  # a plain ViT, of which timm asks something else
        tests -= {'test_model_forward_features'}
        of_tags = 'test_model_default_cfgs_non_std'
    if cfg.fixed_input_size and max(cfg.input_size) > 256:  # timm leaves most out for their cost
        tests = {'test_model_forward'}
    else:
        tests |= {of_tags}
    passed = run_suite(timm_tests, tmp_path / 'report.xml', ['tests/test_models.py'], architecture, 'not pretrained')
    assert passed.keys() >= tests
    if of_tags in tests:
        assert passed[of_tags] == sum(t.partition('.')[0] == architecture for t in TAGGED)


@pytest.mark.parametrize(
    ('architecture', 'inapplicable'),
    [
        ('tinyvit_5m_224', set()),
        ('mini_deit_tiny_patch16_224', INAPPLICABLE_TO_TOKENS),
        ('tinymim_vit_tiny_patch16_224', INAPPLICABLE_TO_TIMMS_VIT),
        ('tinymim_vit_tiny_student_patch16_224', INAPPLICABLE_TO_TIMMS_VIT),
        ('tinymim_vit_tiny_star_patch16_224', INAPPLICABLE_TO_TIMMS_VIT),
        ('mae_lite_vit_tiny_encoder_patch16_224', INAPPLICABLE_TO_TIMMS_VIT),
        (
            'mae_lite_vit_tiny_rpe_patch16_224',
            INAPPLICABLE_TO_TIMMS_VIT | {'test_model_init_weights_after_to_empty'},
        ),
        ('mini_swin_tiny_patch4_window7_224', {'test_prune_intermediate_layers_last_feature'}),
    ],
)
def test_timms_tests_of_families_that_it_names(architecture, inapplicable, timm_tests, tmp_path):
    """Which do not apply, and why, is said in `timm_functions.py`."""
    passed = run_suite(timm_tests, tmp_path / 'report.xml', [HERE / 'timm_functions.py'], architecture)
    assert passed.keys() == FUNCTIONS - inapplicable


def test_timms_tests_of_pretrained_weights(timm_tests, tmp_path):
    tags = [t for t in TAGGED if t.startswith('tinyvit_5m_224.')]
    with MiniHub() as hub:
        for tag in tags:
            weights = safetensors.torch.save(timm.create_model(tag).state_dict())
            hub.pages[timm.get_pretrained_cfg(tag).hf_hub_id] = Page({'model.safetensors': weights})
        passed = run_suite(
            timm_tests,
            tmp_path / 'report.xml',
            ['tests/test_models.py'],
            'tinyvit_5m_224',
            'pretrained',
            HF_HOME=str(tmp_path / 'huggingface'),
            **hub.environment,
        )
        assert set(hub.downloads) == {f'{timm.get_pretrained_cfg(t).hf_hub_id}/model.safetensors' for t in tags}
    assert passed['test_model_load_pretrained'] == passed['test_model_features_pretrained'] == len(tags)
