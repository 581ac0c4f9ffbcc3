"""The peer in a process of its own, for tests that kill it: speaks the oracle's protocol on standard input and output.

`python -m tests.interop.peer_process <database url> <schema> <adapter> <application_name>`; it ends with its input.
"""

from __future__ import annotations

import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.interop.oracle import OracleError
from tests.interop.peer import Peer


def main() -> None:
    url, schema, adapter, application = sys.argv[1:]
    name = "server_settings" if adapter == "asyncpg" else "application_name"
    value: Any = {"application_name": application} if adapter == "asyncpg" else application
    peer = Peer(url, schema, adapter, connect_args={name: value})  # the usual name keeps it out of the leak check
    writing = threading.Lock()

    def perform(request: dict[str, Any]) -> None:
        answer: dict[str, Any] = {"id": request.pop("id")}
        try:
            for known in ("database_url", "schema"):
                request.pop(known, None)
            answer["result"] = peer.call(request.pop("op"), **request)
        except OracleError as error:
            answer |= {"error": str(error), "error_kind": error.kind}
        except Exception as error:  # noqa: BLE001  # whatever it is, the test is told
            answer["error"] = f"{type(error).__name__}: {error}"
        with writing:
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()

    with ThreadPoolExecutor(16) as threads:
        for line in sys.stdin:
            threads.submit(perform, json.loads(line))
        peer.leave()
    peer.close()


if __name__ == "__main__":
    main()
