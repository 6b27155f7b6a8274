"""Asks a server for runs again and again, from outside, and tells how long the answers took."""

from __future__ import annotations

import http.client
import itertools
import json
import sys
import time


def main() -> None:
    """Ask for each in its turn, wait for the answer, pause, and ask again."""
    port, key, seconds, pause_ms, *paths = sys.argv[1:]
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=60)
    headers = {"Authorization": f"Bearer {key}"}
    took_ms: list[float] = []
    end = time.perf_counter() + float(seconds)
    for path in itertools.cycle(paths):
        if (began := time.perf_counter()) > end:
            break
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            sys.exit(f"{path} was answered with {answer.status}")
        took_ms.append((time.perf_counter() - began) * 1000)
        time.sleep(float(pause_ms) / 1000)
    print(json.dumps(took_ms))


if __name__ == "__main__":
    main()
