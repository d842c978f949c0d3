"""Faults between us and the Hub: one sentence or success, no partial files, and a retry that succeeds.

The client is huggingface_hub's own, over loopback, in processes of their own. Xet, which real pushes and downloads use
where it is installed, is off: the server here does not speak it, so files travel by plain HTTP and git-LFS.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import rest_is_full, small_of
from hub_client import assert_cache_is_whole, assert_refused, contents
from minihub import Fault, Page

from tinyvit_zoo.hub import save_folder
from tinyvit_zoo.hub.pack import pack

pytestmark = pytest.mark.slow

REPO = 'me/small'
WEIGHTS = 'model.safetensors'
LOAD = f"import timm; timm.create_model('hf-hub:{REPO}', pretrained=True); print('loaded')"
BAD_TOKEN = 'Invalid credentials in Authorization header'


@pytest.fixture(scope='module')
def page(tmp_path_factory) -> Path:
    """A packed folder."""
    root = tmp_path_factory.mktemp('page')
    folder = save_folder(small_of('tinyvit', img_size=32), root / 'model')
    return pack(str(folder), root / 'page', tag='small', repo=REPO)


@pytest.fixture(scope='module')
def other_page(tmp_path_factory) -> Path:
    """Another model for the same address."""
    root = tmp_path_factory.mktemp('other')
    model = small_of('tinyvit', img_size=32, num_classes=5)
    return pack(str(save_folder(model, root / 'model')), root / 'page', tag='small', repo=REPO)


@dataclass(frozen=True)
class Case:
    """A fault that lasts, and words of the message."""

    what: str
    fault: Fault | None
    says: tuple[str, ...]

    def __str__(self) -> str:
        return self.what


SILENT = 'Nothing is lost: try again'
ANYWHERE = [
    Case('server down', None, ('does not answer', SILENT)),
    Case('401', Fault('', 401, BAD_TOKEN), ('hf auth login', 'HF_TOKEN', '401')),
    Case('403', Fault('', 403), ('does not allow it (403)', 'token')),
    Case('429', Fault('', 429), ('slow down (429)', 'Nothing is lost')),
    Case('500', Fault('', 500), ('an error of its own (500)', 'Nothing is lost')),
]
DOWNLOADING = [
    *ANYWHERE,
    Case('404', Fault('', 404), ('no such page or file (404)',)),
    *(Case(f'{s} at the weights', Fault(f'GET .*{WEIGHTS}', s), (f'({s})', WEIGHTS)) for s in (401, 403, 429, 500)),
    Case('connection cut again and again', Fault(f'GET .*{WEIGHTS}', cut=0), ('broke off', SILENT)),
    Case('wrong checksum', Fault(f'GET .*{WEIGHTS}', flip=True), ('another sha256', 'removed from the cache')),
    Case('wrong checksum of a small file', Fault('GET .*README.md', flip=True), ('README.md', 'Both were removed')),
    Case('wrong manifest', Fault('GET .*manifest.json', flip=True), ('manifest.json',)),
]
UPLOADING = [
    *ANYWHERE,
    Case('404 after the page was made', Fault('POST /api/models/.*', 404), ('no such page or file (404)',)),
    *(Case(f'{s} at the weights', Fault('PUT /blob/', s), (f'({s})',)) for s in (401, 403, 429, 500)),
    *(Case(f'{s} at the commit', Fault('POST .*/commit/', s), (f'({s})',)) for s in (401, 403, 429, 500)),
    Case('connection cut again and again', Fault('PUT /blob/', cut=1000), ('broke off', SILENT)),
    Case('connection cut at the commit', Fault('POST .*/commit/', cut=10), ('broke off', SILENT)),
]


# Each status has its sentence in ANYWHERE already; a new page has met every fault when an update meets one a moment.
SAID_BEFORE = re.compile('(403|429) at the weights')
OF_AN_UPDATE = re.compile('500|cut')
DOWNLOADS = rest_is_full(DOWNLOADING, [case for case in DOWNLOADING if not SAID_BEFORE.match(case.what)])
UPLOADS = [(case, kind) for kind in ('new', 'update') for case in UPLOADING]
UPLOADS = rest_is_full(UPLOADS, [(c, kind) for c, kind in UPLOADS if kind == 'new' or OF_AN_UPDATE.search(c.what)])


@pytest.mark.parametrize('case', DOWNLOADS, ids=str)
def test_a_download_that_fails(hub, client, page, case):
    hub.pages[REPO] = Page(contents(page))
    hub.faults = [case.fault] if case.fault else []
    if case.fault is None:
        hub.close()
    try:
        assert_refused(client.run('verify', REPO), *case.says)
        assert_cache_is_whole(client)
    finally:
        if case.fault is None:
            hub.restart()
    hub.faults = []
    code, out, err = client.run('verify', REPO)
    assert code == 0, err
    assert 'Proved' in out
    assert_cache_is_whole(client)


@pytest.mark.parametrize(('case', 'kind'), UPLOADS, ids=str)
def test_an_upload_that_fails(hub, client, page, other_page, case, kind):
    update = kind == 'update'
    before = contents(other_page) if update else {}
    if update:
        hub.pages[REPO] = Page(dict(before))
    hub.faults = [case.fault] if case.fault else []
    if case.fault is None:
        hub.close()
    try:
        assert_refused(client.run('push', page, '--to', REPO), 'Pushing to me/small', *case.says)
    finally:
        if case.fault is None:
            hub.restart()
    assert hub.pages.get(REPO, Page()).files == before
    hub.faults = []
    code, out, err = client.run('push', page, '--to', REPO)
    assert code == 0, err
    assert out.splitlines()[-1] == f'{hub.url}/{REPO}'
    assert hub.pages[REPO].files == contents(page)


# --- faults that need no retry


def test_an_interrupted_download_resumes_where_it_stopped(hub, client, page):
    hub.pages[REPO] = Page(contents(page))
    hub.faults = [Fault(f'GET .*{WEIGHTS}', cut=100_000, times=2)]
    code, _, err = client.run('verify', REPO)
    assert code == 0, err
    assert sum(WEIGHTS in name for name in hub.downloads) == 3
    assert_cache_is_whole(client)


def test_an_interrupted_upload_is_sent_again(hub, client, page):
    hub.faults = [Fault('PUT /blob/', cut=1000, times=1)]
    code, _, err = client.run('push', page, '--to', REPO)
    assert code == 0, err
    assert hub.pages[REPO].files == contents(page)


def test_a_commit_whose_answer_is_lost_was_made(hub, client, page):
    hub.faults = [Fault('POST .*/commit/', lose=True)]
    code, _, err = client.run('push', page, '--to', REPO)
    assert code == 0, err
    assert hub.pages[REPO].files == contents(page)
    assert hub.commits == 1


@pytest.mark.parametrize('status', [429, 500])
def test_a_hub_that_is_busy_for_a_moment_is_asked_again(hub, client, page, status):
    hub.faults = [Fault('PUT /blob/', status, times=2), Fault('POST .*/preupload/', status, times=2)]
    code, _, err = client.run('push', page, '--to', REPO)
    assert code == 0, err
    assert hub.pages[REPO].files == contents(page)


# --- the disk


def test_a_full_disk_while_downloading(hub, client, page):
    hub.pages[REPO] = Page(contents(page))
    half = len(hub.pages[REPO].files[WEIGHTS]) // 2
    assert_refused(client.run('verify', REPO, largest_file=half), 'the disk is full')
    assert_cache_is_whole(client)
    assert not list(client.home.rglob('*.incomplete'))
    assert client.run('verify', REPO)[0] == 0


def test_a_full_disk_while_packing_to_push(hub, client, page):
    assert_refused(client.run('push', page.parent / 'model', '--to', REPO, largest_file=10_000), 'could not be written')
    assert hub.pages == {}
    code, _, err = client.run('push', page.parent / 'model', '--to', REPO)
    assert code == 0, err


def test_a_full_disk_while_packing_leaves_no_folder(client, page, tmp_path):
    done = client.run('pack', page.parent / 'model', '-o', tmp_path / 'new', largest_file=10_000)
    assert_refused(done, 'could not be written')
    assert list(tmp_path.iterdir()) == []


# --- two at once


def test_two_pulls_at_once(hub, client, page):
    hub.pages[REPO] = Page(contents(page))
    runs = [client.start('verify', REPO), client.start('verify', REPO), client.start(python=LOAD)]
    assert [run.wait()[0] for run in runs] == [0, 0, 0]
    assert_cache_is_whole(client)


def test_two_pushes_of_the_same_at_once(hub, client, page):
    runs = [client.start('push', page, '--to', REPO) for _ in range(2)]
    for code, out, err in [run.wait() for run in runs]:
        assert code == 0, err
        assert out.splitlines()[-1] == f'{hub.url}/{REPO}'
    assert hub.pages[REPO].files == contents(page)


def test_of_two_pushes_at_once_the_later_is_refused_and_no_page_is_a_mixture(hub, client, page, other_page):
    hub.pages[REPO] = Page({})
    hub.faults = [Fault('POST .*/commit/', hold=True)]
    first = client.start('push', page, '--to', REPO)
    assert hub.stalled.wait(300)
    hub.faults = []
    assert client.run('push', other_page, '--to', REPO)[0] == 0
    hub.released.set()
    assert_refused(first.wait(), 'somebody changed the page meanwhile (412)')
    assert hub.pages[REPO].files == contents(other_page)
    assert client.run('push', page, '--to', REPO)[0] == 0
    assert hub.pages[REPO].files == contents(page)


def test_a_page_that_changes_during_a_pull_is_no_mixture(hub, client, page, other_page):
    hub.pages[REPO] = Page(contents(page))
    hub.faults = [Fault(f'GET .*{WEIGHTS}', hold=True)]
    pull = client.start('verify', REPO)
    assert hub.stalled.wait(300)
    hub.faults = []
    hub.pages[REPO].change(contents(other_page))
    hub.released.set()
    code, out, err = pull.wait()
    assert code == 0, err
    assert next(iter(hub.pages[REPO].history)) in out
    assert_cache_is_whole(client)


# --- killed


@pytest.mark.parametrize('what', ['verify', 'pretrained=True'])
def test_a_process_killed_during_a_download(hub, client, page, what):
    hub.pages[REPO] = Page(contents(page))
    hub.faults = [Fault(f'GET .*{WEIGHTS}', cut=100_000, stall=True)]
    pull = client.start('verify', REPO) if what == 'verify' else client.start(python=LOAD)
    assert hub.stalled.wait(300)
    pull.kill()
    hub.released.set()
    assert_cache_is_whole(client)
    hub.faults = []
    done = client.run('verify', REPO) if what == 'verify' else client.run(python=LOAD)
    assert done[0] == 0, done
    assert_cache_is_whole(client)


@pytest.mark.parametrize('moment', ['PUT /blob/', 'POST .*/commit/'], ids=['weights', 'commit'])
def test_a_process_killed_during_a_push(hub, client, page, moment):
    hub.faults = [Fault(moment, cut=100, stall=True)]
    push = client.start('push', page, '--to', REPO)
    assert hub.stalled.wait(300)
    push.kill()
    hub.released.set()
    assert hub.pages[REPO].files == {}
    hub.faults, uploads = [], len(hub.blobs)
    code, _, err = client.run('push', page, '--to', REPO)
    assert code == 0, err
    assert hub.pages[REPO].files == contents(page)
    if 'commit' in moment:  # what was uploaded is not sent again
        assert uploads == len(hub.blobs)
        assert sum(method == 'PUT' for method, _ in hub.log) == uploads
