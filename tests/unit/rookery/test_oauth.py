"""Tokens of an issuer: which are believed, and when its keys are asked for (rows T05, P07)."""

from __future__ import annotations

import base64
import json
from typing import Any

import anyio
import httpx2
import jwt
import pytest

from rookery.web.keys import AGAIN_S, FRESH_S, MAX_BYTES, STALE_S, IssuerUnreachable, KeySet
from rookery.web.oauth import LEEWAY_S, OAuth
from server.callers import Caller, Scope
from tests.issuers import AUDIENCE, Issuer, new_key

ISSUER = "https://issuer.example/tenant"
PATIENCE_S = 30.0


class Wire:
    """The issuer's end, and the time."""

    def __init__(self, issuer: Issuer) -> None:
        self.issuer = issuer
        self.time = 1000.0
        self.answers = True
        self.fetched = 0
        self.silent_s: float | None = None
        """How long it takes the connection, by the clock of the keys, and says nothing; None: it answers at once."""
        self.asked = anyio.Event()

    async def answer(self, request: httpx2.Request) -> httpx2.Response:
        self.fetched += 1
        self.asked.set()
        if self.silent_s is not None:
            self.time += self.silent_s
            await anyio.sleep_forever()
        if not self.answers:
            raise httpx2.ConnectError("no route")
        return httpx2.Response(200, json=self.issuer.key_set())

    def key_set(self) -> KeySet:
        transport = httpx2.MockTransport(self.answer)
        return KeySet(
            ISSUER, f"{ISSUER}/keys", client=lambda: httpx2.AsyncClient(transport=transport), now=lambda: self.time
        )


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer(ISSUER, {"first": ("RS256", new_key()), "curve": ("ES256", new_key("ES256"))})


@pytest.fixture
def wire(issuer: Issuer) -> Wire:
    return Wire(issuer)


@pytest.fixture
def oauth(wire: Wire) -> OAuth:
    return OAuth(ISSUER, AUDIENCE, wire.key_set())


@pytest.mark.parametrize("key_id", ["first", "curve"])
async def test_a_good_token_names_its_principal_and_its_scopes(oauth: OAuth, issuer: Issuer, key_id: str) -> None:
    assert await oauth.caller(issuer.token(key_id)) == Caller("oauth:alice", frozenset({Scope.READ, Scope.RUN}))
    assert await oauth.caller(issuer.token(key_id, aud=["https://other.example", AUDIENCE])) is not None
    listed = await oauth.caller(issuer.token(key_id, scope=None, scp=["admin", "agents:fly", 7]))
    assert listed == Caller("oauth:alice", frozenset({Scope.ADMIN}))
    bare = await oauth.caller(issuer.token(key_id, scope=None))
    assert bare is not None
    assert bare.scopes == frozenset()


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "https://other.example/mcp"},
        {"aud": None},
        {"aud": AUDIENCE + "/"},
        {"iss": "https://evil.example"},
        {"iss": ISSUER + "/"},
        {"iss": None},
        {"exp": None},
        {"exp": 1},
        {"exp": "soon"},
        {"nbf": 2**40},
        {"sub": None},
        {"sub": ""},
        {"sub": "a" * 201},
        {"sub": "a\nb"},
    ],
    ids=str,
)
async def test_t05_a_token_for_another_of_another_or_out_of_its_time_is_not_good(
    oauth: OAuth, issuer: Issuer, changes: dict[str, Any]
) -> None:
    """T05: a token that was made for another server is worth nothing here."""
    assert await oauth.caller(issuer.token(**changes)) is None


