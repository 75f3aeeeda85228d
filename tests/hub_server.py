"""A stand-in for the Hugging Face hub on the loopback interface: repositories are created and take commits."""
import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_" + "a1" * 17


class Hub:
    """What it holds, and how it answers."""

    def __init__(self):
        self.repos: dict[str, bool] = {}                # name -> private
        self.commits: list[tuple[str, str, dict[str, bytes]]] = []  # repository, message, files
        self.asked: list[str] = []
        self.address, self.role, self.may_write, self.fails_at = "", "write", True, ""

    def answer(self, method: str, path: str, token: str | None, body: bytes) -> tuple[int, object]:
        path = path.partition("?")[0]
        self.asked.append(f"{method} {path}")
        if self.fails_at and self.fails_at in path:
            return 403, {"error": "no"}
        if token != TOKEN:
            return 401, {"error": "Invalid credentials"}
        if path == "/api/whoami-v2":
            return 200, {"type": "user", "name": "me", "orgs": [], "auth": {"accessToken": {"role": self.role}}}
        if path == "/api/repos/create":
            stated = json.loads(body)
            name = f"{stated['organization']}/{stated['name']}" if stated.get("organization") else stated["name"]
            if not self.may_write:
                return 403, {"error": "You don't have the rights to create a model under the namespace"}
            if name in self.repos:
                return 409, {"error": "You already created this model repo", "url": f"{self.address}/{name}"}
            self.repos[name] = stated.get("private", stated.get("visibility") == "private")
            return 200, {"url": f"{self.address}/{name}", "name": name, "id": name}
        name, _, what = path.removeprefix("/api/models/").partition("/preupload/")
        if what:
            files = json.loads(body)["files"]
            return 200, {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        name, _, what = path.removeprefix("/api/models/").partition("/commit/")
        if what:
            lines = [json.loads(line) for line in body.splitlines()]
            files = {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines
                     if line["key"] == "file"}
            self.commits.append((name, lines[0]["value"]["summary"], files))
            commit = "c" * 40
            return 200, {"success": True, "commitOid": commit, "commitUrl": f"{self.address}/{name}/commit/{commit}"}
        return 404, {"error": f"no {path} here"}


@contextmanager
def serving(hub: Hub) -> Iterator[str]:
    """Its address, such as http://127.0.0.1:12345."""
    class Handler(BaseHTTPRequestHandler):
        def do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
            status, answer = hub.answer(self.command, self.path, token, body)
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        do_GET = do_POST = do

        def log_message(self, *args) -> None:
            pass
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
