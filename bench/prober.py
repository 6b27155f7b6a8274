"""Asks a server for a run again and again, from outside, and tells how long the answers took."""

from __future__ import annotations

import http.client
import json
import sys
import time


def main() -> None:
    """Ask, wait for the answer, pause, and ask again."""
    port, key, path, seconds, pause_ms = sys.argv[1:]
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=60)
    headers = {"Authorization": f"Bearer {key}"}
    took_ms: list[float] = []
    end = time.perf_counter() + float(seconds)
    while (began := time.perf_counter()) < end:
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
