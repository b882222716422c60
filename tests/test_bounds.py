"""Stores that never come to an end of their answer: every call to them has a deadline, whatever they do."""

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mgdet import bounded
from mgdet.bounded import Caller, require_wanted, within
from mgdet.tracking import CloseReport, Mlflow, NewRun, RunHandle

SHORT = 0.3


@pytest.fixture(autouse=True)
def nothing_given_up(monkeypatch):
    monkeypatch.setattr(bounded, "_given_up", [])


def test_results_and_errors_come_through():
    assert within(60, divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        within(60, divmod, 7, 0)

    def own():
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        within(60, own)


def test_a_call_that_hangs_is_given_up_and_told_so():
    go, seen = threading.Event(), []

    def hang():
        go.wait(60)
        try:
            require_wanted()
        except TimeoutError as error:
            seen.append(str(error))

    caller = Caller("test")
    with pytest.raises(TimeoutError, match=r"no whole answer within 0\.05 s"):
        caller.call(0.05, hang)
    with pytest.raises(TimeoutError, match="have not come back"):
        caller.call(60, divmod, 7, 2)
    go.set()
    caller._thread.join(60)
    assert seen == ["nobody waits for this call any more"]
    require_wanted()  # this thread is nobody's


def test_calls_of_one_caller_share_a_thread():
    caller = Caller("test")
    idents = {caller.call(60, threading.get_ident) for _ in range(3)}
    caller.end()
    assert len(idents) == 1
    assert idents != {threading.get_ident()}


def test_few_calls_are_given_up_before_others_fail_at_once():
    """Thousands of threads would be left otherwise, where a server hangs for days."""
    go = threading.Event()
    for _ in range(bounded.MOST_GIVEN_UP):
        with pytest.raises(TimeoutError, match="no whole answer"):
            within(0.01, go.wait)
    with pytest.raises(TimeoutError, match="have not come back"):
        within(60, divmod, 7, 2)
    left = list(bounded._given_up)
    go.set()
    for thread in left:
        thread.join(60)
    assert within(60, divmod, 7, 2) == (3, 1)


class Rogue(BaseHTTPRequestHandler):
    """Answers as its server's `how` says; without end until `over` is set."""

    def do(self):
        over = self.server.over
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        getattr(self, self.server.how)(over)

    do_GET = do_POST = do_PATCH = do

    def retry(self, status):
        self.send_response(status)
        self.send_header("Retry-After", "3600")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def too_many(self, over):
        self.retry(429)

    def unavailable(self, over):
        self.retry(503)

    def drip_headers(self, over):
        self.drip(over, b"HTTP/1.1 200 OK\r\nX-Long: ")

    def drip_body(self, over):
        self.drip(over, b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n")

    def flood(self, over):
        self.drip(over, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"100\r\n" + b" " * 256 + b"\r\n")

    def drip(self, over, head, piece=b" "):
        try:
            self.wfile.write(head)
            while not over.wait(0.02):
                self.wfile.write(piece)
        except OSError:
            pass

    def circle(self, over):
        over.wait(0.05)
        self.send_response(302)
        self.send_header("Location", self.path)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def silence(self, over):
        over.wait(60)

    def log_message(self, *args):
        pass


@pytest.fixture
def rogue(monkeypatch):
    import mlflow  # noqa: F401  # its seconds would count as the server's

    # the environment that is there counts before the configuration; nothing here ends because of these
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Rogue)
    server.daemon_threads = True
    server.over = threading.Event()
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()
    for thread in bounded._given_up:
        thread.join(60)


WAYS = ["too_many", "unavailable", "drip_headers", "drip_body", "flood", "circle", "silence"]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_training_starts_whatever_mlflow_does(rogue, tmp_path, caplog, way):
    """The driver's calls and the sender's. Without the deadline this test hangs."""
    rogue.how = way
    uri = f"http://127.0.0.1:{rogue.server_port}"
    config = Mlflow(uri=uri, call_timeout_s=SHORT, flush_timeout_s=60, send_every_s=0.02, retry_after_s=(0.0,))
    assert config.start(NewRun("run")) is None
    assert f"MLflow at {uri} cannot be used (" in caplog.text
    handle = RunHandle("0" * 32, uri, "1")
    tracker = config(handle, tmp_path)
    tracker.log({"a": 1.0}, 1)
    assert tracker.close() == CloseReport(unsent=1, unsent_file=tmp_path / "metrics.jsonl")
    config.end(handle, "FAILED")
    assert "could not be ended as FAILED" in caplog.text


def test_the_sender_goes_on_when_the_store_answers_again(tmp_path):
    """After a call that never came back, on a connection and a thread of their own."""
    go, threads, sent = threading.Event(), [], []

    class Store(Mlflow):
        def connect(self, handle):
            threads.append(threading.get_ident())
            return self._Hangs() if len(threads) == 1 else self._Works()

        class _Hangs:
            def reached(self):
                go.wait(60)

        class _Works:
            def reached(self):
                assert threading.get_ident() == threads[-1]
                return {}

            def send_metrics(self, points):
                sent.extend(p.step for p in points)

    store = Store(call_timeout_s=0.1, send_every_s=0.02, retry_after_s=(0.0,))
    tracker = store(RunHandle("0" * 32), tmp_path)
    tracker.log({"a": 1.0}, 1)
    deadline = time.monotonic() + 60
    while not sent:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert tracker.close().sent == 1
    go.set()
    assert sent == [1]
    assert len(set(threads)) == len(threads) == 2


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("postgresql://mlflow:secret@no-such-host.invalid/mlflow", "no database at no-such-host.invalid, port 5432: "),
        ("mysql+pymysql://no-such-host.invalid:99/mlflow", "no database at no-such-host.invalid, port 99: "),
        ("postgresql://127.0.0.1:{closed}/mlflow", "port {closed}: [Errno 111] Connection refused"),
        ("postgresql://127.0.0.1:99999/mlflow", "Port out of range"),
    ],
)
def test_a_database_that_is_not_there_is_told_at_once(caplog, uri, said):
    """MLflow itself tries fifteen times, with growing pauses."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    assert Mlflow(uri=uri.format(closed=closed)).start(NewRun("run")) is None
    assert said.format(closed=closed) in caplog.text
    assert "secret" not in caplog.text
