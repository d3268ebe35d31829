# SPDX-License-Identifier: Apache-2.0
"""The routes of paths; that the kernel folds by the same rule is tested with the kernel."""

from __future__ import annotations

import itertools

import pytest

from otelbpf.errors import UsageError
from otelbpf.policy.routes import Routes, fold, is_id


@pytest.mark.parametrize(
    "segment",
    ["1", "42", "7up", "f47ac10b-58cc-4372-a567-0e02b2c3d479", "order-12", "a1b2", "2024-01-01",
     "v123456789", "%20x"],
)  # fmt: skip
def test_ids(segment: str) -> None:
    assert is_id(segment)


@pytest.mark.parametrize(
    "segment",
    ["", "users", "v1", "v10", "v1beta1", "v2alpha1", "oauth2", "s3", "web3", "index.html", "v",
     "{id}", "\u0661\u0662"],
)  # fmt: skip
def test_no_ids(segment: str) -> None:
    assert not is_id(segment)


def test_folding() -> None:
    assert fold("/v1/users/42/orders/") == "/v1/users/{id}/orders/"
    assert fold("") == ""
    assert fold("*") == "*"


def test_folding_is_the_rule_for_each_segment() -> None:
    """Of all short paths of what the rule looks at."""
    for length in range(6):
        for characters in itertools.product("/v1a", repeat=length):
            path = "".join(characters)
            assert fold(path) == "/".join(
                "{id}" if is_id_by_hand(segment) else segment for segment in path.split("/")
            ), path


def is_id_by_hand(segment: str) -> bool:
    if segment[:1] == "v" and segment[1:2] == "1" and len(segment) <= 8:
        return False
    return segment[:1] == "1" or segment.count("1") >= 2


@pytest.mark.parametrize("path", ["*", "shop.example:443", "", "a/b"])
def test_what_is_no_path_has_no_route(path: str) -> None:
    """As what OPTIONS and CONNECT may ask for: no host may be in a route."""
    assert Routes().template(path) == Routes().name(path) == ""


def test_names_of_spans_are_the_first_routes_and_no_others() -> None:
    routes = Routes(("/given/{slug}",), found_most=3)
    for path in ("/posts/a", "/posts/b", "/users/1", "/users/2", "/posts/c", "/posts/d"):
        routes.name(path)
    assert [routes.name(path) for path in ("/posts/a", "/users/3", "/posts/c", "/posts/b")] == [
        "/posts/a", "/users/{id}", "", "/posts/b"
    ]  # fmt: skip
    # Those that were given are as many as they are, and series are bounded by themselves.
    assert [routes.name(f"/given/{number}") for number in range(9)] == ["/given/{slug}"] * 9
    assert routes.template("/posts/c") == "/posts/c"


def test_nothing_is_remembered_of_what_has_no_room() -> None:
    routes = Routes(found_most=8)
    for number in range(10_000):
        routes.name("/" + "x" * number)
    assert len(routes._found) == 8


FULL = (
    "{} found routes are names of spans, and there is room for no more: spans of others have "
    "no route, and the method alone for a name; {}, `--routes given` finds none, `--series` makes "
    "more room"
)


@pytest.mark.parametrize(
    ("paths", "way"),
    [
        (
            ("/product/red-shoes", "/product/blue-shoes", "/cart", "/about"),
            "`--route '/product/*'` makes 2 of them one",
        ),
        (("/product/a", "/a/b", "/cart", "/about"), "`--route` makes many of them one"),
        (("/red-shoes", "/blue-shoes", "/cart", "/about"), "`--route` makes many of them one"),
        # A template of what stands for an id would be of all paths.
        (("/1/a", "/2/b", "/3/c", "/4/d"), "`--route` makes many of them one"),
        # Clients choose paths, and terminals obey some of what they may hold.
        (("/\x1b[2J/a", "/\x1b[2J/b", "/'/a", "/'/b"), "`--route` makes many of them one"),
    ],
)
def test_that_there_is_no_room_for_more_is_told_once(
    paths: tuple[str, ...], way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With what would make room."""
    routes = Routes(("/given/{slug}",), found_most=4)
    for path in (*paths, *paths, "/given/1", "*"):
        routes.name(path)
    assert caplog.messages == []
    for number in range(9):
        assert routes.name(f"/product/green-{'x' * number}") == ""
    assert caplog.messages == [FULL.format(4, way)]


def test_nothing_is_told_of_room_where_no_routes_are_found(
    caplog: pytest.LogCaptureFixture,
) -> None:
    Routes(found_most=0).name("/product/a")
    assert caplog.messages == []


def test_routes_are_only_found_if_that_is_wanted() -> None:
    routes = Routes(("/users/{name}",), found_most=0)
    for find in (routes.name, routes.template):
        assert [find(path) for path in ("/users/7", "/posts/7")] == ["/users/{name}", ""]


def test_the_first_template_that_fits() -> None:
    routes = Routes(("/users/me", "/users/{name}", "/{a}-{b}.png", "/static/*", "/users/{x}/y"))
    for path, route in {
        "/users/me": "/users/me",
        "/users/bob": "/users/{name}",
        "/users/42": "/users/{name}",
        "/users/": "/users/",
        "/users/42/y": "/users/{x}/y",
        "/users/42/z": "/users/{id}/z",
        "/a-b.png": "/{a}-{b}.png",
        "/aXb.png": "/aXb.png",
        "/static": "/static/*",
        "/static/": "/static/*",
        "/static/a/1": "/static/*",
        "/statics": "/statics",
    }.items():
        assert routes.template(path) == route, path
        assert routes.name(path) == route, path


def test_a_template_is_no_pattern() -> None:
    routes = Routes(("/a.b/(c)/{x}",))
    assert routes.template("/a.b/(c)/1") == "/a.b/(c)/{x}"
    assert routes.template("/aXb/(c)/1") == "/aXb/(c)/{id}"


@pytest.mark.parametrize("template", ["", "users", "/{}", "/a{b", "/a}b", "/{a{b}}", "/{a/b}"])
def test_what_is_no_template(template: str) -> None:
    with pytest.raises(UsageError, match="is no route: it begins with a slash"):
        Routes((template,))
