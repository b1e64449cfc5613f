"""The server as an OAuth resource server, with a real issuer on the loopback."""

from __future__ import annotations

from pathlib import Path

import httpx2

from tests.http import call, initialize, post, serving_http
from tests.issuers import AUDIENCE, issuing


def test_a_client_finds_the_issuer_and_is_served_by_its_token(tmp_path: Path) -> None:
    with (
        issuing() as issuer,
        serving_http(
            tmp_path,
            ROOKERY_AUTH="true",
            ROOKERY_PUBLIC_URL="https://agents.example",
            ROOKERY_OAUTH_ISSUER=issuer.url,
            ROOKERY_REQUESTS_PER_MINUTE="8",
        ) as site,
    ):
        unknown = post(site, initialize())
        assert unknown.status_code == 401
        address = "https://agents.example/.well-known/oauth-protected-resource/mcp"
        assert f'resource_metadata="{address}"' in unknown.headers["www-authenticate"]
        with httpx2.Client(trust_env=False) as client:
            said = client.get(f"{site.root}/.well-known/oauth-protected-resource/mcp").json()
        assert said["resource"] == AUDIENCE
        assert said["authorization_servers"] == [issuer.url]
        assert "agents:run" in said["scopes_supported"]

        alice = {"authorization": f"Bearer {issuer.token()}"}
        assert call(site, "list_sessions", {}, **alice)["sessions"] == []
        reader = {"authorization": f"Bearer {issuer.token(sub='bob', scope='agents:read')}"}
        assert call(site, "spawn_agent", {"prompt": "x"}, **reader)["code"] == "policy_denied"
        wrong = {"authorization": f"Bearer {issuer.token(aud='https://other.example')}"}
        assert post(site, initialize(), **wrong).status_code == 401
        assert issuer.asked == ["/.well-known/openid-configuration", "/keys"]

        # Alice has asked once; what she asks too much does not touch Bob.
        statuses = [post(site, initialize(), **alice).status_code for _ in range(9)]
        assert statuses[:7] == [200] * 7
        assert statuses[-1] == 429
        assert post(site, initialize(), **reader).status_code == 200
