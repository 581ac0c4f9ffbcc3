from __future__ import annotations

import asyncio
import json
import threading

from riverq.worker.place import place_of


def test_one_s_own_line_and_where_it_led() -> None:
    began, go_on = threading.Event(), threading.Event()

    class Encoded(json.JSONEncoder):
        def default(self, value: object) -> str:
            began.set()
            go_on.wait(10)
            return "x"

    thread = threading.Thread(target=json.dumps, args=(object(),), kwargs={"cls": Encoded})
    thread.start()
    began.wait(10)
    place = place_of(thread.ident)
    go_on.set()
    thread.join()
    assert place is not None
    own, library = place.split(", inside ")
    assert own.startswith(f"{__file__}:")
    assert own.endswith("in test_one_s_own_line_and_where_it_led.<locals>.Encoded.default")
    assert "threading.py:" in library


def test_a_thread_that_runs_no_code_of_ones_own() -> None:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    place = place_of(thread.ident)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    assert place is not None
    assert ", inside " not in place


def test_no_thread() -> None:
    assert place_of(None) is None
    assert place_of(1) is None
