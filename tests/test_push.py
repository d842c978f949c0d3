"""A pushed page was verified, arrives whole, overwrites nothing unknown, and is the same model when it is downloaded.

huggingface_hub's own client, over loopback, in processes of their own; Xet is off there (see test_hub_faults.py).
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from conftest import ARCHITECTURES, GRAPHS, LARGE, TAGGED, images_for, refused, rest_is_full, shallow, small_of
from golden_rule import fill_by_rule
from hub_client import HubClient, assert_cache_is_whole, assert_refused, contents
from minihub import Fault, MiniHub, Page
from safetensors.torch import load_file
from test_pack import MULTIPLEXED

from tinyvit_zoo.compress import multiplex
from tinyvit_zoo.hub import save_folder
from tinyvit_zoo.hub.pack import pack
from tinyvit_zoo.hub.push import push
from tinyvit_zoo.hub.remote import HubError
from tinyvit_zoo.hub.verify import verify

REPO = 'me/small'
assert_close = partial(torch.testing.assert_close, rtol=0, atol=1e-6)
SMALL_ONES = [name for name in ARCHITECTURES if name not in LARGE]
FIRST_TAGS = [next(tag for tag in TAGGED if tag.startswith(f'{name}.')) for name in SMALL_ONES]


@pytest.fixture(scope='module')
def page(tmp_path_factory) -> Path:
    """A packed folder."""
    root = tmp_path_factory.mktemp('page')
    folder = save_folder(small_of('tinyvit', img_size=32), root / 'model')
    return pack(str(folder), root / 'page', tag='small', repo=REPO)


@pytest.fixture(scope='module')
def new_page(page, tmp_path_factory) -> Path:
    """The same with another card."""
    copy = Path(shutil.copytree(page, tmp_path_factory.mktemp('new') / 'page'))
    (copy / 'README.md').write_text('# New\n')
    return pack(str(copy), copy)


def pushed(client: HubClient, page: Path, *options: str) -> str:
    code, out, err = client.run('push', page, '--to', REPO, *options)
    assert code == 0, err
    return out


def test_a_page_is_pushed_once_and_can_be_loaded(hub, client, page):
    out = pushed(client, page)
    assert out.splitlines()[-1] == f'{hub.url}/{REPO}'
    assert hub.pages[REPO].files == contents(page)
    assert not hub.pages[REPO].private
    assert not any(name.endswith(('.bin', '.pth', '.pt')) for name in hub.pages[REPO].files)
    assert 'no commit was made' in pushed(client, page)
    assert hub.commits == 1
    code, out, err = client.run('verify', REPO)
    assert code == 0, err
    assert hub.pages[REPO].commit in out
    load = f"import timm; print(timm.create_model('hf-hub:{REPO}', pretrained=True).head.fc.bias[0].item())"
    code, out, err = client.run(python=load)
    assert code == 0, err
    assert float(out) == pytest.approx(load_file(page / 'model.safetensors')['head.fc.bias'][0].item())
    assert_cache_is_whole(client)


@pytest.mark.slow
def test_a_name_with_random_weights_is_packed_and_pushed(hub, client):
    """By the command alone; pushing the same again makes no commit."""
    for _ in range(2):
        code, out, err = client.run('push', 'tinyvit_5m_224.in1k', '--random', '--seed', 1, '--to', REPO)
        assert code == 0, err
    assert 'no commit was made' in out
    assert hub.commits == 1
    assert client.run('verify', REPO)[0] == 0


def test_a_page_without_a_manifest_is_verified_by_its_output(hub, client, page):
    files = {k: v for k, v in contents(page).items() if k != 'manifest.json'}
    hub.pages[REPO] = Page(files)
    code, out, err = client.run('verify', REPO)
    assert code == 0, err
    assert 'no manifest' in out
    del files['test/rand_tensors.safetensors']
    hub.pages[REPO] = Page(files)
    assert_refused(client.run('verify', REPO), 'test/rand_tensors.safetensors', '404')


AS_A_STRANGER = """
import os, sys
from tinyvit_zoo.cli.app import run_app
del os.environ['HF_TOKEN']
sys.argv = ['tinyvit-zoo', *{args}]
run_app()
"""


@pytest.mark.parametrize('args', [('verify', REPO), ('verify', 'me/none'), ('push', '{page}', '--to', 'me/none')])
def test_without_a_login_no_private_page_is_visible_and_nothing_is_pushed(hub, client, page, args):
    hub.pages[REPO] = Page(contents(page), private=True)
    assert client.run('verify', REPO)[0] == 0  # with the token of HF_TOKEN
    shutil.rmtree(client.home)
    program = AS_A_STRANGER.format(args=[arg.format(page=page) for arg in args])
    assert_refused(client.run(python=program), 'Check the name; log in with `hf auth login`, or set HF_TOKEN.')
    assert list(hub.pages) == [REPO]


@pytest.mark.slow
def test_a_revision_is_verified_by_name_and_a_missing_one_is_reported(hub, client, page, new_page):
    hub.pages[REPO] = Page(contents(page))
    first = hub.pages[REPO].commit
    hub.pages[REPO].change(contents(new_page))
    for revision, commit in ((first, first), ('main', hub.pages[REPO].commit)):
        code, out, err = client.run('verify', f'{REPO}@{revision}')
        assert code == 0, err
        assert f'at commit {commit}' in out
    assert_refused(client.run('verify', f'{REPO}@v2'), '(404)')


@pytest.mark.slow
def test_a_card_that_does_not_name_its_page_is_not_pushed(hub, client, page, tmp_path):
    nameless = pack(str(page.parent / 'model'), tmp_path / 'page', tag='small')
    _, _, err = refusal = client.run('push', nameless, '--to', REPO)
    assert_refused(refusal, 'OWNER/NAME', 'instead of the name of the page')
    assert hub.log == []
    _, command, _ = err.split('`')
    assert client.run(*command.split()[1:])[0] == 0
    pushed(client, nameless)
    assert f"'hf-hub:{REPO}'".encode() in hub.pages[REPO].files['README.md']


def test_a_new_page_can_be_private(hub, client, page):
    pushed(client, page, '--private')
    assert hub.pages[REPO].private
    pushed(client, page, '--private')
    hub.pages[REPO].private = False
    assert_refused(client.run('push', page, '--to', REPO, '--private'), 'is public already')


def test_a_dry_run_changes_nothing(hub, client, page):
    out = pushed(client, page, '--dry-run')
    assert 'Would upload README.md, config.json' in out
    assert hub.pages == {}
    assert {method for method, _ in hub.log} == {'GET'}


def test_only_changed_files_are_uploaded_and_removed_ones_are_deleted(hub, client, page, new_page):
    old = contents(page)
    listed = json.loads(old['manifest.json'])
    listed['sha256']['notes.txt'] = 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'
    old |= {'manifest.json': json.dumps(listed).encode(), 'notes.txt': b'', '.gitattributes': b'* lfs'}
    hub.pages[REPO] = Page(old)
    out = pushed(client, new_page)
    assert 'Uploaded README.md, manifest.json; delete notes.txt' in out
    assert hub.pages[REPO].files == contents(new_page) | {'.gitattributes': b'* lfs'}
    assert not any(method == 'PUT' for method, _ in hub.log)


@pytest.mark.parametrize(
    ('name', 'content'),
    [('README.md', b'# Written on the Hub'), ('model.safetensors', b'others'), ('pytorch_model.bin', b'more')],
)
@pytest.mark.parametrize('ours', [True, False], ids=['once pushed', 'never pushed'])
def test_a_page_of_unknown_content_is_not_overwritten(hub, client, page, new_page, name, content, ours):
    before = (contents(page) if ours else {}) | {name: content}
    hub.pages[REPO] = Page(before)
    assert_refused(client.run('push', new_page, '--to', REPO), name, '--force', 'Nothing was changed')
    assert hub.pages[REPO].files is before
    pushed(client, new_page, '--force')
    assert hub.pages[REPO].files == before | contents(new_page)


@pytest.mark.parametrize(
    ('options', 'files', 'words'),
    [
        (['--private'], {}, 'is public already'),
        ([], {'README.md': b'# Of somebody else'}, 'README.md'),
    ],
    ids=['public', 'other files'],
)
def test_a_page_that_somebody_creates_meanwhile_is_read_again(hub, client, page, options, files, words):
    hub.faults = [Fault('POST .*/repos/create', hold=True)]
    run = client.start('push', page, '--to', REPO, *options)
    assert hub.stalled.wait(300)
    hub.faults, hub.pages[REPO] = [], Page(dict(files))
    hub.released.set()
    assert_refused(run.wait(), words)
    assert hub.pages[REPO].files == files


def test_the_owners_default_decides_whether_a_page_is_private(page, monkeypatch):
    asked = []
    monkeypatch.setattr('huggingface_hub.constants.is_offline_mode', lambda: False)
    monkeypatch.setattr('huggingface_hub.HfApi.create_repo', lambda self, repo, **kwargs: asked.append(kwargs))
    monkeypatch.setattr('tinyvit_zoo.hub.push.find_page', lambda repo: None)
    for private in (False, True):
        refused(lambda private=private: push(page, REPO, private=private), 'may not see it', kind=HubError)
    assert [kwargs['private'] for kwargs in asked] == [None, True]


def test_the_hub_is_not_asked_before_the_folder_is_verified(hub, client, page, tmp_path):
    spoilt = Path(shutil.copytree(page, tmp_path / 'spoilt'))
    data = bytearray((spoilt / 'model.safetensors').read_bytes())
    data[-1] ^= 1
    (spoilt / 'model.safetensors').write_bytes(data)
    assert_refused(client.run('push', spoilt, '--to', REPO), 'model.safetensors', 'sha256 differs')
    assert hub.log == []


@pytest.mark.parametrize('repo', ['small', 'me/', 'me/small/deep', 'https://me/small', '../small'])
def test_an_invalid_name_of_a_page_is_reported(hub, client, page, repo):
    assert_refused(client.run('push', page, '--to', repo), 'owner/name')
    assert hub.log == []


@pytest.mark.slow
def test_a_page_is_fetched_from_the_cache_without_the_hub(hub, client, page):
    hub.pages[REPO] = Page(contents(page))
    hub.pages['me/bare'] = Page({k: v for k, v in contents(page).items() if k != 'manifest.json'})
    assert client.run('verify', REPO)[0] == 0
    assert client.run('verify', 'me/bare')[0] == 0
    asked = len(hub.log)
    offline = HubClient(client.root, hub.environment | dict(HF_HUB_OFFLINE='1'))  # with the same cache
    assert offline.run('verify', REPO)[0] == 0
    code, out, _ = offline.run('verify', 'me/bare')
    assert code == 0
    assert 'no manifest' in out
    assert_refused(offline.run('verify', 'me/other'), 'HF_HUB_OFFLINE')
    assert_refused(offline.run('push', page, '--to', REPO), 'HF_HUB_OFFLINE')
    offline.close()
    assert len(hub.log) == asked


def test_a_page_with_a_pickle_in_its_manifest_is_not_downloaded(hub, client, page):
    files = contents(page)
    listed = json.loads(files['manifest.json'])
    listed['sha256']['pytorch_model.bin'] = '0' * 64
    hub.pages[REPO] = Page(files | {'manifest.json': json.dumps(listed).encode(), 'pytorch_model.bin': b'danger'})
    assert_refused(client.run('verify', REPO), 'can run code')
    assert hub.downloads == [f'{REPO}/config.json', f'{REPO}/manifest.json']


LOAD = f"""
import timm, torch, tinyvit_zoo
model = timm.create_model('hf-hub:{REPO}', pretrained=True)
"""


def test_weights_that_are_not_those_of_the_manifest_are_not_loaded(hub, client, page):
    """Somebody replaced them on the Hub, where their checksum is right."""
    files = contents(page)
    other = save_folder(small_of('tinyvit', img_size=32).half(), page.parent / 'other') / 'model.safetensors'
    hub.pages[REPO] = Page(files | {'model.safetensors': other.read_bytes()})
    code, _, err = client.run(python=LOAD)
    assert code == 1
    assert 'does not have the sha256 that the manifest.json of its page lists' in err
    hub.pages[REPO].change(files)
    assert client.run(python=LOAD)[0] == 0


def test_weights_damaged_on_the_way_are_not_loaded_and_not_kept(hub, client, page):
    hub.pages[REPO] = Page({k: v for k, v in contents(page).items() if k != 'manifest.json'})
    hub.faults = [Fault('GET .*model.safetensors', flip=True)]
    code, _, err = client.run(python=LOAD)
    assert code == 1
    assert 'another sha256' in err
    assert_cache_is_whole(client)
    hub.faults = []
    assert client.run(python=LOAD)[0] == 0


# --- every tag, and what `multiplex` makes


SAME = """
import sys, timm, torch, transformers, tinyvit_zoo
from safetensors.torch import load_file
pair = load_file('{page}/test/rand_tensors.safetensors')
kind = 'AutoModel{{}}'.format('ForImageClassification' if {classifies} else '')
with torch.inference_mode():
    local = timm.create_model('local-dir:{page}', pretrained=True).eval()(pair['input'])
    fetched = timm.create_model('hf-hub:{repo}', pretrained=True).eval()(pair['input'])
    loaded = getattr(transformers, kind).from_pretrained('{repo}', trust_remote_code=True)
    output = loaded(pair['input'])
