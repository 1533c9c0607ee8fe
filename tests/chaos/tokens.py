"""Who hands out tokens? An OAuth token endpoint on a port of its own, for a broker that takes unsecured ones."""

from __future__ import annotations

import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal

MECHANISM = "OAUTHBEARER"
CLIENT_ID, CLIENT_SECRET = "payments-client", "payments-client-secret"

TOKEN_MARK = "eyJ"
"""How each of them begins: a JSON object in base64."""

Answer = Literal["valid", "expired", "refused"]


def broker_settings(listener: str = "client") -> dict[str, str]:
    """What a broker needs to take these tokens, beside SCRAM-SHA-256 for itself."""
    login = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule"
    return {
        "sasl.enabled.mechanisms": f"SCRAM-SHA-256,{MECHANISM}",
        f"listener.name.{listener}.oauthbearer.sasl.jaas.config": f'{login} required unsecuredLoginStringClaim_sub="broker";',
    }


class TokenEndpoint:
    """Hands out tokens for `user`, each good for `lifetime_s`. A context manager; owns its thread and its port.

    `answer` says what it does from now on: tokens that are ``valid``, tokens that have ``expired`` long ago, or a 401.
    """

    def __init__(self, user: str, *, lifetime_s: int) -> None:
        self.answer: Answer = "valid"
        self.asked = 0
        """How often somebody has asked for a token."""
        self._user = user
        self._lifetime_s = lifetime_s
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                endpoint.asked += 1
                status, body = endpoint._answered()
                content = json.dumps(body).encode()
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                """Not on the test's screen."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> TokenEndpoint:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def security(self) -> dict[str, str]:
        """The client settings that log the user in with a token of here."""
        return {
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": MECHANISM,
            "sasl.oauthbearer.method": "oidc",
            "sasl.oauthbearer.client.id": CLIENT_ID,
            "sasl.oauthbearer.client.secret": CLIENT_SECRET,
            "sasl.oauthbearer.token.endpoint.url": f"http://127.0.0.1:{self._server.server_port}/token",
        }

    def _answered(self) -> tuple[int, dict[str, Any]]:
        if self.answer == "refused":
            return 401, {"error": "invalid_client"}
        now_s = int(time.time()) - (3600 if self.answer == "expired" else 0)
        claims = {"sub": self._user, "iat": now_s, "exp": now_s + self._lifetime_s}
        token = f"{_encoded({'alg': 'none'})}.{_encoded(claims)}."
        return 200, {"access_token": token, "token_type": "Bearer", "expires_in": self._lifetime_s}


def _encoded(part: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
