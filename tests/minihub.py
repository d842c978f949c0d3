"""A Hub small enough for tests, on loopback: create, upload, look at and download model pages.

It speaks the part of the Hub's protocol that `huggingface_hub` uses for models. Point a client at it by HF_ENDPOINT,
set before `huggingface_hub` is imported, and set HF_HUB_DISABLE_XET=1, so that uploads go through plain git-LFS.

    with MiniHub() as hub:
        hub.pages['me/model'] = Page({'model.safetensors': data})
        subprocess.run([...], env=os.environ | hub.environment)

What goes wrong is said by `hub.faults`, see `Fault`.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = 'hf_test'
"""Of the one user that the server knows, who may see and do everything."""

LARGE = ('.safetensors', '.bin', '.pth', '.onnx', '.npz', '.png')


@dataclass
class Page:
    """A model page: its files, how it can be seen, and its files at earlier commits."""

    files: dict[str, bytes] = field(default_factory=dict, repr=False)
    private: bool = False
    history: dict[str, dict[str, bytes]] = field(default_factory=dict, repr=False)
    known: dict[int, tuple[bytes, str, str]] = field(default_factory=dict, repr=False)

    @property
    def commit(self) -> str:
        content = ''.join(name + self.ids(data)[0] for name, data in sorted(self.files.items()))
        return hashlib.sha1(content.encode()).hexdigest()

    def ids(self, data: bytes) -> tuple[str, str]:
        """git's id and sha256 of a file's content, computed once."""
        if id(data) not in self.known or self.known[id(data)][0] is not data:
            self.known[id(data)] = data, git_id(data), hashlib.sha256(data).hexdigest()
        return self.known[id(data)][1:]

    def at(self, revision: str) -> dict[str, bytes] | None:
        """Files at a commit or of the branch 'main'; None if there is no such revision."""
        return self.files if revision in ('main', self.commit) else self.history.get(revision)

    def change(self, files: dict[str, bytes]) -> None:
        """Make a commit."""
        self.history[self.commit] = self.files
        self.files = files

    @property
    def card(self) -> dict:
        return front_matter(self.files.get('README.md', b'').decode())


def front_matter(text: str) -> dict:
    found = re.match(r'\s*---\r?\n(.*?)\r?\n---', text, re.DOTALL)
    return (yaml.safe_load(found[1]) if found else None) or {}


def git_id(data: bytes) -> str:
    return hashlib.sha1(b'blob %d\0' % len(data) + data).hexdigest()


@dataclass
class Fault:
    """What goes wrong with a request.

    Attributes:
        where: Pattern that is looked for in 'METHOD /path'.
        status: Answer with this status and nothing else.
        message: What the Hub would say with it.
        cut: Break the connection after so many bytes: of an upload's content, else of the answer's.
        stall: Before that, wait until the client is gone or `MiniHub.clear` is called.
        hold: Wait so, and then do what was asked.
        flip: Change a byte in the middle of the answer.
        lose: Do what was asked, and break the connection instead of answering.
        times: How often.
    """

    where: str
    status: int = 0
    message: str = ''
    cut: int | None = None
    stall: bool = False
    hold: bool = False
    flip: bool = False
    lose: bool = False
    times: int = 1000


class MiniHub:
    """The server. `pages` maps 'owner/name' to a Page; `log` lists the requests as (method, path)."""

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.blobs: dict[str, bytes] = {}
        self.log: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.lock = threading.Lock()
        self.stalled, self.released = threading.Event(), threading.Event()
        self.handler = type('Handler', (_Handler,), {'hub': self})
        self.server = ThreadingHTTPServer(('127.0.0.1', 0), self.handler)
        self.url = f'http://127.0.0.1:{self.server.server_port}'

    def clear(self) -> None:
        """Forget pages, uploads, requests and faults."""
        self.released.set()
        for content in (self.pages, self.blobs, self.log, self.faults):
            content.clear()
        self.stalled, self.released = threading.Event(), threading.Event()

    def fault_of(self, request: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and re.search(fault.where, request):
                    fault.times -= 1
                    return fault
        return None

    @property
    def commits(self) -> int:
        """Commits that were asked for."""
        return sum(method == 'POST' and '/commit/' in path for method, path in self.log)

    @property
    def environment(self) -> dict[str, str]:
        """What a client process needs."""
        return dict(HF_ENDPOINT=self.url, HF_HUB_DISABLE_XET='1', HF_HUB_OFFLINE='0', HF_TOKEN=TOKEN)

    @property
    def downloads(self) -> list[str]:
        """Files that were fetched, as 'owner/name/file'."""
        gets = [path for method, path in self.log if method == 'GET']
        return [re.sub(r'/resolve/[^/]+', '', path)[1:] for path in gets if '/resolve/' in path]

    def __enter__(self) -> 'MiniHub':
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def restart(self) -> None:
        """Serve again, at the same address, after `close`."""
        self.server = ThreadingHTTPServer(self.server.server_address, self.handler)
        self.__enter__()

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    hub: MiniHub
    fault: Fault | None = None

    def log_message(self, *_) -> None: ...

    def answer(
        self, content: bytes | dict | list = b'', status: int = 200, length: int | None = None, **headers
    ) -> None:
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers['Content-Type'] = 'application/json'
        if self.fault and self.fault.lose:
            return self.break_off()
        if self.fault and self.fault.flip and content:
            content = bytearray(content)
            content[len(content) // 2] ^= 1
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace('_', '-'), str(value))
        self.send_header('Content-Length', str(len(content) if length is None else length))
        self.end_headers()
        if self.command == 'HEAD':
            return None
        if self.fault and self.fault.cut is not None:
            self.wfile.write(content[: self.fault.cut])
            return self.break_off()
        self.wfile.write(content)
        return None

    def wait(self) -> None:
        released = self.hub.released  # `clear` makes a new one
        self.hub.stalled.set()
        released.wait(500)

    def break_off(self) -> None:
        if self.fault.stall:
            self.wait()
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def refuse(self, code: str, message: str, status: int = 404, **headers) -> None:
        self.answer({'error': message}, status, X_Error_Code=code, X_Error_Message=message, **headers)

    @property
    def known(self) -> bool:
        """Whether the request comes from the user."""
        return self.headers.get('Authorization') == f'Bearer {TOKEN}'

    def body(self) -> bytes:
        if self.headers.get('Transfer-Encoding', '').lower() != 'chunked':
            return self.rfile.read(int(self.headers.get('Content-Length') or 0))
        chunks = []
        while size := int(self.rfile.readline().strip() or b'0', 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b''.join(chunks)

    def handle_request(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.log.append((self.command, path))
        self.fault = self.hub.fault_of(f'{self.command} {path}')
        if self.fault and self.fault.cut is not None and self.command in ('PUT', 'POST'):
            self.rfile.read(self.fault.cut)
            return self.break_off()
        data = self.body()
        if self.fault and self.fault.hold:
            self.wait()
        if self.fault and self.fault.status:
            return self.refuse('', self.fault.message, self.fault.status)
        routes = READ if self.command in ('GET', 'HEAD') else WRITE
        if routes is WRITE and not path.startswith(('/blob/', '/verify/')) and not self.known:
            return self.refuse('', 'Invalid username or password.', 401)
        for pattern, method in routes:
            if match := re.fullmatch(pattern, path):
                return method(self, *match.groups(), **({} if routes is READ else {'data': data}))
        return self.refuse('EntryNotFound', f'no route for {path}')

    do_GET = do_HEAD = do_POST = do_PUT = handle_request  # noqa: N815  names that http.server looks for

    # reading

    def page(self, name: str) -> Page | None:
        """The page, if there is one that may be seen; what strangers may not see does not exist for them."""
        page = self.hub.pages.get(name)
        if page is not None and (self.known or not page.private):
            return page
        if self.known:
            self.refuse('RepoNotFound', 'Repository not found')
        else:
            self.refuse('RepoNotFound', 'Invalid username or password.', 401)
        return None

    def file(self, name: str, revision: str, path: str) -> None:
        if (page := self.page(name)) is None:
            return None
        files = page.at(revision)
        if files is None:
            return self.refuse('RevisionNotFound', f'Invalid rev id: {revision}')
        commit = {'X_Repo_Commit': revision if revision in page.history else page.commit}
        if path not in files:
            return self.refuse('EntryNotFound', 'Entry not found', **commit)
        data = files[path]
        large = path.endswith(LARGE)
        tag = f'"{page.ids(data)[large]}"'
        headers = dict(commit, ETag=tag, Accept_Ranges='bytes', Content_Type='application/octet-stream')
        if large:
            headers |= dict(X_Linked_Etag=tag, X_Linked_Size=len(data))
        asked = re.fullmatch(r'bytes=(\d+)-(\d*)', self.headers.get('Range', ''))
        if asked and self.command == 'GET':
            first, last = int(asked[1]), int(asked[2] or len(data) - 1)
            headers['Content_Range'] = f'bytes {first}-{last}/{len(data)}'
            return self.answer(data[first : last + 1], 206, **headers)
        return self.answer(data, length=len(data), **headers)

    def info(self, name: str, revision: str | None) -> None:
        if (page := self.page(name)) is None:
            return
        card = page.card
        self.answer(
            dict(
                _id=name,
                id=name,
                modelId=name,
                sha=page.commit,
                private=page.private,
                tags=card.get('tags', []),
                pipeline_tag=card.get('pipeline_tag'),
                library_name=card.get('library_name'),
                cardData=card,
                downloads=0,
                likes=0,
                siblings=[{'rfilename': file} for file in page.files],
            )
        )

    def tree(self, name: str, revision: str, folder: str) -> None:
        if (page := self.page(name)) is None:
            return None
        if (files := page.at(revision)) is None:
            return self.refuse('RevisionNotFound', f'Invalid rev id: {revision}')
        entries = []
        for path, data in files.items():
            entry = dict(type='file', path=path, size=len(data), oid=page.ids(data)[0])
            if path.endswith(LARGE):
                entry['lfs'] = dict(oid=page.ids(data)[1], size=len(data), pointerSize=134)
            entries.append(entry)
        return self.answer(entries)

    # writing

    def create(self, data: bytes) -> None:
        asked = json.loads(data)
        name = f'{asked.get("organization") or "me"}/{asked["name"]}'
        url = f'{self.hub.url}/{name}'
        if name in self.hub.pages:
            return self.answer(dict(error='You already created this model repo', url=url), 409)
        self.hub.pages[name] = Page(private=asked.get('visibility') == 'private' or bool(asked.get('private')))
        return self.answer(dict(url=url, name=name, id=name))

    def validate_card(self, data: bytes) -> None:
        try:
            card = front_matter(json.loads(data)['content'])
        except yaml.YAMLError as e:
            return self.answer(dict(errors=[dict(message=str(e))], warnings=[]), 400)
        warnings = [] if card else [dict(message='empty or missing yaml metadata in repo card')]
        return self.answer(dict(errors=[], warnings=warnings))

    def preupload(self, name: str, revision: str, data: bytes) -> None:
        if (page := self.page(name)) is None:
            return
        files = []
        for path in (entry['path'] for entry in json.loads(data)['files']):
            mode = 'lfs' if path.endswith(LARGE) else 'regular'
            known = page.ids(page.files[path])[0] if path in page.files else None
            files.append(dict(path=path, uploadMode=mode, shouldIgnore=False, oid=known))
        self.answer(dict(files=files))

    def lfs_batch(self, name: str, data: bytes) -> None:
        objects = []
        for asked in json.loads(data)['objects']:
            entry = dict(oid=asked['oid'], size=asked['size'])
            if asked['oid'] not in self.hub.blobs:
                entry['actions'] = dict(
                    upload=dict(href=f'{self.hub.url}/blob/{asked["oid"]}', header={}),
                    verify=dict(href=f'{self.hub.url}/verify/{asked["oid"]}', header={}),
                )
            objects.append(entry)
        self.answer(dict(transfer='basic', objects=objects))

    def blob(self, sha256: str, data: bytes) -> None:
        if hashlib.sha256(data).hexdigest() != sha256:
            return self.refuse('BadOid', 'sha256 mismatch', 400)
        self.hub.blobs[sha256] = data
        return self.answer()

    def verify(self, sha256: str, data: bytes) -> None:
        self.answer({}, 200 if sha256 in self.hub.blobs else 404)

    def commit(self, name: str, revision: str, data: bytes) -> None:
        if (page := self.page(name)) is None:
            return None
        files = {}
        with self.hub.lock:
            for line in data.splitlines():
                entry = json.loads(line)
                kind, value = entry['key'], entry['value']
                if kind == 'header':
                    if value.get('parentCommit') not in (None, page.commit):
                        return self.refuse('', 'A commit has happened since. Please refresh and try again.', 412)
                    files |= page.files
                elif kind == 'file':
                    files[value['path']] = base64.b64decode(value['content'])
                elif kind == 'lfsFile':
                    files[value['path']] = self.hub.blobs[value['oid']]
                elif kind == 'deletedFile':
                    files.pop(value['path'], None)
            page.change(files)
        url = f'{self.hub.url}/{name}/commit/{page.commit}'
        return self.answer(dict(success=True, commitOid=page.commit, commitUrl=url, hookOutput=''))


NAME = r'/([^/]+/[^/]+?)'
READ = [
    (NAME + r'/resolve/([^/]+)/(.+)', _Handler.file),
    (r'/api/models' + NAME + r'(?:/revision/([^/]+))?', _Handler.info),
    (r'/api/models' + NAME + r'/tree/([^/]+)/?(.*)', _Handler.tree),
]
WRITE = [
    (r'/api/repos/create', _Handler.create),
    (r'/api/validate-yaml', _Handler.validate_card),
    (r'/api/models' + NAME + r'/preupload/([^/]+)', _Handler.preupload),
    (NAME + r'\.git/info/lfs/objects/batch', _Handler.lfs_batch),
    (r'/blob/([0-9a-f]{64})', _Handler.blob),
    (r'/verify/([0-9a-f]{64})', _Handler.verify),
    (r'/api/models' + NAME + r'/commit/([^/]+)', _Handler.commit),
]
