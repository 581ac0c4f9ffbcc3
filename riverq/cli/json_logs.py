"""Log lines as JSON: one object a line, in ASCII, whatever a record holds.

A line that cannot be formatted must not vanish, and must not become a traceback among lines that a collector parses:
what is odd is shown by its `repr`, and what has none by the name of its class.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

OWN = ("time", "level", "logger", "message", "exception")
DEEPEST = 6

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """`time` (RFC 3339, UTC), `level`, `logger`, `message`, `exception` where there was one, and every extra field.

    An extra field whose name is one of these gets an underscore behind it.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        line: dict[str, Any] = {
            "time": f"{datetime.fromtimestamp(record.created, UTC):%Y-%m-%dT%H:%M:%S.%f}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        exception = self._exception(record)
        if exception:
            line["exception"] = exception
        for name, value in vars(record).items():
            if name not in _STANDARD:
                line[f"{name}_" if name in OWN else name] = value
        return json.dumps(_plain(line, DEEPEST), allow_nan=False)

    def _exception(self, record: logging.LogRecord) -> str:
        try:
            text = record.exc_text or (self.formatException(record.exc_info) if record.exc_info else "")
            return "\n".join(part for part in (text, record.stack_info or "") if part)
        except Exception as error:  # noqa: BLE001  # whatever the exception's own text raises
            return f"an exception that cannot be shown: {_shown(error)}"


def log_as_json(level: int) -> None:
    """Log to stderr in JSON, warnings and what ends a thread or the process included."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    log = logging.getLogger("riverq")

    def on_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_type is not SystemExit and args.exc_value is not None:
            log.error("worker: Lost a thread (error=%s)", _shown(args.exc_value), exc_info=args.exc_value)

    def on_end(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        log.error("worker: Ended (error=%s)", _shown(error), exc_info=(kind, error, trace))

    threading.excepthook = on_thread
    sys.excepthook = on_end


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001  # arguments that do not fit, or whose text raises
        return f"{_shown(record.msg)} {_shown(record.args)}"


def _plain(value: Any, deep: int) -> Any:
    """The same in what JSON has; a NaN, an endless nesting and a foreign object become text."""
    if value is None or type(value) in (bool, int):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return str.__str__(value).encode("utf-8", "replace").decode("utf-8")
    if deep > 0:
        try:
            if isinstance(value, Mapping):
                return {_key(key): _plain(item, deep - 1) for key, item in value.items()}
            if isinstance(value, (list, tuple, set, frozenset)):
                return [_plain(item, deep - 1) for item in value]
        except Exception:  # noqa: BLE001  # a container of somebody's own
            return _shown(value)
    return _shown(value)


def _key(key: object) -> str:
    return str(_plain(key if isinstance(key, str) else _shown(key), 0))


def _shown(value: object) -> str:
    try:
        text = str(value) if isinstance(value, (str, BaseException, datetime)) else repr(value)
    except Exception:  # noqa: BLE001  # a repr of somebody's own
        text = f"<{type(value).__name__}>"
    return text.encode("utf-8", "replace").decode("utf-8")
