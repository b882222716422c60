"""A real `mlflow server`, and a gate in front of it that lets requests through late or never."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


class Server:
    """`mlflow server` on SQLite in `directory`; it may be killed and started again on the same port."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.port = directory, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.directory}/server.db"]
        command += ["--artifacts-destination", f"{self.directory}/artifacts"]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        log = self.directory / "server.log"
        with log.open("a") as file:
            self._process = subprocess.Popen(
                command, env=environment, stdout=file, stderr=file, cwd=self.directory, start_new_session=True
            )
        wait_for(self._healthy, 120)

    def _healthy(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.directory / "server.log").read_text()
        try:
            return bool(urllib.request.urlopen(f"{self.uri}/health", timeout=2).status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        """At once, with its workers."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


class Gate:
    """Passes requests to a server; each waits `delay` seconds, or is held until `release` where that is None."""

    def __init__(self, port: int) -> None:
        self.delay: float | None = 0.0
        self.arrived = self.held = self.answered = 0
        self._closed, self._released = threading.Event(), threading.Event()
        gate = self

        class Handler(BaseHTTPRequestHandler):
            def do(self) -> None:
                gate.arrived += 1
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                delay = gate.delay
                gate.held += delay is None
                if delay is None:
                    gate._released.wait()
                if gate._closed.wait(delay or 0.0):
                    return
                upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "accept-encoding")}
                upstream.request(self.command, self.path, body, headers)
                answer = upstream.getresponse()
                data = answer.read()
                upstream.close()
                with contextlib.suppress(OSError):  # the client may have gone
                    self.send_response(answer.status)
                    self.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                gate.answered += 1

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do

            def log_message(self, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def release(self) -> None:
        """Pass on what is held, and hold nothing any more."""
        self.delay = 0.0
        self._released.set()

    def close(self) -> None:
        """Let nothing through any more."""
        self._closed.set()
        self._released.set()
        self._http.shutdown()
        self._http.server_close()
