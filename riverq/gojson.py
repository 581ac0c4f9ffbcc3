"""The texts Go's `encoding/json` writes for single values, and surgery on encoded objects.

The standard encoders differ from Go in small ways: escapes of `<`, `>` and `&`, the layout of floats, fractions of
seconds. `riverq.codec` puts these texts together; `riverq.unique` takes encoded objects apart again.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from datetime import datetime, time, timedelta
from decimal import Decimal
from json.encoder import encode_basestring  # in C where there is C
from math import isfinite

HTML = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
"""What Go escapes beyond JSON's own rules, so that its output may stand in a web page."""

SPECIAL = re.compile("[\x00<>&\u2028\u2029\ud800-\udfff]")
"""Characters that JSON's rules let through and Go or Postgres does not."""

_decoder = json.JSONDecoder()


class Refusal(Exception):
    """A value that cannot be encoded; each level on the way out adds its step to the path."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        self.steps: list[str] = []


def encode_string(text: str) -> str:
    """A JSON string with Go's escapes."""
    encoded: str = encode_basestring(text)
    if SPECIAL.search(text) is None:
        return encoded
    if "\0" in text:
        raise Refusal("Postgres cannot store the NUL character (remove it)")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Refusal(f"lone surrogate at index {error.start}, which is no Unicode text (decode it)") from None
    return SPECIAL.sub(lambda found: HTML[found[0]], encoded)


def encode_float(number: float) -> str:
    """The shortest text that reads back as `number`, laid out as Go does."""
    if not isfinite(number):
        raise Refusal(f"{number!r} is no JSON number")
    text = float.__repr__(number)
    size = abs(number)
    if size != 0 and (size < 1e-6 or size >= 1e21):
        return text.replace("e-0", "e-")
    if "e" in text:
        text = format(Decimal(text), "f")
    return text.removesuffix(".0")


def encode_time(at: datetime) -> str:
    """RFC 3339 as Go's `time.Time` writes it: fraction without trailing zeros, `Z` for UTC, else the offset."""
    offset = at.utcoffset()
    if offset is None:
        raise Refusal(f"naive datetime {at.isoformat()} (give it a zone: datetime.now(UTC), at.astimezone())")
    seconds = round(offset.total_seconds())
    if seconds % 60 or offset.microseconds:
        raise Refusal(f"the offset {offset} of {at.isoformat()} is no whole minute (use UTC)")
    zone = (
        "Z" if seconds == 0 else f"{'-' if seconds < 0 else '+'}{abs(seconds) // 3600:02}:{abs(seconds) // 60 % 60:02}"
    )
    return f'"{at.date().isoformat()}T{_clock(at)}{zone}"'


def _clock(at: datetime | time) -> str:
    fraction = f".{at.microsecond:06}".rstrip("0") if at.microsecond else ""
    return f"{at.hour:02}:{at.minute:02}:{at.second:02}{fraction}"


def encode_time_of_day(at: time) -> str:
    """`15:04:05.12`, without a zone."""
    if at.tzinfo is not None:
        raise Refusal(f"time of day {at.isoformat()} with a zone (use a datetime)")
    return f'"{_clock(at)}"'


def encode_integer(number: int) -> str:
    """All its digits; JSON knows no 64 bits."""
    try:
        return int.__repr__(number)
    except ValueError as error:
        raise Refusal(f"integer too large: {error}") from error


def encode_nanoseconds(span: timedelta) -> str:
    """As Go's `time.Duration`: a 64-bit integer of nanoseconds."""
    count = span // timedelta(microseconds=1) * 1000
    if not -(2**63) <= count < 2**63:
        raise Refusal(f"{span} does not fit Go's time.Duration (292 years)")
    return str(count)


def encode_decimal(number: Decimal) -> str:
    """In quotes, digits as given: as a number it would lose them in clients that read floats."""
    if not number.is_finite():
        raise Refusal(f"{number!r} is no JSON number")
    return f'"{number}"'


def encode_bytes(data: bytes | bytearray | memoryview) -> str:
    """Base64 of the standard alphabet with padding, as Go's `[]byte`."""
    return f'"{base64.b64encode(data).decode()}"'


def members(text: str) -> Iterator[tuple[str, str]]:
    """Key and still encoded value of each member of a compact JSON object, in order; nothing for other JSON."""
    if not text.startswith("{") or text == "{}":
        return
    at = 0
    while text[at] != "}":
        key, at = json.decoder.scanstring(text, at + 2)  # type: ignore[attr-defined]  # what the decoder itself uses
        _, end = _decoder.raw_decode(text, at + 1)
        yield key, text[at + 1 : end]
        at = end
