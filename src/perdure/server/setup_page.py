"""The page of the setup link: a code in, the first admin key out.

It needs nothing but itself: no script, no file, nothing of another host. Whoever asks for JSON
(`Accept: application/json`) gets that instead, so that it can be done without a browser.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Awaitable, Callable
from html import escape
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from perdure.api.errors import Failure, Rejected
from perdure.api.operations import HTML, JSON
from perdure.core.errors import PerdureError, Refused
from perdure.server.incoming import accepts, read_body
from perdure.server.service import Service
from perdure.server.setup import SetupLink

PATH: Final = "/setup/{token}"
FORM: Final = "application/x-www-form-urlencoded"
BODY_BYTES_MAX: Final = 4_096
FIELDS_MAX: Final = 4

STYLE: Final = """
:root { color-scheme: light dark; --ink: #1c1e21; --faint: #5c6470; --paper: #f6f7f9;
--card: #fff; --line: #d5d9e0; --act: #1f5fbf; --bad: #a4262c }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --faint: #9aa3af;
--paper: #14161a; --card: #1d2026; --line: #363b45; --act: #2f6fce; --bad: #ff9a9a } }
* { box-sizing: border-box }
body { margin: 0; min-height: 100vh; display: grid; place-items: center; padding: 1rem;
font: 1rem/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper) }
main { width: 100%; max-width: 34rem; padding: 2rem; background: var(--card);
border: 1px solid var(--line); border-radius: .75rem }
h1 { margin: 0 0 .5rem; font-size: 1.4rem } p { margin: .5rem 0 1rem }
.faint { color: var(--faint) }
label { display: block; font-weight: 600; margin-bottom: .25rem }
input, code { font-family: ui-monospace, monospace; font-size: .95em }
input, .key { font-size: 1.1rem } input::placeholder { color: var(--faint); opacity: 1 }
input { width: 100%; padding: .6rem .75rem; color: inherit; background: var(--paper);
border: 1px solid var(--line); border-radius: .4rem; text-transform: uppercase }
button { margin-top: 1rem; padding: .6rem 1.2rem; font: inherit; font-weight: 600; color: #fff;
background: var(--act); border: 0; border-radius: .4rem; cursor: pointer }
input:focus-visible, button:focus-visible { outline: 3px solid var(--act); outline-offset: 2px }
.key { display: block; padding: .75rem; overflow-wrap: anywhere; user-select: all;
background: var(--paper); border: 1px solid var(--line); border-radius: .4rem }
.bad { color: var(--bad); font-weight: 600 }
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

_encode = msgspec.json.Encoder().encode


def setup_page(service: Service) -> Callable[[HttpRequest], Awaitable[Response]]:
    """Return what serves the link, if the service offers one."""

    async def serve(http: HttpRequest) -> Response:
        link = service.setup
        if link is None or not link.leads_here(http.path_params["token"]):
            return Response(_encode(Failure("not found")), 404, media_type=JSON)
        as_json = accepts(http, JSON, exactly=True)
        try:
            if http.method == "POST":
                key = await _use(link, http)
                return _answer(201, {"data": {"key": key}} if as_json else _made(key))
            await link.check()
            return _answer(200, {"takes": "code"} if as_json else _form(""))
        except Refused as refused:
            status, said = 410 if refused.code == "gone" else 403, str(refused)
        except Rejected as rejected:
            status, said = rejected.status, str(rejected.error)
        except PerdureError as error:
            status, said = 503, str(error)
        page = _gone(said) if status == 410 else _form(said)
        answer = _answer(status, msgspec.to_builtins(Failure(said)) if as_json else page)
        if status == 429:
            answer.headers["Retry-After"] = "1"
        return answer

    return serve


async def _use(link: SetupLink, http: HttpRequest) -> str:
    body = (await read_body(http, BODY_BYTES_MAX, (FORM,))).decode(errors="replace")
    try:
        given = parse_qs(body, max_num_fields=FIELDS_MAX).get("code", [""])
    except ValueError:
        given = [""]
    return (await link.use(given[0])).token


def _answer(status: int, told: dict[str, Any] | str) -> Response:
    if isinstance(told, str):
        return Response(told, status, HEADERS, HTML)
    return Response(_encode(told), status, {"Cache-Control": "no-store"}, JSON)


def _page(title: str, inside: str) -> str:
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)} - Perdure</title><style>{STYLE}</style>"
        f"<main><h1>{escape(title)}</h1>{inside}</main></html>"
    )


def _form(wrong: str) -> str:
    said = f'<p class="bad" role="alert">{_sentence(wrong)}</p>' if wrong else ""
    return _page(
        "Set up this server",
        "<p>The console on which the server was started shows a code. It makes the first admin "
        "key, with which everything else is done.</p>"
        f'{said}<form method="post"><label for="code">Code</label>'
        '<input id="code" name="code" required autofocus autocomplete="off" spellcheck="false" '
        'maxlength="20" placeholder="XXXX-XXXX"><button>Make the admin key</button></form>'
        '<p class="faint">This link is good once, and for an hour.</p>',
    )


def _made(key: str) -> str:
    return _page(
        "The admin key",
        f'<p>It is shown this once. Keep it where you keep passwords.</p><code class="key">'
        f"{escape(key)}</code>"
        "<p>Requests bear it as <code>Authorization: Bearer KEY</code>; workers take it as "
        '<code>PERDURE_KEY</code>.</p><p class="faint">The link that led here is used up.</p>',
    )


def _gone(said: str) -> str:
    return _page(
        "Nothing to set up",
        f'<p>{_sentence(said)}</p><p class="faint">While there is no admin key, every start of the '
        "server shows a new link.</p>",
    )


def _sentence(said: str) -> str:
    return escape(f"{said[:1].upper()}{said[1:]}.")
