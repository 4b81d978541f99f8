"""Servers that are running already: stand-ins for what Ollama, llama-swap and plain OpenAI servers do, whole and broken."""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gguf")

from mmsched_env.calibration import schema
from mmsched_env.calibration.measure import command, results
from mmsched_env.calibration.measure.backend import ServerDied
from mmsched_env.calibration.measure.http_backend import SERVED, SWAP, Http
from mmsched_env.calibration.measure.points import Point
from mmsched_env.errors import ConfigError, MmschedError

MODELS = ("small:1b-q8_0", "large:3b")
STEP_S, TOKEN_S, LOAD_S, UNLOAD_S = 0.01, 0.0005, 0.15, 0.05
TEMPLATE = 7
"""tokens that the server puts around a prompt"""


class Stand(ThreadingHTTPServer):
    """A server that takes known times; one model at a time, as many requests as come."""

    daemon_threads = True

    def __init__(self, dialect: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.dialect, self.loaded = dialect, ""
        self.strict = False
        """refuses settings that it does not know"""
        self.fault: Callable[[Handler], None] | None = None
        """called in place of the `fault_at`-th completion"""
        self.fault_at, self.completions = 0, 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Stand

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self, body: Any, status: int = 200) -> None:
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self) -> None:
        of = self.server
        names = {"/v1/models": ("data", "id"), "/api/tags": ("models", "name")}
        if self.path in names and (self.path != "/api/tags" or of.dialect == "ollama"):
            key, inner = names[self.path]
            self.answer({key: [{inner: name} for name in MODELS]})
        elif of.dialect == "ollama" and self.path == "/api/version":
            self.answer({"version": "0.34.1"})
        elif of.dialect == "ollama" and self.path == "/api/ps":
            self.answer({"models": [{"name": of.loaded, "size": 123, "size_vram": 100}] if of.loaded else []})
        elif of.dialect.startswith("llama-swap") and self.path == "/running":
            self.answer({"running": [{"model": of.loaded, "state": "ready"}] if of.loaded else []})
        elif of.dialect.startswith("llama-swap") and self.path == "/unload":
            self.gone()
            self.answer(b"OK")
        else:
            self.answer(b"<html>404 page not found</html>", 404)

    def do_POST(self) -> None:
        of = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or b"{}")
        if self.path == "/v1/completions":
            of.completions += 1
            if of.fault is not None and of.completions >= of.fault_at:
                of.fault(self)
            else:
                self.complete(body)
        elif of.dialect == "ollama" and self.path == "/api/generate" and body["keep_alive"] == 0:
            self.gone()
            self.answer({"model": body["model"], "done": True, "done_reason": "unload"})
        elif of.dialect == "llama-swap" and self.path.startswith("/api/models/unload/"):
            self.gone()
            self.answer(b"OK")
        else:
            self.answer({"error": {"message": "not found"}}, 404)

    def gone(self) -> None:
        if self.server.loaded:
            time.sleep(UNLOAD_S)
        self.server.loaded = ""

    def complete(self, body: dict[str, Any]) -> None:
        of = self.server
        if of.strict and "ignore_eos" in body:
            self.answer({"error": {"message": "Unrecognized request argument: ignore_eos"}}, 400)
            return
        if body["model"] != of.loaded:
            self.gone()
            time.sleep(LOAD_S)
            of.loaded = body["model"]
        tokens = len(body["prompt"].split()) + TEMPLATE
        time.sleep(TOKEN_S * tokens)
        self.send_response(200)
        self.end_headers()
        for n in range(body["max_tokens"]):
            time.sleep(STEP_S if n else 0)
            self.event({"choices": [{"text": " x", "finish_reason": None}]})
        self.event({"choices": [{"text": "", "finish_reason": "length"}]})
        usage = {"prompt_tokens": tokens, "completion_tokens": body["max_tokens"]}
        self.event({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, body: Any) -> None:
        self.wfile.write(b"data: " + json.dumps(body).encode() + b"\n\n")
        self.wfile.flush()


@pytest.fixture
def stand(request: pytest.FixtureRequest) -> Iterator[Stand]:
    server = Stand(getattr(request, "param", "openai"))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def arguments(stand: Stand, out: Path, *more: str) -> list[str]:
    models = f"models=[{','.join(json.dumps(name) for name in MODELS)}]"
    return ["backend=http", "preset=tiny", f"url={stand.url}", f"out={out}", models, "seats=2", *more]


@pytest.mark.parametrize(
    ("stand", "engine", "operations"),
    [
        ("openai", "OpenAI-compatible server", {"prefill", "decode"}),
        ("llama-swap", "llama-swap", {"prefill", "decode", "load", "unload"}),
        ("llama-swap-old", "llama-swap", {"prefill", "decode", "load", "unload"}),
        ("ollama", "Ollama", {"prefill", "decode", "load", "unload"}),
    ],
    indirect=["stand"],
)
def test_what_each_dialect_offers_is_measured(stand: Stand, engine: str, operations: set[str], tmp_path: Path) -> None:
    assert command.main(arguments(stand, tmp_path)) == 0
    rows = schema.read(tmp_path / command.SAVED)
    assert {row.operation for row in rows} == operations
    assert {(row.engine, row.model, row.quant) for row in rows} == {
        (engine, "small:1b", "Q8_0"),
        (engine, "large:3b", ""),
    }
    assert {row.n_gpu_layers for row in rows} == {None}
    samples = results.read(tmp_path / results.NAME)[1]
    swaps = [s.seconds for s in samples if s.point.mode == SWAP]
    assert min(swaps) >= LOAD_S + UNLOAD_S  # the other model was asked before
    held = {s.size_bytes for s in samples if s.point.operation == "footprint"}
    assert held == ({123} if engine == "Ollama" else set())


@pytest.mark.parametrize("stand", ["ollama"], indirect=True)
def test_figures_are_the_times_the_server_takes(stand: Stand) -> None:
    backend = Http(stand.url)
    for model in MODELS:
        backend.prepare(model)
    model = MODELS[0]
    load, instance = backend.load(Point(model, "load", mode=SERVED))
    assert load.seconds == pytest.approx(LOAD_S + TOKEN_S * (TEMPLATE + 1), abs=0.1)
    assert load.seconds > LOAD_S
    swap, instance = backend.load(Point(model, "first_token", mode=SWAP))
    assert swap.seconds > LOAD_S + UNLOAD_S
    prefill = instance.measure(Point(model, "prefill", tokens=400)).seconds
    assert TOKEN_S * 392 < prefill < TOKEN_S * 408 + 0.1  # 400 tokens by the server's count, its template's included
    for batch in (1, 2):
        point = Point(model, "decode", tokens=10, depth=40, batch=batch)
        # from the first token read to the last: short where the first was read late, as on a busy machine it may be;
        # one interval too many or too few would be a tenth
        step = statistics.median(instance.measure(point).seconds for _ in range(5))
        assert 0.95 * STEP_S < step < 2.5 * STEP_S
    assert instance.unload().seconds > UNLOAD_S
    assert stand.loaded == ""


def test_a_setting_that_the_server_does_not_know_is_left_out(stand: Stand) -> None:
    stand.strict = True
    backend = Http(stand.url)
    assert backend.complete(MODELS[0], 5, 3).tokens == 3


# ---------------------------------------------------------------- broken servers


def drop(handler: Handler) -> None:
    """Die in the middle of a stream."""
    handler.send_response(200)
    handler.end_headers()
    handler.event({"choices": [{"text": "x"}]})
    handler.server.shutdown_request(handler.request)  # type: ignore[arg-type]


def nonsense(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(b"data: {'not': JSON}\n\n")


def stuck(handler: Handler) -> None:
    time.sleep(3)
    with suppress(OSError):
        handler.answer({})


def missing(handler: Handler) -> None:
    handler.answer({"error": {"message": "model 'small' not found"}}, 404)


def uncounted(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.event({"choices": [{"text": "x"}]})
    handler.wfile.write(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (drop, "ended a stream before its last token|died or does not answer"),
        (nonsense, r"answered \"\{'not': JSON\}\"; accepted: JSON"),
        (stuck, r"was silent for 1 s \(timeout_s\)"),
        (missing, r"refused: model 'small' not found \(status 404\)"),
        (uncounted, "counts no tokens; accepted: one that streams usage"),
    ],
)
def test_a_broken_server_is_one_line_and_its_samples_are_kept(
    fault: Callable[[Handler], None], message: str, stand: Stand, tmp_path: Path
) -> None:
    stand.fault, stand.fault_at = fault, 25
    with pytest.raises(MmschedError, match=f"({message}).* samples are kept in .*, the same command goes on") as caught:
        command.main(arguments(stand, tmp_path, "timeout_s=1"))
    assert "\n" not in str(caught.value)
    kept = results.read(tmp_path / results.NAME)[1]
    assert len(kept) >= 3
    stand.fault = None
    assert command.main(arguments(stand, tmp_path, "timeout_s=1")) == 0
    assert results.read(tmp_path / results.NAME)[1][: len(kept)] == kept


def test_fewer_seats_than_asked_for_are_noticed(stand: Stand) -> None:
    one_at_a_time = threading.Lock()

    def wait(handler: Handler) -> None:
        with one_at_a_time:
            handler.complete({"model": MODELS[0], "prompt": "a " * 40, "max_tokens": 6})

    backend = Http(stand.url)
    instance = backend.load(Point(MODELS[0], "first_token"))[1]
    stand.fault = wait
    with pytest.raises(ServerDied, match="does not answer 2 requests at once; accepted: a smaller seats="):
        instance.measure(Point(MODELS[0], "decode", tokens=3, depth=47, batch=2))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("url=http://127.0.0.1:9", "died or does not answer: .*Connection refused; accepted: the URL of a running"),
        ("url=nowhere", "url is 'nowhere'; accepted: http://HOST:PORT"),
        ("models=[huge]", "has no model 'huge'; accepted: small:1b-q8_0, large:3b"),
        ("timeout_s=0", "timeout_s is 0.0; accepted: a number >="),
    ],
)
def test_what_cannot_be_measured(argument: str, message: str, stand: Stand, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        command.main([*arguments(stand, tmp_path), argument])
    assert not list(tmp_path.glob(results.NAME))


def test_a_page_for_people_is_no_model_server(stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handler, "do_GET", lambda self: self.answer(b"<html>Welcome</html>"))
    with pytest.raises(MmschedError, match="answered '<html>Welcome</html>'; accepted: JSON"):
        command.main(arguments(stand, tmp_path))
    monkeypatch.setattr(Handler, "do_GET", lambda self: self.answer({"data": "all of them"}))
    with pytest.raises(MmschedError, match="/v1/models has no list 'data' of 'id'"):
        command.main(arguments(stand, tmp_path))
