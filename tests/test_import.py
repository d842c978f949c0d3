"""`tinyvit-zoo import` end to end: a file as the authors saved it, verified, kept, and `pretrained=True` offline.

The files of TinyMIM and MAE-Lite can be had with a browser only, so this is how their weights get in. The files here
are filled by the golden rule and wrapped as the released training code wraps them.
"""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from conftest import assert_same, refused
from golden_case import EXACT, SINGLE, assert_close
from golden_rule import fill_by_rule, golden, noise, official_state_dict, rule_value

from tinyvit_zoo.build import load_model
from tinyvit_zoo.checkpoints import CheckpointError, imported_path
from tinyvit_zoo.common.errors import ModelError
from tinyvit_zoo.hub.convert import convert, import_weights
from tinyvit_zoo.releases import find_release

MAE_LITE = 'mae_lite_vit_tiny_patch16_224.mae_in1k_ft_in1k'
MAE_LITE_ENCODER = 'mae_lite_vit_tiny_encoder_patch16_224.mae_in1k'
TINYMIM = 'tinymim_vit_tiny_patch16_224.ft_in1k'
STUDENT = 'tinymim_vit_tiny_student_patch16_224.mim_in1k'
STAR = 'tinymim_vit_tiny_star_patch16_224.ft_in1k'


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch) -> Path:
    """An empty local store of weights."""
    monkeypatch.setenv('TINYVIT_ZOO_HOME', str(tmp_path / 'store'))
    return tmp_path / 'store'


# --- files as the authors' training code saves them


def mae_lite_file(path: Path, state_dict: dict, prefix: str = 'module.model.', **others: torch.Tensor) -> Path:
    """A training wrapper saved whole, under DDP; no arguments are saved."""
    model = {prefix + k: v for k, v in state_dict.items()} | others
    torch.save({'start_epoch': 300, 'model': model, 'best_top1': 0.0, 'optimizer': {'state': {}}}, path)
    return path


def tinymim_file(path: Path, state_dict: dict, model: str) -> Path:
    """The bare model with the arguments of the training."""
    args = Namespace(model=model, batch_size=128, blr=1.5e-4, data_path='/data', global_pool=True)
    torch.save({'model': state_dict, 'optimizer': {'state': {}}, 'epoch': 299, 'scaler': {}, 'args': args}, path)
    return path


def plain_file(path: Path, state_dict: dict) -> Path:
    torch.save({'model': state_dict}, path)
    return path


def rpe_file(path: Path, state_dict: dict) -> Path:
    """With the index that the released code stores with every table."""
    index = torch.from_numpy(golden('maelite_relpos_index14')['index'])
    return mae_lite_file(path, state_dict | {k: index for k in state_dict if k.endswith('relative_position_index')})


def without(state_dict: dict, *starts: str) -> dict:
    return {k: v for k, v in state_dict.items() if not k.startswith(starts)}


def logits_of(name: str) -> torch.Tensor:
    """Outputs with `pretrained=True` in double precision on the images of the golden outputs."""
    model = timm.create_model(name, pretrained=True).eval().double()
    with torch.no_grad():
        return model(noise(224, 224).double())


CLASSIFIERS = {
    MAE_LITE: ('maelite_vit_tiny_patch16_ft', mae_lite_file),
    'mae_lite_vit_small_patch16_224.deit_impr_in1k': ('maelite_vit_small_patch16_ft', mae_lite_file),
    'mae_lite_vit_tiny_rpe_patch16_224.mae_in1k_ft_in1k_1000e': ('maelite_vit_tiny_patch16_rpe', rpe_file),
    TINYMIM: ('tinymim_vit_tiny_patch16_ft', lambda p, s: tinymim_file(p, s, 'vit_tiny_patch16')),
    'tinymim_vit_small_patch16_224.ft_in1k': (
        'tinymim_vit_small_patch16_ft',
        lambda p, s: tinymim_file(p, s, 'vit_small_patch16'),
    ),
    'tinyvit_5m_224.in1k': ('tiny_vit_5m_224', plain_file),
    'mini_deit_tiny_patch16_224.distill_in1k': ('mini_deit_tiny_patch16_224', plain_file),
    'mini_swin_tiny_patch4_window7_224.distill_in1k': ('mini_swin_tiny', plain_file),
}


@pytest.mark.parametrize(
    'name', [pytest.param(n, marks=[] if '_tiny_' in n or '_5m_' in n else [pytest.mark.slow]) for n in CLASSIFIERS]
)
def test_an_imported_classifier_computes_what_the_authors_code_does(cli, tmp_path, name):
    manifest, save = CLASSIFIERS[name]
    code, out, _ = cli('import', save(tmp_path / 'file.pth', official_state_dict(manifest)), '--name', name)
    assert code == 0
    assert f"timm.create_model('{name}', pretrained=True)" in out
    assert not [p.name for p in imported_path(name).iterdir() if p.suffix not in ('.json', '.safetensors', '.py')]
    expected = golden(manifest)
    exact = 'logits_f64' in expected
    assert_close(logits_of(name), expected['logits_f64' if exact else 'logits'], EXACT if exact else SINGLE)


