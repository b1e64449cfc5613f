"""Paths of URLs: what surely lies below a prefix, and what some server may read as lying there (row X09)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.hosts import Egress, HostRule, HostRules
from policies.url_paths import may_lie_below, surely_lies_below

ALLOW_ALL_BUT_ADMIN = Egress(
    (
        HostRules(
            allowed=(HostRule("a.test", intercept=True),),
            denied=(HostRule("a.test", paths=("/admin",), intercept=True),),
        ),
    )
)


@pytest.mark.parametrize("path", ["/simple", "/simple/", "/simple/x", "/simple/%40scope%20x?y=/../z", "/simple/é"])
def test_a_plain_path_lies_below_its_prefix(path: str) -> None:
    assert surely_lies_below(path, "/simple/")
    assert may_lie_below(path, "/simple/")


@pytest.mark.parametrize(
    "path",
    [
        "/simplex",
        "/SIMPLE/x",
        "/simple/../admin",
        "/simple/..;/admin",
        "/simple/.;x/admin",
        "/simple/%2e%2e/admin",
        "/simple/%2E./admin",
        "/simple/..%2fadmin",
        "/simple/..%5cadmin",
        "/simple/%252e%252e/admin",
        "/simple/x%3b/admin",
        "/simple/x%00",
        "/simple/%c0%ae%c0%ae/admin",
        "/simple/%zz",
        "/simple/%2",
        "/simple\\..\\admin",
        "//simple/x",
        "/simple/\udcff",
        "/simple//x",
        "simple/x",
        "/x/../simple",
        "",
    ],
)
def test_x09_a_path_that_servers_read_differently_is_not_allowed(path: str) -> None:
    assert not surely_lies_below(path, "/simple")


@pytest.mark.parametrize(
    "path",
    [
        "/admin",
        "/ADMIN/x",
        "//admin",
        "/./admin",
        "/x/../admin/y",
        "/x/..;/admin",
        "/admin;v=1/x",
        "/%61dmin",
        "/%2561dmin",
        "/%2561%64min?x",
        "/x%2f..%2fadmin",
        "/x\\..\\admin",
        "/\uff41dmin",
        "/admin#x",
        "/admin/..",
        "/%25252525252561dmin",
    ],
)
def test_x09_no_spelling_of_a_denied_path_gets_through(path: str) -> None:
    assert may_lie_below(path, "/admin")
    assert not ALLOW_ALL_BUT_ADMIN.permits("a.test", method="GET", path=path)
    assert ALLOW_ALL_BUT_ADMIN.permits("a.test", method="GET", path="/administrator/of/x")


SPELLED = st.lists(
    st.sampled_from(["admin", "a", "..", ".", "", "%61dmin", "%2e%2e", "..;", ";x", "%2f", "\\", "AdMiN", "%2561"]),
    max_size=6,
).map(lambda parts: "/" + "/".join(parts))


@given(SPELLED)
def test_what_surely_lies_below_a_prefix_also_may(path: str) -> None:
    """Otherwise a denial could be narrower than the allow beside it."""
    if surely_lies_below(path, "/admin"):
        assert may_lie_below(path, "/admin")


@given(SPELLED)
def test_a_denial_and_an_allow_of_the_same_prefix_let_nothing_of_it_out(path: str) -> None:
    rule = HostRule("a.test", paths=("/admin",), intercept=True)
    assert not Egress((HostRules((rule,), (rule,)),)).permits("a.test", method="GET", path=path)


@given(st.text(max_size=200), st.text(max_size=20))
def test_no_text_breaks_the_judgement(path: str, prefix: str) -> None:
    may_lie_below(path, prefix)
    surely_lies_below(path, prefix)


@pytest.mark.parametrize("method", ["POST", "post", "Post"])
def test_a_denied_method_is_denied_in_any_case_and_an_allowed_one_only_as_it_is_written(method: str) -> None:
    denied = HostRules((HostRule("a.test"),), (HostRule("a.test", methods=("POST",), intercept=True),))
    assert not Egress((denied,)).permits("a.test", method=method, path="/")
    assert Egress((denied,)).permits("a.test"), "other methods may follow on this connection"
    allowed = HostRules((HostRule("a.test", methods=("POST",), intercept=True),))
    assert Egress((allowed,)).permits("a.test", method=method, path="/") is (method == "POST")


def test_a_rule_that_looks_inside_opens_the_connection_even_if_it_does_not_say_so() -> None:
    """Such a rule comes from no file, for the compiler refuses it; from a program it must not let all through."""
    assert Egress((HostRules((HostRule("a.test", methods=("GET",)),)),)).intercepts("a.test")
