"""llama-server over HTTP: completions as streams of tokens with their times, and slots saved, restored, erased."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from .backend import ServerDied

TIMEOUT_S = 300.0

FIRST_TOKEN = 256
"""prompts are made of the stub vocabulary's fillers"""

UNKNOWN = 0
"""id given to a token that the server has not told: a cache computed from the real one is then partly computed again"""


@dataclass(frozen=True)
class Token:
    """A generated token and when it came (`time.perf_counter`)."""

    id: int
    at_s: float


class Stream:
    """One completion under way: exactly `num_tokens` tokens, unless it is closed before.

    Iterate to read; `close`, from any thread, makes the server stop at the end of its iteration.
    """

    def __init__(self, url: str, prompt: Sequence[int], num_tokens: int, slot: int, reuse: bool) -> None:
        self._connection = _connect(url)
        body = {
            "prompt": list(prompt),
            "n_predict": num_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "return_tokens": True,
            "id_slot": slot,
            "cache_prompt": reuse,
        }
        self.sent_s = time.perf_counter()
        try:
            self._connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
        except OSError as error:
            raise ServerDied(f"llama-server at {url} does not answer: {error}") from None
        self._url = url

    def __iter__(self) -> Iterator[Token]:
        """Tokens as they come; one whose text is half a character comes with the next. Raises ServerDied."""
        count = 0
        try:
            response = self._connection.getresponse()
            if response.status != 200:
                raise ServerDied(f"llama-server refused a completion: {_message(response.read())}")
            while line := response.readline():
                if not line.startswith(b"data: "):
                    continue
                data = json.loads(line[6:])
                if "error" in data:
                    raise ServerDied(f"llama-server failed: {data['error'].get('message', data['error'])}")
                now = time.perf_counter()
                known = data.get("tokens", [])
                missing = max(0, int(data.get("tokens_predicted", count + len(known))) - count - len(known))
                count += missing + len(known)
                for token in [UNKNOWN] * missing + known:
                    yield Token(token, now)
                if data.get("stop"):
                    return
            raise ServerDied(f"llama-server at {self._url} ended a stream before its last token")
        except (OSError, http.client.HTTPException, AttributeError) as error:
            raise ServerDied(f"llama-server at {self._url} died: {error}") from None
        finally:
            self._connection.close()

    def close(self) -> None:
        """Cut the connection: the server gives the slot up at the end of its iteration."""
        import socket

        sock = self._connection.sock
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                return


def slot_action(url: str, slot: int, action: str, filename: str = "") -> tuple[float, dict[str, Any]]:
    """Save, restore or erase a slot. Returns (seconds as the client sees them, the server's answer). Raises ServerDied."""
    connection = _connect(url)
    begun = time.perf_counter()
    try:
        body = json.dumps({"filename": filename} if filename else {})
        connection.request("POST", f"/slots/{slot}?action={action}", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        data = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise ServerDied(f"llama-server at {url} does not answer: {error}") from None
    finally:
        connection.close()
    seconds = time.perf_counter() - begun
    if response.status != 200:
        raise ServerDied(f"llama-server refused to {action} slot {slot}: {_message(data)}")
    return seconds, json.loads(data)


def slots(url: str) -> list[dict[str, Any]]:
    """What each slot is doing. Raises ServerDied."""
    connection = _connect(url)
    try:
        connection.request("GET", "/slots")
        return list(json.loads(connection.getresponse().read()))
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ServerDied(f"llama-server at {url} does not answer: {error}") from None
    finally:
        connection.close()


def wait_idle(url: str, slot: int) -> None:
    """Until the slot has given up the completion whose stream was closed. Raises ServerDied."""
    until = time.perf_counter() + TIMEOUT_S
    while slots(url)[slot]["is_processing"]:
        if time.perf_counter() > until:
            raise ServerDied(f"llama-server at {url} does not give up slot {slot}")
        time.sleep(0.0005)


def _connect(url: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    return http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=TIMEOUT_S)


def _message(data: bytes) -> str:
    try:
        return str(json.loads(data)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return data[:200].decode("utf-8", "replace")