def mae_other_tensors() -> dict[str, torch.Tensor]:
    """Tensors that D-MAE saves with the student: a teacher of another width, and adapters of the heads."""
    teacher = {'cls_token': torch.ones(1, 1, 768), 'blocks.0.norm1.weight': torch.ones(768)}
    adapter = {'module.attn_adapter.adapter11.weight': torch.ones(12, 12, 1, 1)}
    return {f'module.tch_model.{k}': v for k, v in teacher.items()} | adapter


def moco_state_dict() -> dict[str, torch.Tensor]:
    """MoCo v3's wrapper: the encoder filled by the rule, and everything else filled differently."""
    return {
        k: v if k.startswith('base_encoder.') else torch.full_like(v, 7)
        for k, v in official_state_dict('maelite_mocov3_tiny').items()
    }


ENCODERS = {
    MAE_LITE_ENCODER: ('maelite_mae_tiny', mae_lite_file),
    'mae_lite_vit_tiny_encoder_patch16_224.dmae_in1k': (
        'maelite_mae_tiny',
        lambda p, s: mae_lite_file(p, s, **mae_other_tensors()),
    ),
    'mae_lite_vit_small_encoder_patch16_224.mae_in1k': ('maelite_mae_small', mae_lite_file),
    STUDENT: ('tinymim_student_tiny', lambda p, s: tinymim_file(p, s, 'tinymim_vit_tiny_patch16')),
    'tinymim_vit_small_student_patch16_224.mim_in1k': (
        'tinymim_student_small',
        lambda p, s: tinymim_file(p, s, 'tinymim_vit_small_patch16'),
    ),
}


@pytest.mark.parametrize('name', ENCODERS)
def test_an_imported_encoder_has_the_weights_and_nothing_of_the_training(tmp_path, name):
    manifest, save = ENCODERS[name]
    official = official_state_dict(manifest)
    import_weights(save(tmp_path / 'file.pth', official), name)
    model = timm.create_model(name, pretrained=True)
    assert_same(model.state_dict(), without(official, 'mask_token', 'decoder_'))
    assert model.num_classes == 0


def test_of_moco_v3_the_base_encoder_is_imported_without_its_projector(tmp_path):
    name = 'mae_lite_vit_tiny_encoder_patch16_224.mocov3_in1k'
    file = mae_lite_file(tmp_path / 'file.pth', moco_state_dict(), prefix='module.')
    import_weights(file, name)
    base = {k.removeprefix('base_encoder.'): v for k, v in moco_state_dict().items() if k.startswith('base_encoder.')}
    assert_same(timm.create_model(name, pretrained=True).state_dict(), without(base, 'head.'))


def test_a_file_of_tinymim_star_is_imported_with_both_classifiers(tmp_path):
    model = fill_by_rule(timm.create_model(STAR)).double()
    import_weights(plain_file(tmp_path / 'TinyMIM-FT-Tstar.pth', model.float().state_dict()), STAR)
    with torch.no_grad():
        expected = model.double()(noise(224, 224).double())
    assert_close(logits_of(STAR), expected.numpy(), EXACT)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('manifest', 'trained_as', 'name'),
    [
        ('tinymim_vit_base_patch16_ft', 'vit_base_patch16', 'tinymim_vit_base_patch16_224.ft_in1k'),
        ('tinymim_student_base', 'tinymim_vit_base_patch16', 'tinymim_vit_base_student_patch16_224.mim_in1k'),
    ],
)
def test_the_files_of_vit_base_are_imported_too(tmp_path, manifest, trained_as, name):
    official = official_state_dict(manifest)
    import_weights(tinymim_file(tmp_path / 'file.pth', official, trained_as), name)
    assert_same(timm.create_model(name, pretrained=True).state_dict(), official)
    if find_release(name).num_classes:
        assert_close(logits_of(name), golden(manifest)['logits'], SINGLE)


def test_the_index_of_the_tables_must_be_that_of_beit(tmp_path, store):
    """A file whose index is another numbering of the same table would load and compute nonsense."""
    name = 'mae_lite_vit_tiny_rpe_patch16_224.mae_in1k_ft_in1k_1000e'
    file = rpe_file(tmp_path / 'file.pth', official_state_dict('maelite_vit_tiny_patch16_rpe'))
    checkpoint = torch.load(file, weights_only=True)
    key = 'module.model.blocks.3.attn.relative_position_index'
    checkpoint['model'][key] = checkpoint['model'][key].flip(0)
    torch.save(checkpoint, file)
    refused(lambda: import_weights(file, name), 'blocks.3.attn.relative_position_index')
    assert not store.exists()


