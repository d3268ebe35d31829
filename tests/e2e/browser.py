# SPDX-License-Identifier: Apache-2.0
"""The distribution's Chromium, and what a page in it did that it should not."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

#: Nothing of the browser's own goes to the network, and no display is needed.
_OPTIONS = (
    "--disable-gpu", "--disable-quic", "--disable-sync", "--disable-background-networking",
    "--disable-component-update", "--no-first-run",
)  # fmt: skip
WIDE, NARROW = (1280, 900), (400, 800)


@dataclass
class Opened:
    """A page, with all that it asked for and complained of since it was opened."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


def chromium() -> str:
    """The path of the browser; skips where the distribution has none as a package."""
    path = shutil.which("chromium")
    if path is None and "ID=ubuntu" in Path("/etc/os-release").read_text().splitlines():
        pytest.skip("Ubuntu's Chromium is a snap, which scripts/setup does not install")
    assert path, "there is no chromium; scripts/setup --test installs it"
    return path


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A browser with a profile of its own, that nothing is left of. Root has no sandbox there."""
    path = chromium()
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=path, args=list(_OPTIONS), chromium_sandbox=False
        )
        try:
            yield started
        finally:
            started.close()


@contextlib.contextmanager
def opened(
    browser: Browser, path: Path, size: tuple[int, int] = WIDE, *, dark: bool = False
) -> Iterator[Opened]:
    """Opens a file as one does that was sent by mail: from the disk."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme="dark" if dark else "light",
        reduced_motion="reduce",
    )
    try:
        made = Opened(context.new_page())
        made.page.set_default_timeout(10_000)
        made.page.on("request", lambda request: made.requests.append(request.url))
        made.page.on("console", lambda message: made.complaints.append(message.text))
        made.page.on("pageerror", lambda error: made.complaints.append(str(error)))
        made.page.on("dialog", lambda dialog: (made.complaints.append("dialog"), dialog.dismiss()))
        made.page.goto(path.as_uri())
        yield made
    finally:
        context.close()
