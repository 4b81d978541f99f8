"""Servers that speak the OpenAI API, and what llama-swap and Ollama add to it: which models there are, and how they leave.

A dialect is recognised by what answers: Ollama has ``/api/version``, llama-swap ``/running``; anything else is plain.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from mmsched_env.errors import ConfigError

from .backend import ServerDied

SHOWN = 120
"""characters of an unusable answer that are shown"""


class NoJson(ServerDied):
    """An answer that is for people, or for nobody."""


class Refused(ServerDied):
    """An answer with a status other than 200."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Completion:
    """A streamed completion: when it was sent, when each piece came, and the server's own counts."""

    sent_s: float
    times_s: tuple[float, ...]
    prompt_tokens: int
    tokens: int

    @property
    def first_s(self) -> float:
        """From sending to the first piece: TTFT."""
        return self.times_s[0] - self.sent_s


@dataclass(frozen=True)
class Client:
    """Requests to one server. Every method raises ServerDied where it does not answer as it should."""

    url: str
    timeout_s: float

    def get(self, path: str) -> Any:
        """A JSON answer."""
        return self._json("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """A JSON answer to a JSON body."""
        return self._json("POST", path, body)

    def text(self, method: str, path: str) -> str:
        """An answer of any kind."""
        return self._exchange(method, path, None).decode("utf-8", "replace")

    def complete(self, model: str, prompt: str, tokens: int, extra: Mapping[str, Any]) -> Completion:
        """A completion of at most `tokens` tokens, streamed."""
        body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True}
        body |= {"stream_options": {"include_usage": True}, **extra}
        connection = self._connect()
        try:
            sent = time.perf_counter()
            response = self._send(connection, "POST", "/v1/completions", body)
            times, usage = self._read(response)
        except (OSError, http.client.HTTPException) as error:
            raise self._died(error) from None
        finally:
            connection.close()
        if not times:
            raise ServerDied(f"the server at {self.url} ended a completion of {model} without a token")
        if "completion_tokens" not in usage:
            raise ServerDied(f"the server at {self.url} counts no tokens; accepted: one that streams usage")
        return Completion(sent, tuple(times), int(usage.get("prompt_tokens", 0)), int(usage["completion_tokens"]))

    def _read(self, response: http.client.HTTPResponse) -> tuple[list[float], dict[str, Any]]:
        """(times of the pieces, usage) of a stream of server-sent events."""
        times: list[float] = []
        usage: dict[str, Any] = {}
        ended = False
        while line := response.readline():
            if not line.startswith(b"data:"):
                continue
            now, data = time.perf_counter(), line[5:].strip()
            if data == b"[DONE]":
                ended = True
                break
            event = self._object(data)
            if "error" in event:
                raise ServerDied(f"the server at {self.url} failed: {_message(data)}")
            usage = event.get("usage") or usage
            # Half a character has no text yet: its token counts by its event, not by what it shows.
            times += [
                now for choice in event.get("choices") or () if not choice.get("finish_reason") or choice.get("text")
            ]
        if not ended:
            raise ServerDied(f"the server at {self.url} ended a stream before its last token")
        return times, usage

    def _json(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        return self._object(self._exchange(method, path, body))

    def _exchange(self, method: str, path: str, body: Mapping[str, Any] | None) -> bytes:
        connection = self._connect()
        try:
            return self._send(connection, method, path, body).read()
        except (OSError, http.client.HTTPException) as error:
            raise self._died(error) from None
        finally:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        return kind(parts.hostname or "", parts.port, timeout=self.timeout_s)

    def _send(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: Mapping[str, Any] | None
    ) -> http.client.HTTPResponse:
        text = None if body is None else json.dumps(body)
        connection.request(
            method, urlsplit(self.url).path.rstrip("/") + path, text, {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        if response.status != 200:
            said = f"{_message(response.read())} (status {response.status})"
            raise Refused(f"the server at {self.url} refused: {said}", response.status)
        return response

    def _object(self, data: bytes) -> Any:
        try:
            return json.loads(data)
        except ValueError:
            raise NoJson(f"the server at {self.url} answered {_shown(data)!r}; accepted: JSON") from None

    def _died(self, error: Exception) -> ServerDied:
        if isinstance(error, TimeoutError):
            return ServerDied(f"the server at {self.url} was silent for {self.timeout_s:g} s (timeout_s)")
        return ServerDied(f"the server at {self.url} died or does not answer: {error or type(error).__name__}")


class OpenAI:
    """A plain server: its models are there, or are swapped in as they are asked for; nothing can be sent away."""

    name = "OpenAI-compatible server"
    operations: tuple[str, ...] = ()
    """that can be measured besides prefill and decode"""

    def __init__(self, client: Client) -> None:
        self.client = client

    def version(self) -> str:
        return ""

    def models(self) -> list[str]:
        """Names that the server knows."""
        return [str(entry["id"]) for entry in _list(self.client, "/v1/models", "data", "id")]

    def unload(self, model: str) -> None:
        """Send a model away, and return when it is gone."""
        raise NotImplementedError

    def size_bytes(self, model: str) -> int:
        """That the loaded model holds, as the server says; 0: it does not say."""
        return 0


class LlamaSwap(OpenAI):
    """llama-swap starts a server for the model that is asked for, and ends it on demand."""

    name = "llama-swap"
    operations = ("unload",)

    def unload(self, model: str) -> None:
        try:
            self.client.text("POST", f"/api/models/unload/{quote(model, safe='')}")
        except Refused as error:
            if error.status not in (404, 405):
                raise
            self.client.text("GET", "/unload")  # older versions: all models at once
        _wait(self.client, lambda: model not in self._running(), f"llama-swap does not end {model}")

    def _running(self) -> list[str]:
        return [str(entry["model"]) for entry in _list(self.client, "/running", "running", "model")]


class Ollama(OpenAI):
    """Ollama loads the model that is asked for, and lets it go with ``keep_alive`` 0."""

    name = "Ollama"
    operations = ("unload", "footprint")

    def version(self) -> str:
        return str(self.client.get("/api/version")["version"])

    def models(self) -> list[str]:
        return [str(entry["name"]) for entry in _list(self.client, "/api/tags", "models", "name")]

    def unload(self, model: str) -> None:
        self.client.post("/api/generate", {"model": model, "keep_alive": 0, "stream": False})
        _wait(self.client, lambda: not self.size_bytes(model), f"Ollama does not let {model} go")

    def size_bytes(self, model: str) -> int:
        loaded = _list(self.client, "/api/ps", "models", "name")
        return next((int(entry.get("size", 0)) for entry in loaded if entry["name"] == model), 0)


def dialect_of(client: Client) -> OpenAI:
    """The dialect that the server speaks.

    Raises
    ------
    ConfigError
        Nothing answers there, or nothing that is a model server.
    """
    for path, key, dialect in (("/api/version", "version", Ollama), ("/running", "running", LlamaSwap)):
        try:
            answer = client.get(path)
        except (Refused, NoJson):
            continue
        except ServerDied as error:
            raise ConfigError(f"url={client.url}: {error}; accepted: the URL of a running server") from None
        if isinstance(answer, dict) and key in answer:
            return dialect(client)
    return OpenAI(client)


def _list(client: Client, path: str, key: str, inner: str) -> list[dict[str, Any]]:
    """The entries of an answer that holds a list, each with the key `inner`."""
    answer = client.get(path)
    entries = answer.get(key) if isinstance(answer, dict) else None
    if not isinstance(entries, list) or not all(isinstance(one, dict) and inner in one for one in entries):
        raise ServerDied(f"{client.url}{path} has no list '{key}' of '{inner}'; accepted: a model server's answer")
    return entries


def _wait(client: Client, gone: Callable[[], bool], complaint: str) -> None:
    until = time.perf_counter() + client.timeout_s
    while not gone():
        if time.perf_counter() > until:
            raise ServerDied(f"{complaint} within {client.timeout_s:g} s (timeout_s)")
        time.sleep(0.005)


def _message(data: bytes) -> str:
    try:
        error = json.loads(data)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return _shown(data)


def _shown(data: bytes) -> str:
    return " ".join(data[:SHOWN].decode("utf-8", "replace").split())
