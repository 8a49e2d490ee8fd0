"""What every request passes: host, token, origin; and what every response carries: a strict policy, no CORS.

A page of another site may make a browser send requests here. On a loopback address its name must resolve to this
machine for that (DNS rebinding), so other host names are refused; a request that changes something must come from a
page of this server, or from no page at all.
"""

import hmac
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from avdistill.server.config import ServeConfig, is_loopback

#: The browser refuses all that is not of this server: scripts and styles within pages, frames, other addresses.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src 'self' blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
COOKIE = "avdistill_token"
_HEADERS = {
    b"content-security-policy": POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"permissions-policy": b"camera=(), microphone=(), geolocation=()",
}
_NO_STORE = (b"cache-control", b"no-store")


class Shield:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, config: ServeConfig) -> None:
        self.app, self.config = app, config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on; both with the headers."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                present = {name for name, _ in headers}
                headers += [item for item in _HEADERS.items() if item[0] not in present]
                if b"cache-control" not in present:
                    headers.append(_NO_STORE)
                message = {**message, "headers": headers}
            await send(message)

        refusal = self._refusal(scope, Headers(scope=scope))
        await (refusal or self.app)(scope, receive, with_headers)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        """The response to a request that is not passed on."""
        host = headers.get("host", "")
        if self.config.loopback and not is_loopback(host.rpartition(":")[0] if _has_port(host) else host):
            return PlainTextResponse("host: expected an address of this machine\n", 421)
        if scope["method"] not in ("GET", "HEAD") and not _same_origin(headers, host):
            return PlainTextResponse("origin: expected a page of this server\n", 403)
        if self.config.token is not None:
            return self._check_token(self.config.token, scope, headers)
        return None

    def _check_token(self, token: str, scope: Scope, headers: Headers) -> Response | None:
        """401 without the token; the link that the console prints sets a cookie and loses the token."""
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = dict(query).get("token")
        if given is not None and scope["method"] == "GET" and _equal(given, token):
            rest = urlencode([item for item in query if item[0] != "token"])
            # Two slashes at its start would lead to another host.
            path = "/" + scope["raw_path"].decode("latin-1").lstrip("/")
            response = RedirectResponse(path + (f"?{rest}" if rest else ""), 303)
            response.set_cookie(COOKIE, token, httponly=True, samesite="strict", path="/")
            return response
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _equal(bearer.strip(), token):
            return None
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            morsel = None
        if morsel is not None and _equal(morsel.value, token):
            return None
        message = "token: expected the address with ?token=... that the server printed, or Authorization: Bearer ...\n"
        return PlainTextResponse(message, 401, {"www-authenticate": "Bearer"})


def _has_port(host: str) -> bool:
    return ":" in host.rpartition("]")[2]


def _equal(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), token.encode())


def _same_origin(headers: Headers, host: str) -> bool:
    """Whether a request comes from a page of this server, or from no browser."""
    if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc == host