# --- the wrong file for the tag


def tiny_classifier() -> dict:
    return official_state_dict('maelite_vit_tiny_patch16_ft')


def wrong_files() -> dict[str, tuple[Callable[[Path], Path], str, tuple[str, ...]]]:
    """Defect -> (writer of the file into a folder, tag, words of the message)."""
    return {
        '12 heads into 3': (
            lambda p: mae_lite_file(p / 'f.pth', tiny_classifier()),
            TINYMIM,
            ('12 heads', '3 heads', 'module.model.'),
        ),
        '3 heads into 12': (
            lambda p: tinymim_file(p / 'f.pth', tiny_classifier(), 'vit_tiny_patch16'),
            MAE_LITE,
            ('3 heads', '12 heads', 'vit_tiny_patch16'),
        ),
        'the name of a 12-head file into 3': (
            lambda p: plain_file(p / 'deit_tiny_300e.pth.tar', tiny_classifier()),
            TINYMIM,
            ('12 heads', '3 heads'),
        ),
        '12 heads into a student of 6': (
            lambda p: mae_lite_file(p / 'f.pth', official_state_dict('maelite_mae_tiny')),
            STUDENT,
            ('12 heads', '6 heads, 12 in the last block'),
        ),
        'the file of another tag of the same architecture': (
            lambda p: mae_lite_file(p / 'deit_tiny_300e.pth.tar', tiny_classifier()),
            MAE_LITE,
            ('deit_tiny_300e.pth.tar', 'deit_impr_in1k', 'mae_tiny_400e_ft_300e.pth.tar'),
        ),
        'an encoder into a classifier': (
            lambda p: mae_lite_file(p / 'f.pth', official_state_dict('maelite_mae_tiny')),
            MAE_LITE,
            ('no classes', '1000', '--as-init'),
        ),
        'a classifier into an encoder': (
            lambda p: mae_lite_file(p / 'f.pth', tiny_classifier()),
            MAE_LITE_ENCODER,
            ('1000 classes', 'none'),
        ),
        'another width': (
            lambda p: mae_lite_file(p / 'f.pth', tiny_classifier()),
            'mae_lite_vit_small_patch16_224.mae_in1k_ft_in1k',
            ('of a wrong shape',),
        ),
        'another size': (
            lambda p: mae_lite_file(p / 'f.pth', at_size_of(tiny_classifier(), 20 * 20)),
            MAE_LITE,
            ('pos_embed', 'of a wrong shape'),
        ),
        'classified by its class token': (
            lambda p: mae_lite_file(p / 'f.pth', official_state_dict('maelite_vit_tiny_patch16_ft_clstoken')),
            MAE_LITE,
            ('class token',),
        ),
        'no tables': (
            lambda p: mae_lite_file(p / 'f.pth', tiny_classifier()),
            'mae_lite_vit_tiny_rpe_patch16_224',
            ('missing', 'relative_position_bias_table'),
        ),
        'no tokens of distillation': (
            lambda p: mae_lite_file(p / 'f.pth', tiny_classifier()),
            STAR,
            ('missing', 'conv1x1', 'of a wrong shape', 'head.weight'),
        ),
        'another family': (
            lambda p: plain_file(p / 'f.pth', official_state_dict('tiny_vit_5m_224')),
            TINYMIM,
            ('TinyViT', 'plain ViT'),
        ),
        'a stray tensor': (
            lambda p: mae_lite_file(p / 'f.pth', tiny_classifier() | {'surprise': torch.ones(1)}),
            MAE_LITE,
            ('unknown', 'surprise'),
        ),
        'a missing tensor': (
            lambda p: mae_lite_file(p / 'f.pth', without(tiny_classifier(), 'blocks.5.mlp.fc1.bias')),
            MAE_LITE,
            ('missing', 'blocks.5.mlp.fc1.bias'),
        ),
    }


def at_size_of(state_dict: dict, patches: int) -> dict:
    return state_dict | {'pos_embed': torch.from_numpy(rule_value('pos_embed', (1, 1 + patches, 192)))}


@pytest.mark.parametrize('wrong', wrong_files())
def test_the_wrong_file_is_refused_and_nothing_is_stored(tmp_path, store, wrong):
    save, name, words = wrong_files()[wrong]
    file = save(tmp_path)
    refused(lambda: import_weights(file, name), *words)
    assert not store.exists()


