# SPDX-License-Identifier: Apache-2.0
"""The routes of paths; that the kernel folds by the same rule is tested with the kernel."""

from __future__ import annotations

import pytest

from otelbpf.errors import UsageError
from otelbpf.routes import Routes, fold, is_id


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
    assert routes.given("/users/42/z") == ""


def test_a_template_is_no_pattern() -> None:
    routes = Routes(("/a.b/(c)/{x}",))
    assert routes.given("/a.b/(c)/1")
    assert not routes.given("/aXb/(c)/1")


@pytest.mark.parametrize("template", ["", "users", "/{}", "/a{b", "/a}b", "/{a{b}}", "/{a/b}"])
def test_what_is_no_template(template: str) -> None:
    with pytest.raises(UsageError, match="is no route: it begins with a slash"):
        Routes((template,))
