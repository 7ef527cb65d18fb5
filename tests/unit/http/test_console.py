"""The console's files, their policy, and how a browser is let in to them."""

from __future__ import annotations

import base64
import hashlib
import re
import tomllib
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from fastapi import FastAPI

from server.http.auth import RiverAuthMiddleware
from server.http.console.page import COOKIE, PATH, STATIC, attach_console, token
from tests.unit.http.support import fetch

KEYS = ["first-key", "second-key"]
BROWSER = {"Accept": "text/html,application/xhtml+xml"}
FILES = sorted(path for path in STATIC.rglob("*") if path.is_file())


def app(keys: list[str] | None = None) -> FastAPI:
    made = FastAPI()
    made.state.args = SimpleNamespace(api_key=keys)
    made.state.river = object()
    attach_console(made)
    made.add_middleware(RiverAuthMiddleware)
    return made


def get(path: str, keys: list[str] | None = None, **headers: str) -> httpx.Response:
    return fetch(app(keys), "GET", path, headers=headers)


def test_every_file_is_served_under_the_strict_policy() -> None:
    for path in ("", *(f"/{file.relative_to(STATIC)}" for file in FILES)):
        response = get(PATH + path)
        assert response.status_code == 200, path
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
    assert "javascript" in get(PATH + "/js/main.js").headers["content-type"]


@pytest.mark.parametrize("path", ["/../session.py", "/%2e%2e/session.py", "/js", "/nothing.js"])
def test_nothing_else_is_served(path: str) -> None:
    assert get(PATH + path).status_code == 404


def test_a_slash_at_the_end_leads_to_the_page() -> None:
    response = get(PATH + "/")
    assert response.url.join(response.headers["location"]).path == PATH
    assert "API key" in get(PATH + "/", KEYS, **BROWSER).text


def test_the_wheel_takes_every_file(pytestconfig: pytest.Config) -> None:
    root = pytestconfig.rootpath
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["server"]
    packed = {path for pattern in patterns for path in (root / "server").glob(pattern)}
    assert set(FILES) <= packed
    assert Path(STATIC.parent / "signin" / "signin.html") in packed


def test_a_client_without_a_key_gets_the_error_object_and_a_browser_a_form() -> None:
    for path in (PATH, PATH + "/js/main.js"):
        response = get(path, KEYS)
        assert response.status_code == 401
        assert response.json()["error"]["code"] == 401
    response = get(PATH, KEYS, **BROWSER)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert "API key" in response.text
    assert "unsafe" not in response.headers["content-security-policy"]
    for other in ("/river", PATH + "/js/main.js", "/"):
        assert get(other, KEYS, **BROWSER).json()["error"]["code"] == 401


def test_the_forms_policy_names_its_script_and_style_by_their_hashes() -> None:
    response = get(PATH, KEYS, **BROWSER)
    for tag in ("script", "style"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", response.text, re.DOTALL)
        assert text.strip()
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in response.headers["content-security-policy"]


def sign(method: str, key: str = KEYS[0], url: str = PATH) -> httpx.Response:
    return fetch(app(KEYS), method, url, headers={"Authorization": f"Bearer {key}"})


@pytest.mark.parametrize("key", KEYS)
def test_a_key_opens_a_session_for_the_consoles_files(key: str) -> None:
    response = sign("POST", key)
    assert response.status_code == 204
    cookie = response.headers["set-cookie"]
    assert cookie.startswith(f"{COOKIE}={token(key)};")
    assert key not in cookie
    for attribute in ("HttpOnly", "SameSite=strict", f"Path={PATH}"):
        assert attribute in cookie
    for path in (PATH, PATH + "/js/main.js"):
        assert get(path, KEYS, Cookie=f"{COOKIE}={token(key)}").status_code == 200


def test_the_session_opens_nothing_else() -> None:
    cookie = {"Cookie": f"{COOKIE}={token(KEYS[0])}"}
    for path in ("/river", "/river/stats", "/metrics", "/v1/models", PATH + "x"):
        assert get(path, KEYS, **cookie).status_code == 401, path
    for method in ("POST", "DELETE"):
        assert fetch(app(KEYS), method, PATH, headers=cookie).status_code == 401


@pytest.mark.parametrize("value", ["", "x", KEYS[0], token("third-key"), token(""), "é"])
def test_wrong_cookies(value: str) -> None:
    headers = httpx.Headers({"Cookie": f"{COOKIE}={value}".encode()})
    assert fetch(app(KEYS), "GET", PATH, headers=headers).status_code == 401


def test_signing_in_with_a_wrong_key_behind_https_and_out() -> None:
    assert "set-cookie" not in sign("POST", "wrong").headers
    assert "Secure" in sign("POST", url="https://river" + PATH).headers["set-cookie"]
    response = sign("DELETE")
    assert response.status_code == 204
    assert f'{COOKIE}=""; expires=' in response.headers["set-cookie"]


def test_without_keys_the_console_is_open() -> None:
    assert get(PATH).status_code == 200
    assert "set-cookie" not in fetch(app(), "POST", PATH).headers