@pytest.mark.parametrize(
    'wrong',
    [
        '12 heads into 3',
        pytest.param('3 heads into 12', marks=pytest.mark.slow),
        pytest.param('12 heads into a student of 6', marks=pytest.mark.slow),
    ],
)
def test_another_number_of_heads_is_refused_wherever_a_file_is_loaded(cli, tmp_path, wrong):
    save, name, words = wrong_files()[wrong]
    file = save(tmp_path)
    refused(lambda: load_model(name, str(file)), *words)
    refused(lambda: convert(file, tmp_path / 'out.safetensors', name=name), *words)
    assert not (tmp_path / 'out.safetensors').exists()
    code, _, err = cli('compress', name, '--weights', file, '-o', tmp_path / 'out')
    assert code == 1
    assert all(word in err for word in words)


def test_a_file_of_unknown_heads_is_imported_with_a_warning(cli, tmp_path, caplog):
    file = plain_file(tmp_path / 'mine.pth', tiny_classifier())
    import_weights(file, MAE_LITE)
    assert 'number of attention heads' in caplog.text
    caplog.clear()
    timm.create_model(MAE_LITE, pretrained=True)  # verified when it was imported
    assert 'heads' not in caplog.text


# --- an encoder as the start of a training


@pytest.fixture
def student_file(tmp_path) -> Path:
    return tinymim_file(
        tmp_path / 'student.pth', official_state_dict('tinymim_student_tiny'), 'tinymim_vit_tiny_patch16'
    )


FRESH = ('norm.', 'fc_norm.', 'head.')


def test_as_init_takes_the_encoder_and_initializes_the_rest(cli, student_file, tmp_path):
    """TinyMIM's own recipe: 3 heads are fine-tuned from a file of 6."""
    folder = tmp_path / 'start'
    code, out, _ = cli('convert', student_file, folder, '--name', 'tinymim_vit_tiny_patch16_224', '--as-init')
    assert code == 0
    assert 'fresh' in out
    model = timm.create_model(f'local-dir:{folder}', pretrained=True)
    assert {block.attn.num_heads for block in model.blocks} == {3}
    ours = model.state_dict()
    assert_same(without(ours, *FRESH), without(official_state_dict('tinymim_student_tiny'), *FRESH))
    assert {k for k in ours if k.startswith(FRESH)} == {
        f'{m}.{p}' for m in ('fc_norm', 'head') for p in ('weight', 'bias')
    }
    torch.testing.assert_close(model.fc_norm.weight, torch.ones(192))
    assert model.head.weight.std() > 0


def test_initial_weights_are_not_a_release(student_file, tmp_path):
    _, folder = convert(student_file, tmp_path / 'start', name=TINYMIM, as_init=True, num_classes=5)
    cfg = timm.create_model(f'local-dir:{folder}').pretrained_cfg
    assert (cfg['tag'], cfg['num_classes']) == ('init', 5)
    assert not cfg.get('license')
    assert not cfg.get('notes')


def test_initial_weights_are_written_as_a_file_too(student_file, tmp_path):
    for name in ('start.safetensors', 'start.pth'):
        _, file = convert(student_file, tmp_path / name, name='tinymim_vit_tiny_patch16_224', as_init=True)
        model = load_model('tinymim_vit_tiny_patch16_224', str(file))
        assert_same(without(model.state_dict(), *FRESH), without(official_state_dict('tinymim_student_tiny'), *FRESH))


def test_without_as_init_an_encoder_does_not_become_a_classifier(cli, student_file, tmp_path):
    code, _, err = cli('convert', student_file, tmp_path / 'start', '--name', 'tinymim_vit_tiny_patch16_224')
    assert code == 1
    assert err.count('\n') == 1
    assert '--as-init' in err
    assert not (tmp_path / 'start').exists()


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (dict(name=None), ('--name',)),
        (dict(name=TINYMIM, head='in1k'), ('head',)),
        (dict(name='tinymim_vit_small_patch16_224'), ('of a wrong shape',)),
        (dict(name='tinyvit_5m_224'), ('plain ViT',)),
    ],
    ids=['no name', 'head', 'another width', 'another family'],
)
def test_as_init_refuses_what_makes_no_sense(student_file, tmp_path, arguments, words):
    with pytest.raises((ModelError, CheckpointError)) as caught:
        convert(student_file, tmp_path / 'start.safetensors', as_init=True, **arguments)
    assert all(word in str(caught.value) for word in words), caught.value
    assert not (tmp_path / 'start.safetensors').exists()


def test_as_init_is_for_plain_vits_only(official_file, tmp_path):
    with pytest.raises(ModelError, match='as_init'):
        convert(official_file('tiny_vit_5m_224'), tmp_path / 'start', name='tinyvit_5m_224', as_init=True)
