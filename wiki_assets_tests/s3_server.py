"""A server of the S3 protocol for tests: moto's, in a process of its own, with the faults that a test asks for.

    with s3_server(folder) as s3:
        Store(s3.root("bucket"))
        s3.fault("PUT", "articles/", "slow_down", times=2)

Requests are served one at a time, so that a condition and the write it guards are one step, as in a real store; moto
itself looks and writes in two, and takes no notice of a condition at the end of a multipart upload.
"""

import json
import os
import re
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from wiki_assets_tests.processes import free_port, running, wait_until

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
_CONTROL = "/_faults"
Environ = dict[str, Any]


@dataclass(frozen=True)
class S3:
    """A server that runs, and how to talk to it."""

    url: str

    @property
    def env(self) -> dict[str, str]:
        """What a process needs to use it."""
        return {**CREDENTIALS, "AWS_ENDPOINT_URL": self.url, "AWS_CONFIG_FILE": os.devnull}

    def bucket(self, name: str) -> str:
        """Make a bucket; its URL."""
        _request("PUT", f"{self.url}/{name}")
        return f"s3://{name}"

    def fault(self, method: str, key: str, kind: str, *, times: int = 1, after: int = 0) -> None:
        """Have requests fail.

        Args:
            method: of the requests.
            key: a pattern that occurs in path and query.
            kind: `slow_down`, `error`, `denied`; `cut`, `cut_after` (served, but not answered), `slow`; `hold`, until
                `release` is called; `unconditional`: a store that knows no conditions.
            times: how many requests.
            after: how many to spare first.
        """
        rule = {"method": method, "key": key, "kind": kind, "times": times, "after": after}
        _request("POST", self.url + _CONTROL, json.dumps(rule).encode())

    def release(self) -> None:
        """Let held requests go on, and no request fail any more."""
        _request("DELETE", self.url + _CONTROL)

    def seen(self) -> list[str]:
        """Requests that a fault met, since the last `release`."""
        return json.loads(_request("GET", self.url + _CONTROL))


@contextmanager
def s3_server(folder: Path) -> Iterator[S3]:
    """A server without buckets; this process' environment points to it meanwhile."""
    port = free_port()
    s3 = S3(f"http://127.0.0.1:{port}")
    command = (sys.executable, "-m", "wiki_assets_tests.s3_server", str(port))
    log = folder / "s3.log"
    with running(command, env={}, log=log) as process, mock.patch.dict(os.environ, s3.env):

        def listening() -> bool:
            assert process.poll() is None, log.read_text()
            return "listening" in log.read_text()

        wait_until(listening, within_s=60, what="the S3 server")
        forget_clients()
        try:
            yield s3
        finally:
            forget_clients()


def forget_clients() -> None:
    """Have this process read its environment again: s3fs keeps its clients."""
    from wiki_assets.s3 import Buckets

    Buckets.clear_instance_cache()


def _request(method: str, url: str, data: bytes | None = None) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, data, method=method), timeout=30) as answer:
        return answer.read()


# --- the server's side


class Faults:
    """moto's application behind the faults."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self._app = app
        self._one_at_a_time = threading.Lock()
        self._rules: list[dict[str, Any]] = []
        self._seen: list[str] = []
        self._released = threading.Event()

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        path = f"{environ['PATH_INFO']}?{environ.get('QUERY_STRING', '')}"
        if environ["PATH_INFO"] == _CONTROL:
            return self._controlled(method, environ, start_response)
        kind = self._kind(method, path)
        if kind == "cut":
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0) // 2)
            return self._hung_up(environ)
        if kind == "slow":
            time.sleep(0.3)
        if kind == "hold":
            self._released.wait(60)
        if kind == "unconditional":
            environ.pop("HTTP_IF_NONE_MATCH", None)
        if kind in ("slow_down", "error", "denied"):
            status, code = {
                "slow_down": ("503 Slow Down", "SlowDown"),
                "error": ("500 Internal Server Error", "InternalError"),
                "denied": ("403 Forbidden", "AccessDenied"),
            }[kind]
            return _refused(environ, start_response, status, code)
        with self._one_at_a_time:
            answer = self._answer(environ, start_response)
        return self._hung_up(environ) if kind == "cut_after" else answer

    def _answer(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        completes = environ["REQUEST_METHOD"] == "POST" and "uploadId" in environ.get("QUERY_STRING", "")
        if completes and environ.get("HTTP_IF_NONE_MATCH") == "*" and self._is_there(environ):
            return _refused(environ, start_response, "412 Precondition Failed", "PreconditionFailed")
        return list(self._app(environ, start_response))

    def _is_there(self, environ: Environ) -> bool:
        found: list[str] = []
        look = {**environ, "REQUEST_METHOD": "HEAD", "QUERY_STRING": "", "CONTENT_LENGTH": "0"}
        list(self._app(look, lambda status, headers, *rest: found.append(status)))
        return found[0].startswith("200")

    def _kind(self, method: str, path: str) -> str | None:
        for rule in self._rules:
            if rule["method"] == method and re.search(rule["key"], path) and rule["times"]:
                if rule["after"]:
                    rule["after"] -= 1
                    continue
                rule["times"] -= 1
                self._seen.append(f"{rule['kind']} {method} {path}")
                return rule["kind"]
        return None

    def _controlled(self, method: str, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        if method == "POST":
            self._rules.append(json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))))
        if method == "DELETE":
            self._rules, self._seen = [], []
            self._released.set()
            self._released = threading.Event()
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(self._seen).encode()]

    @staticmethod
    def _hung_up(environ: Environ) -> Iterable[bytes]:
        line: socket.socket = environ["werkzeug.socket"]
        line.shutdown(socket.SHUT_RDWR)
        raise ConnectionError("cut, as asked")


def _refused(environ: Environ, start_response: Callable[..., Any], status: str, code: str) -> Iterable[bytes]:
    left = int(environ.get("CONTENT_LENGTH") or 0)
    while left > 0 and (data := environ["wsgi.input"].read(min(left, 1 << 20))):
        left -= len(data)
    start_response(status, [("Content-Type", "application/xml")])
    return [f"<Error><Code>{code}</Code><Message>as asked</Message></Error>".encode()]


def main(port: int) -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, type: str, message: str, *args: Any) -> None:
            pass

    app = Faults(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", port, app, threaded=True, request_handler=Quiet)
    print("listening", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]))
