"""What importers share: rows to be, what was left out and why, and reading the fields of an object with clear errors."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mmsched_env.errors import ConfigError

UNKNOWN = "not known to this importer"
NO_FIGURE = "not a measurement"


@dataclass(frozen=True)
class Draft:
    """Columns of a `Measurement` as far as the file gives them, and where in the file they stand."""

    where: str
    columns: dict[str, Any]


@dataclass
class Reading:
    """What an importer took from a file, and what it left, by reason."""

    drafts: list[Draft] = field(default_factory=list)
    ignored: dict[str, list[str]] = field(default_factory=dict)
    """reason -> what, in the order met, each once"""

    def row(self, where: str, **columns: Any) -> None:
        """Add a figure."""
        self.drafts.append(Draft(where, columns))

    def ignore(self, what: str, reason: str) -> None:
        """Say that `what` was left out."""
        known = self.ignored.setdefault(reason, [])
        if what not in known:
            known.append(what)

    def ignore_rest(self, fields: Fields, reasons: Mapping[str, str]) -> None:
        """Account for every field not read yet."""
        for key in fields.unread():
            self.ignore(key, reasons.get(key, UNKNOWN))


@dataclass(frozen=True)
class Importer:
    """A format: its name, how to tell it from others by its text, and how to read it.

    ``read`` raises ConfigError for a file that is recognised but broken.
    """

    name: str
    recognises: Callable[[str], bool]
    read: Callable[[str], Reading]


_REQUIRED: Any = object()


class Fields:
    """The fields of one object or row, each checked as it is read; numbers may be text, as in CSV."""

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self.data = data
        self.where = where
        self._read: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return self.data.get(key) not in (None, "")

    def unread(self) -> list[str]:
        """Keys nobody asked for."""
        return [key for key in self.data if key not in self._read]

    def get(self, key: str, default: Any = _REQUIRED) -> Any:
        """The value as it stands; null and empty count as missing. Raises ConfigError when it is and has no default."""
        self._read.add(key)
        value = self.data.get(key)
        if value is not None and value != "":
            return value
        if default is _REQUIRED:
            raise self.error(key, "a value: it is missing")
        return default

    def text(self, key: str, default: Any = _REQUIRED) -> Any:
        """Text. Raises ConfigError."""
        value = self.get(key, default)
        if value is not default and not isinstance(value, str):
            raise self.error(key, "text")
        return value

    def number(self, key: str, default: Any = _REQUIRED, *, above: float = -math.inf, low: float = -math.inf) -> Any:
        """A finite number > `above` and >= `low`. Raises ConfigError."""
        value = self.get(key, default)
        if value is default:
            return value
        if isinstance(value, str) or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            try:
                number = float(value)
            except (ValueError, OverflowError):
                number = math.nan
            if math.isfinite(number) and number > above and number >= low:
                return number
        limit = f" > {above:g}" if above > -math.inf else f" >= {low:g}" if low > -math.inf else ""
        raise self.error(key, f"a finite number{limit}")

    def positive(self, key: str, default: Any = _REQUIRED) -> Any:
        """A finite number > 0. Raises ConfigError."""
        return self.number(key, default, above=0)

    def whole(self, key: str, default: Any = _REQUIRED, *, low: int = 0) -> Any:
        """A whole number >= `low`. Raises ConfigError."""
        value = self.number(key, default, low=low)
        if value is not default:
            if value != int(value):
                raise self.error(key, f"a whole number >= {low}")
            return int(value)
        return value

    def flag(self, key: str, default: Any = _REQUIRED) -> Any:
        """true, false, 1 or 0. Raises ConfigError."""
        value = self.get(key, default)
        if value is default:
            return value
        if str(value).lower() not in ("true", "false", "0", "1"):
            raise self.error(key, "true, false, 1 or 0")
        return str(value).lower() in ("true", "1")

    def numbers(self, key: str, default: Any = _REQUIRED) -> Any:
        """A list of finite numbers > 0. Raises ConfigError."""
        value = self.get(key, default)
        if value is default:
            return value
        if not isinstance(value, list) or not value:
            raise self.error(key, "a list of numbers > 0")
        items = Fields({f"{key}[{i}]": item for i, item in enumerate(value)}, self.where)
        return [items.positive(name) for name in items.data]

    def inner(self, key: str) -> Fields:
        """An object within. Raises ConfigError."""
        value = self.get(key)
        if not isinstance(value, dict):
            raise self.error(key, "an object")
        return Fields(value, f"{self.where}: {key}" if self.where else key)

    def error(self, key: str, accepted: str) -> ConfigError:
        """Error naming place, field, value and what is accepted."""
        place = f"{self.where}: " if self.where else ""
        return ConfigError(f"{place}{key} is {_short(self.data.get(key))}; accepted: {accepted}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def json_objects(text: str, what: str = "object") -> list[Fields]:
    """The objects of a JSON document (one, or a list of them) or of JSON lines, each with its place.

    Raises
    ------
    ConfigError
        Not JSON, with the line at fault; or something else than objects in it.
    """
    try:
        document = json.loads(text)
        places = [f"{what} {i}" for i in range(1, len(document) + 1)] if isinstance(document, list) else [""]
        items = document if isinstance(document, list) else [document]
    except json.JSONDecodeError as error:
        lines = [(i, line) for i, line in enumerate(text.splitlines(), start=1) if line.strip()]
        if len(lines) < 2 or not lines[0][1].rstrip().endswith("}"):
            raise bad_json(error) from None
        places = [f"line {i}" for i, _ in lines]
        items = [_line(number, line) for number, line in lines]
    if not items:
        raise ConfigError(f"holds no {what}; accepted: at least one")
    for place, item in zip(places, items, strict=True):
        if not isinstance(item, dict):
            raise ConfigError(f"{place or 'the document'} is {_short(item)}; accepted: an object")
    return [Fields(item, place) for place, item in zip(places, items, strict=True)]


def _line(number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise bad_json(error, number) from None


def bad_json(error: json.JSONDecodeError, line: int | None = None) -> ConfigError:
    """Error naming the place; `line` of the file where each holds a document of its own."""
    place = f"line {error.lineno if line is None else line} column {error.colno}"
    return ConfigError(f"{place}: not valid JSON: {error.msg}; accepted: the whole of what the tool wrote")


def has_keys(text: str, *keys: str) -> bool:
    """Whether JSON text names all of `keys`: enough to tell a format, also when the file is cut short."""
    return all(f'"{key}"' in text for key in keys)


def noted(pairs: Iterable[tuple[str, Any]]) -> str:
    """Settings as ``key=value key=value``, those that are given."""
    return " ".join(f"{key}={value}" for key, value in pairs if value is not None and value != "")
