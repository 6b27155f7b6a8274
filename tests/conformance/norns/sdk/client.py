"""The official SDK's client, a line of JSON at a time: `client.py URL KEY`.

`["method", [arguments], {named}]` comes in; `{"returned": ...}` or `{"raised": ...}` goes out.
"""

import dataclasses
import inspect
import json
import sys

from norns import NornsClient


def plain(value):
    """Return dataclasses as objects."""
    if inspect.isgenerator(value):
        value = list(value)
    if isinstance(value, list):
        return [plain(one) for one in value]
    if not dataclasses.is_dataclass(value):
        return value
    shown = dataclasses.asdict(value)
    if hasattr(value, "is_waiting"):
        shown["is_waiting"] = value.is_waiting
    return shown


with NornsClient(sys.argv[1], api_key=sys.argv[2]) as client:
    for line in sys.stdin:
        method, arguments, named = json.loads(line)
        try:
            answer = {"returned": plain(getattr(client, method)(*arguments, **named))}
        except Exception as error:  # noqa: BLE001 - the test judges it
            response = getattr(error, "response", None)
            answer = {
                "raised": type(error).__name__,
                "text": str(error) if response is None else response.text,
                "status": None if response is None else response.status_code,
            }
        print(json.dumps(answer), flush=True)
