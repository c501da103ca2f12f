"""The page in a real browser, before a real daemon with scripted workers."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright, expect
from support.running_daemon import RunningDaemon, chat, running_daemon, scripted_yaml

from swapd.config.keys import ApiKey, Scope, digest, entry_text

CHROMIUM = Path(os.environ.get("SWAPD_CHROMIUM", "/usr/bin/chromium"))
MODELS = """\
  a: {path: a.model, memory_mib: 150, description: the first}
  b: {path: b.model, memory_mib: 150, load_s: 1.5}
"""
KEY = "sk-swapd-canary"
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 800}

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no {CHROMIUM}; $SWAPD_CHROMIUM names another"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        one = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield one
        await one.close()


@asynccontextmanager
async def page_of(browser: Browser, daemon: RunningDaemon, **options: object) -> AsyncIterator[Page]:
    """A page at the daemon. What it complains about, and what it asks elsewhere for, fails the test."""
    context = await browser.new_context(**{"viewport": DESKTOP, **options})  # type: ignore[arg-type]
    page = await context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: wrong.append(request.url) if not request.url.startswith(daemon.url) else None)
    page.on("console", lambda message: wrong.append(message.text) if "Content Security" in message.text else None)
    await page.goto(daemon.url)
    try:
        yield page
        assert wrong == []
    finally:
        await context.close()


async def shoot(page: Page, name: str) -> None:
    """Keeps a picture, where somebody wants to look at it."""
    directory = os.environ.get("SWAPD_SCREENSHOTS")
    if directory:
        await page.screenshot(path=Path(directory) / f"{name}.png", full_page=True)


async def test_it_shows_a_swap_happen_chats_and_unloads(browser: Browser, tmp_path: Path) -> None:
    async with running_daemon(tmp_path, scripted_yaml(tmp_path, MODELS)) as daemon, page_of(browser, daemon) as page:
        first, second = page.locator("#models > li[data-key=a]"), page.locator("#models > li[data-key=b]")
        await expect(first.locator(".state")).to_have_text("unloaded")
        await page.get_by_role("button", name="Load a").click()
        await expect(first.locator(".state")).to_have_text("ready")
        await expect(page.locator("#devices .bar > .share-0")).to_have_text("a")

        await page.get_by_role("button", name="Chat b").click()
        await page.get_by_label("Message").fill("tokens=4 gap_s=0.05")
        await page.keyboard.press("Enter")
        await expect(second.locator(".state")).to_have_text("loading")
        await expect(page.locator(".message.assistant")).to_have_text("t0 t1 t2 t3 ")
        await expect(second.locator(".state")).to_have_text("ready")
        await expect(first.locator(".state")).to_have_text("unloaded")
        await expect(first.locator(".why")).to_contain_text("'a' leaves for 'b'")
        await expect(page.locator("#happenings")).to_contain_text("'b' is ready after")
        await expect(page.locator("#activity tr")).to_contain_text("b")
        await expect(page.locator("#usage svg title")).to_contain_text("1 requests")
        await shoot(page, "desktop")

        await page.get_by_role("button", name="Pin b").click()
        await expect(second.locator("h3")).to_have_text("b (pinned)")
        await page.get_by_role("button", name="Unpin b").click()
        await expect(second.locator("h3")).to_have_text("b")
        await page.get_by_role("button", name="Unload b").click()
        await expect(second.locator(".state")).to_have_text("unloaded")


async def test_what_a_model_says_is_text_whatever_it_looks_like(browser: Browser, tmp_path: Path) -> None:
    async with running_daemon(tmp_path, scripted_yaml(tmp_path, MODELS)) as daemon, page_of(browser, daemon) as page:
        await expect(page.locator("#chat-model option")).to_have_count(2)
        await page.get_by_label("Message").fill("tokens=1 html=1")
        await page.keyboard.press("Enter")
        answer = page.locator(".message.assistant")
        await expect(answer).to_contain_text("<img src=x onerror=")
        await expect(answer.locator("pre code")).to_have_text("<b>bold</b>")
        assert await answer.locator("img, script, b").count() == 0
        assert await page.title() == "swapd"


async def test_it_asks_for_a_key_keeps_it_in_the_tab_and_forgets_it_with_that(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(entry_text(ApiKey(name="ann", digest=digest(KEY), scopes=tuple(Scope))))
    yaml = scripted_yaml(tmp_path, MODELS, server="  keys: keys\n")
    async with running_daemon(tmp_path, yaml) as daemon, page_of(browser, daemon) as page:
        await page.get_by_label("API key").fill("wrong")
        await page.get_by_role("button", name="Use it").click()
        await expect(page.locator("#key-trouble")).to_contain_text("API key")
        await page.locator("#key").fill(KEY)
        await page.get_by_role("button", name="Use it").click()
        await expect(page.locator("#models > li")).to_have_count(2)
        await expect(page.locator("#key-form")).to_be_hidden()
        stored = await page.evaluate("() => [document.cookie, JSON.stringify(localStorage), location.href]")
        assert KEY not in json.dumps(stored)
        other = await page.context.new_page()
        await other.goto(daemon.url)
        await expect(other.locator("#key-form")).to_be_visible()
        assert not any(KEY in json.dumps(line) for line in daemon.lines)


async def test_it_is_used_on_a_phone_in_the_dark_by_keyboard_alone_and_survives_a_restart(
    browser: Browser, tmp_path: Path
) -> None:
    yaml = scripted_yaml(tmp_path, MODELS)
    async with running_daemon(tmp_path, yaml) as daemon:
        await chat(daemon.url, "a", "tokens=2")
        async with page_of(browser, daemon, viewport=PHONE, color_scheme="dark") as page:
            await expect(page.locator("#models > li[data-key=a] .state")).to_have_text("ready")
            overflow = await page.evaluate("() => document.documentElement.scrollWidth - innerWidth")
            assert overflow <= 0, "something is wider than the phone"
            await page.keyboard.press("Tab")
            assert await page.evaluate("() => document.activeElement.className") == "skip"
            await page.keyboard.press("Enter")
            for _ in range(12):
                await page.keyboard.press("Tab")
                if await page.evaluate("() => document.activeElement.getAttribute('aria-label')") == "Unload a":
                    break
            await page.keyboard.press("Space")
            await expect(page.locator("#models > li[data-key=a] .state")).to_have_text("unloaded")
            await shoot(page, "phone-dark")
            await daemon.model("a")
            daemon.process.terminate()
            await daemon.process.wait()
            await expect(page.locator("#trouble")).to_contain_text("does not answer")
            port = daemon.url.rpartition(":")[2]
            again = yaml.replace("127.0.0.1:0", f"127.0.0.1:{port}")
            async with running_daemon(tmp_path, again):
                await expect(page.locator("#trouble")).to_be_hidden(timeout=15_000)
                await page.get_by_role("button", name="Load b").click()
                await expect(page.locator("#happenings")).to_contain_text("'b' is ready", timeout=15_000)