torch.testing.assert_close(local, pair['output'], rtol=1e-3, atol=1e-4)
torch.testing.assert_close(fetched, local, rtol=0, atol=1e-6)
torch.testing.assert_close(output.logits if {classifies} else output.pooler_output, local, rtol=0, atol=1e-6)
print(type(loaded.timm_model).__name__, type(loaded).__module__.split('.')[0])
"""


def assert_the_hub_gives_it_back(hub: MiniHub, client: HubClient, page: Path, model: torch.nn.Module) -> None:
    """Pushed, verified in another cache, and the same in timm and transformers, with our class in both."""
    pushed(client, page)
    assert hub.pages[REPO].files == contents(page)
    code, _, err = client.run('verify', REPO)
    assert code == 0, err
    code, out, err = client.run(python=SAME.format(page=page, repo=REPO, classifies=model.num_classes > 0))
    assert code == 0, err
    assert out.split() == [type(model).__name__, 'transformers_modules']


def assert_the_page_is_the_model(model: torch.nn.Module, root: Path) -> Path:
    """Packed, verified, and the same from its folder in timm and in transformers. Returns the page."""
    transformers = pytest.importorskip('transformers')
    auto = transformers.AutoModelForImageClassification if model.num_classes else transformers.AutoModel
    image = images_for(model, 1)
    with torch.no_grad():
        expected = model(image)
        page = pack(str(save_folder(model, root / 'model')), root / 'page')
        assert verify(page).difference < 1e-6
        again = timm.create_model(f'local-dir:{page}', pretrained=True).eval()
        assert_close(again(image), expected)
        loaded = auto.from_pretrained(page, trust_remote_code=True)
        assert type(loaded.timm_model) is type(again) is type(model)
        output = loaded(image)
        assert_close(output.logits if model.num_classes else output.pooler_output, expected)
    return page


@pytest.fixture
def root() -> Iterator[Path]:
    """A folder that is removed right after its test: pages of all models are gigabytes."""
    with tempfile.TemporaryDirectory(prefix='page-') as folder:
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.parametrize('name', rest_is_full(FIRST_TAGS, [tag for tag in FIRST_TAGS if tag.startswith(GRAPHS)]))
def test_a_model_of_every_kind_is_packed_proved_and_the_same_everywhere_and_over_the_hub(name, hub, client, root):
    model = fill_by_rule(timm.create_model(name))
    page = assert_the_page_is_the_model(model, root)
    assert_the_hub_gives_it_back(hub, client, page, model)


@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name in SMALL_ONES if name not in GRAPHS])
def test_every_other_architecture_is_packed_proved_and_the_same_everywhere(name, root):
    """In its own width."""
    assert_the_page_is_the_model(shallow(name), root)


@pytest.mark.full
@pytest.mark.parametrize('name', [tag for tag in TAGGED if tag not in FIRST_TAGS and not tag.startswith(tuple(LARGE))])
def test_every_other_tag_is_packed_proved_and_the_same_everywhere(name, root, pack_by_another_process):
    assert_the_page_is_the_model(fill_by_rule(timm.create_model(name)), root)


@pytest.mark.slow
@pytest.mark.parametrize('kind', MULTIPLEXED)
def test_what_multiplex_made_is_the_same_over_the_hub(kind, hub, client, tmp_path):
    pytest.importorskip('transformers')
    model = multiplex(MULTIPLEXED[kind](), 2).eval()
    page = pack(str(save_folder(model, tmp_path / 'model')), tmp_path / 'page', repo=REPO)
    assert_the_hub_gives_it_back(hub, client, page, model)