async def test_clocks_may_differ_a_little(oauth: OAuth, issuer: Issuer) -> None:
    now = issuer.claims()["iat"]
    assert await oauth.caller(issuer.token(exp=now - LEEWAY_S // 2)) is not None
    assert await oauth.caller(issuer.token(exp=now - LEEWAY_S * 2)) is None


async def test_a_signature_is_by_the_issuers_key_with_the_keys_own_algorithm(oauth: OAuth, issuer: Issuer) -> None:
    """The known ways round: no algorithm, a shared secret made of the public key, another key, another algorithm."""
    public = issuer.key_set()["keys"][0]["n"]
    signed = issuer.token()
    head, body, signature = signed.split(".")
    foreign = Issuer(ISSUER)

    def headed(**header: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=").decode()

    forged = [
        f"{headed(alg='none', kid='first')}.{body}.",
        f"{headed(alg='None', kid='first')}.{body}.{signature}",
        jwt.encode(issuer.claims(), public, algorithm="HS256", headers={"kid": "first"}),
        foreign.token(),
        jwt.encode(issuer.claims(), issuer.keys["first"][1], algorithm="RS512", headers={"kid": "first"}),
        jwt.encode(issuer.claims(), issuer.keys["curve"][1], algorithm="ES256", headers={"kid": "first"}),
        jwt.encode(issuer.claims(), issuer.keys["first"][1], algorithm="RS256"),
        jwt.encode(issuer.claims(), issuer.keys["first"][1], algorithm="RS256", headers={"kid": "unknown"}),
        f"{head}.{body}.{signature[:-8]}AAAAAAAA",
        f"{head}.{base64.urlsafe_b64encode(json.dumps(issuer.claims(sub='bob')).encode()).rstrip(b'=').decode()}.{signature}",
        f"{head}.{body}",
        "a.b.c",
        "é.é.é",
        "",
    ]
    for token in forged:
        assert await oauth.caller(token) is None, token
    assert await oauth.caller(signed) is not None


async def test_keys_are_fetched_once_and_again_for_a_new_one_but_not_at_anyones_whim(
    wire: Wire, oauth: OAuth, issuer: Issuer
) -> None:
    for _ in range(5):
        assert await oauth.caller(issuer.token()) is not None
    assert wire.fetched == 1
    wire.issuer = Issuer(ISSUER, {**issuer.keys, "next": ("RS256", new_key())})
    wire.time += AGAIN_S
    assert await oauth.caller(wire.issuer.token("next")) is not None
    assert wire.fetched == 2
    for number in range(50):
        invented = jwt.encode({}, new_key("ES256"), algorithm="ES256", headers={"kid": f"invented {number}"})
        assert await oauth.caller(invented) is None
    assert wire.fetched == 2
    # What the issuer withdraws is not believed for ever.
    wire.issuer = Issuer(ISSUER, {"next": wire.issuer.keys["next"]})
    wire.time += FRESH_S
    assert await oauth.caller(issuer.token()) is None


async def test_an_issuer_that_cannot_be_reached_is_believed_for_a_while_and_then_nobody_passes(
    wire: Wire, oauth: OAuth, issuer: Issuer
) -> None:
    assert await oauth.caller(issuer.token()) is not None
    wire.answers = False
    wire.time += FRESH_S
    assert await oauth.caller(issuer.token()) is not None
    wire.time += STALE_S
    for _ in range(3):
        with pytest.raises(IssuerUnreachable):
            await oauth.caller(issuer.token())
    assert wire.fetched == 3
    wire.answers = True
    wire.time += AGAIN_S
    assert await oauth.caller(issuer.token()) is not None


async def test_an_issuer_that_falls_silent_is_believed_for_a_while_too_and_asked_now_and_then(
    wire: Wire, oauth: OAuth, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rookery.web.keys.FETCH_S", 0.05)
    assert await oauth.caller(issuer.token()) is not None
    wire.time += FRESH_S
    wire.silent_s = 3 * AGAIN_S
    for _ in range(5):
        assert await oauth.caller(issuer.token()) is not None
    assert wire.fetched == 2
    wire.time += STALE_S
    with pytest.raises(IssuerUnreachable):
        await oauth.caller(issuer.token())


async def test_nobody_whose_key_is_known_waits_for_an_issuer_that_is_being_asked(
    wire: Wire, oauth: OAuth, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rookery.web.keys.FETCH_S", 100 * PATIENCE_S)
    assert await oauth.caller(issuer.token()) is not None
    wire.time += FRESH_S
    wire.silent_s, wire.asked = 0, anyio.Event()
    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(oauth.caller, issuer.token())
            await wire.asked.wait()
            for _ in range(5):
                assert await oauth.caller(issuer.token()) is not None
            tasks.cancel_scope.cancel()
    assert wire.fetched == 2


@pytest.mark.parametrize(
    "answer",
    [
        httpx2.Response(200, content=b"x" * (MAX_BYTES + 1)),
        httpx2.Response(200, json=[]),
        httpx2.Response(200, json={"keys": 7}),
        httpx2.Response(200, json={"keys": []}),
        httpx2.Response(302, headers={"location": "https://evil.example/keys"}),
        httpx2.Response(500),
        httpx2.Response(200, content=b"{"),
    ],
    ids=lambda answer: f"{answer.status_code} {answer.content[:12]!r}",
)
async def test_keys_that_are_no_keys_are_no_answer(answer: httpx2.Response) -> None:
    transport = httpx2.MockTransport(lambda _: answer)
    keys = KeySet(ISSUER, f"{ISSUER}/keys", client=lambda: httpx2.AsyncClient(transport=transport))
    with pytest.raises(IssuerUnreachable):
        await keys.find("first")


def test_an_issuer_is_believed_over_tls_only() -> None:
    for url in ("http://issuer.example", "ftp://issuer.example", "issuer.example"):
        with pytest.raises(ValueError, match="https"):
            KeySet(url)
