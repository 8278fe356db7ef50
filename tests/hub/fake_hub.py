"""A Hub on this machine: the few calls of its HTTP API that pushing and loading need, over a dictionary of files."""

import base64
import hashlib
import json
import os
import re
import threading
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@lru_cache(maxsize=64)  # every request names the commit, which depends on all bytes
def digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


class FakeHub:
    """`with FakeHub() as hub:` serves at `hub.endpoint`; `hub.repositories[id][path]` are the bytes of the files."""

    def __init__(self):
        self.repositories: dict[str, dict[str, bytes]] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.answer(*hub.post(self.path, body))

            def do_GET(self):
                self.answer(*hub.get(self.path.partition("?")[0]))

            do_HEAD = do_GET

            def answer(self, status, content, headers=None):
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in {"Content-Length": len(data), **(headers or {})}.items():
                    self.send_header(name, str(value))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home):
        """Environment variables of a process that knows this Hub only, and keeps what it loads in `home`."""
        known = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        return {**known, "HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_TOKEN": "hf_me"}

    def revision(self, name):
        """A commit id that changes with the files."""
        return digest(repr(sorted((path, digest(data)) for path, data in self.repositories[name].items())).encode())

    def post(self, path, body):
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
            self.repositories.setdefault(name, {})
            return 200, {"url": f"{self.endpoint}/{name}", "name": name}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        name, action = re.match(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/", path).groups()
        if action == "preupload":
            files = json.loads(body)["files"]
            return 200, {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]}
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.repositories[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        commit = self.revision(name)
        return 200, {"commitUrl": f"{self.endpoint}/{name}/commit/{commit}", "commitOid": commit}

    def get(self, path):
        if found := re.match(r"/api/models/([^/]+/[^/]+)/tree/[^/]+(/.+)?$", path):
            if found[2]:  # no repository here has folders
                return 404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"}
            files = self.repositories[found[1]].items()
            return 200, [{"type": "file", "path": name, "size": len(data), "oid": digest(data)} for name, data in files]
        if found := re.match(r"/api/models/([^/]+/[^/]+)", path):
            files = [{"rfilename": name} for name in self.repositories[found[1]]]
            return 200, {"id": found[1], "sha": self.revision(found[1]), "siblings": files, "tags": [], "private": False}
        if found := re.match(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            data = self.repositories[found[1]].get(found[2])
            commit = {"X-Repo-Commit": self.revision(found[1])}
            if data is None:
                return 404, {"error": "Entry not found"}, {**commit, "X-Error-Code": "EntryNotFound"}
            return 200, data, {**commit, "ETag": f'"{digest(data)}"'}
        return 404, {"error": "Not found"}
