"""Strict JSON: one object, no duplicate keys, no NaN, bounded size and depth."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 1 << 20
_MAX_SHOWN = 60


def read_json_object(path: Path, *, error: type[Exception], max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Read a JSON file of at most ``max_bytes`` that must hold one object.

    Raises:
        error: with the place of the fault.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise error(f"{path}: no such file") from None
    except OSError as cause:
        raise error(f"{path}: cannot be read: {cause.strerror or cause}") from cause
    return parse_json_object(raw, where=str(path), error=error, max_bytes=max_bytes)


def parse_json_object(
    raw: bytes, *, where: str, error: type[Exception], max_bytes: int = MAX_JSON_BYTES
) -> dict[str, Any]:
    """Parse UTF-8 JSON that must hold one object; ``where`` is its origin, as errors name it.

    Raises:
        error: with the place of the fault.
    """
    if len(raw) > max_bytes:
        raise error(f"{where}: larger than {max_bytes:,} bytes")
    try:
        data = parse_json(raw.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise error(f"{where}: not UTF-8 text") from None
    except json.JSONDecodeError as cause:
        raise error(f"{where}:{cause.lineno}:{cause.colno}: not JSON: {cause.msg}") from None
    except RecursionError:
        raise error(f"{where}: nested too deeply") from None
    except ValueError as cause:
        raise error(f"{where}: {cause}") from None
    if not isinstance(data, dict):
        raise error(f"{where}: expected an object, got {abbreviate(data)}")
    return data


def parse_json(text: str) -> Any:
    """Parse JSON text of any type, by the same strict rules.

    Raises:
        ValueError: if it is not JSON, or a key stands twice, or a number is not finite.
    """
    return json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_float=_finite)


def abbreviate(value: Any) -> str:
    """A JSON value as text of at most 60 characters, for error messages."""
    text = json.dumps(value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Python silently keeps only the last of two equal keys.
    result = dict(pairs)
    if len(result) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return result


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    # 1e999 is valid JSON, and Python reads it as infinity.
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large for a number")
    return value
