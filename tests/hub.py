"""A Hugging Face hub on this machine: what a client asks it when it reads a model or a data set and writes a model."""
import base64, hashlib, json, re, threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

commit = '0123456789abcdef0123456789abcdef01234567'

class Hub(BaseHTTPRequestHandler):
    """Repositories are folders, `root/models/owner/name` and `root/datasets/owner/name`.

    Of `me/private` every token is refused, of `me/closed` the one that is not `good`. While the server has `breaks` left,
    the connection ends in the middle of the weights of `me/broken`, and again before anything more of them has come.
    """
    protocol_version = 'HTTP/1.1'
    def log_message(self, *args): pass

    def answer(self, status, content=b'', **headers):
        if not isinstance(content, bytes): content = json.dumps(content).encode()
        self.send_response(status)
        for k,v in {'Content-Length':len(content), **{k.replace('_','-'):v for k,v in headers.items()}}.items(): self.send_header(k, str(v))
        self.end_headers()
        if self.command!='HEAD': self.wfile.write(content)

    def refuse(self, status, code, words): self.answer(status, dict(error=words), X_Error_Code=code, X_Error_Message=words)

    def find(self, kind, repo):
        "The repository's folder; None after an answer that says why not."
        folder = self.server.root/kind/repo
        if repo=='me/private': return self.refuse(401, '', 'Invalid credentials in Authorization header')
        if repo=='me/closed' and self.headers.get('Authorization')!='Bearer good': return self.refuse(403, 'GatedRepo', f'Access to {repo} is restricted')
        return folder if folder.is_dir() else self.refuse(401, 'RepoNotFound', 'Repository not found')

    def do_HEAD(self): self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append((self.command, path, self.headers.get('Range')))
        if path=='/api/whoami-v2': return self.answer(200, dict(type='user', name='me', orgs=[]))
        if m := re.fullmatch(r'/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(/.*)?)?', path): return self.describe(*m.groups())
        if m := re.fullmatch(r'/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)', path): return self.send(*m.groups())
        self.refuse(404, 'EntryNotFound', f'{path} is nothing here')

    def describe(self, kind, repo, what, revision, below):
        if not (folder := self.find(kind, repo)): return
        files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file())
        if what!='tree': return self.answer(200, dict(id=repo, modelId=repo, sha=commit, private=False, tags=[], siblings=[dict(rfilename=f) for f in files]))
        there = folder/(below or '/')[1:]
        if not there.is_dir(): return self.refuse(404, 'EntryNotFound', f'{below} not found')
        deep = 'recursive=true' in self.path.lower() or 'recursive=1' in self.path
        found = sorted(there.rglob('*') if deep else there.iterdir())
        def about(p): return dict(type='directory') if p.is_dir() else dict(type='file', size=p.stat().st_size)
        self.answer(200, [dict(path=p.relative_to(folder).as_posix(), oid=hashlib.sha1(p.name.encode()).hexdigest(), **about(p)) for p in found])

    def send(self, datasets, repo, revision, file):
        if not (folder := self.find('datasets' if datasets else 'models', repo)): return
        if not (folder/file).is_file(): return self.refuse(404, 'EntryNotFound', f'{file} not found')
        content = (folder/file).read_bytes()
        about = dict(ETag=f'"{hashlib.sha256(content).hexdigest()}"', X_Repo_Commit=commit, Accept_Ranges='bytes')
        start = re.fullmatch(r'bytes=(\d+)-(\d*)', self.headers.get('Range', ''))
        first,last = (int(start[1]),int(start[2] or len(content)-1)) if start else (0,len(content)-1)
        status,about = (206, about|dict(Content_Range=f'bytes {first}-{last}/{len(content)}')) if start else (200, about)
        breaks = repo=='me/broken' and file.endswith('.safetensors') and self.command=='GET' and self.server.breaks>0
        if breaks: self.break_off(status, content[first:last+1], 0 if start else len(content)//2, about)
        else: self.answer(status, content[first:last+1], **about)

    def break_off(self, status, content, sent, about):
        "Promise `content`, and end after the first bytes `sent`."
        self.server.breaks -= 1
        self.send_response(status)
        for k,v in {'Content-Length':len(content), **{k.replace('_','-'):v for k,v in about.items()}}.items(): self.send_header(k, str(v))
        self.end_headers()
        self.wfile.write(content[:sent]); self.wfile.flush()
        self.close_connection = True

    def do_POST(self):
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append((self.command, path, None))
        body = self.body()
        if path=='/api/validate-yaml': return self.answer(200, dict(errors=[], warnings=[]))
        if self.headers.get('Authorization')!='Bearer good': return self.refuse(403, '', 'You have no right to write here')
        if path=='/api/repos/create': return self.create(json.loads(body))
        m = re.fullmatch(r'/api/(models|datasets)/([^/]+/[^/]+)/(preupload|commit|paths-info)/([^/]+)', path)
        if not m: return self.refuse(404, 'EntryNotFound', f'{path} is nothing here')
        if not (folder := self.find(m[1], m[2])): return
        if m[3]=='preupload': return self.answer(200, dict(files=[dict(path=f['path'], uploadMode='regular', shouldIgnore=False) for f in json.loads(body)['files']]))
        self.commit(folder, m[2], [json.loads(l) for l in body.splitlines() if l.strip()])

    def body(self):
        if self.headers.get('Transfer-Encoding')!='chunked': return self.rfile.read(int(self.headers.get('Content-Length') or 0))
        parts = []
        while n := int(self.rfile.readline(), 16): parts.append(self.rfile.read(n)); self.rfile.readline()
        self.rfile.readline()
        return b''.join(parts)

    def create(self, asked):
        repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
        (self.server.root/'models'/repo).mkdir(parents=True, exist_ok=True)
        self.answer(200, dict(url=f'{self.server.endpoint}/{repo}', id=repo))

    def commit(self, folder, repo, lines):
        for o in (l['value'] for l in lines if l['key']=='file'):
            (folder/o['path']).parent.mkdir(parents=True, exist_ok=True)
            (folder/o['path']).write_bytes(base64.b64decode(o['content']))
        self.answer(200, dict(success=True, commitUrl=f'{self.server.endpoint}/{repo}/commit/{commit}', commitOid=commit))

@contextmanager
def serving(
    root:Path,    # Holds `models` and `datasets`
    breaks:int=0, # Downloads of `me/broken` that break off
): # Yields the server: `endpoint`, and what it was `asked`
    "A hub on this machine, until the block ends."
    server = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    server.root,server.asked,server.breaks,server.endpoint = Path(root),[],breaks,f'http://127.0.0.1:{server.server_port}'
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try: yield server
    finally:
        server.shutdown()
        server.server_close()
