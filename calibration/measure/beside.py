"""Something else that goes on while a figure is measured: decoding, or loads one after the other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from . import llama_http
from .backend import ServerDied
from .launchers import READ, Launcher, Settings
from .points import ALL

MARGIN = 8
"""tokens of a slot that a completion leaves free"""


@contextmanager
def decoding_on(launcher: Launcher, path: Path, settings: Settings) -> Iterator[None]:
    """An instance of its own decodes on the launcher's device."""
    _, url, name = launcher.load(path, READ, ALL, settings)
    try:
        with decoding(url, settings):
            yield
    finally:
        launcher.unload(name)


@contextmanager
def decoding(url: str, settings: Settings) -> Iterator[None]:
    """A sequence decodes on the instance at `url`, from before the body to after it."""
    begun, streams = threading.Event(), list[llama_http.Stream]()

    def decode(stop: threading.Event) -> None:
        while not stop.is_set():
            prompt = [llama_http.FIRST_TOKEN]
            stream = llama_http.Stream(url, prompt, settings.context - MARGIN, 0, reuse=False)
            streams[:] = [stream]
            try:
                for _ in stream:
                    begun.set()
                    if stop.is_set():
                        return
            except ServerDied:
                if not stop.is_set():
                    raise

    with going_on(decode, begun):
        yield
    for stream in streams:
        stream.close()
    llama_http.wait_idle(url, 0)


@contextmanager
def loading(launcher: Launcher, path: Path, settings: Settings) -> Iterator[None]:
    """The model is loaded and unloaded over and over on the launcher's device."""
    begun = threading.Event()

    def load(stop: threading.Event) -> None:
        while not stop.is_set():
            begun.set()
            launcher.unload(launcher.load(path, READ, ALL, settings)[2])

    with going_on(load, begun):
        yield


@contextmanager
def going_on(action: Callable[[threading.Event], None], begun: threading.Event) -> Iterator[None]:
    """`action` in a thread of its own, told to stop after the body. Raises what it raised."""
    stop, errors = threading.Event(), list[Exception]()

    def run() -> None:
        try:
            action(stop)
        except Exception as error:
            errors.append(error)
        finally:
            begun.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    begun.wait()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if errors:
        raise errors[0]
