"""Where a thread is at this moment, in a few words for a log line.

`worker.stuck` asks for the thread of a `def` worker, `worker.loop_watch` for the event loop's. Frames are read while
the thread runs, so what is said was true a moment ago.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_RIVERQ = str(Path(__file__).parents[1])


def place_of(thread_id: int | None) -> str | None:
    """`file:line in function` of the thread's own code, and where that led if it is elsewhere; None if it is gone.

    Own code is the innermost frame that is neither riverq's nor an installed library's: what its author can change.
    """
    frame = None if thread_id is None else sys._current_frames().get(thread_id)
    if frame is None:
        return None
    own = next((each for each in _outwards(frame) if _is_own(each.f_code.co_filename)), frame)
    return _words(own) if own is frame else f"{_words(own)}, inside {_words(frame)}"


def _outwards(frame: FrameType) -> Iterator[FrameType]:
    each: FrameType | None = frame
    while each is not None:
        yield each
        each = each.f_back


def _is_own(filename: str) -> bool:
    return not filename.startswith((*_LIBRARIES, _RIVERQ, "<frozen"))


def _words(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"
