"""The pages as files: who gets them, and what their headers allow."""

from __future__ import annotations

import re

import pytest

from pdd_llamacpp_adapter.server.ui.pages import PATHS

HTML = ("/", "/status")
LOCAL = ("127.0.0.1", "localhost", "[::1]")


@pytest.mark.parametrize("path", sorted(PATHS))
def test_a_page_and_its_files_need_neither_key_nor_model(client, service, path):
    response = client(service(loaded=False, api_key="k")).get(path)
    assert response.status_code == 200
    assert response.headers["x-content-type-options"] == "nosniff"
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert not re.search(r"unsafe|https?:|\*|data:", policy)


@pytest.mark.parametrize("path", HTML)
def test_a_page_names_nothing_but_its_own_files_and_has_nothing_inline(client, service, path):
    page = client(service()).get(path).text
    named = re.findall(r'(?:src|href)="([^"#]+)"', page)
    assert {f"/{name}" for name in named if name != "./"} <= PATHS
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]* src=)|//", page)


def test_a_module_loads_only_its_neighbours_and_makes_nodes_of_no_markup(client, service):
    http = client(service())
    for path in PATHS:
        if path.endswith(".js"):
            program = http.get(path).text
            assert {f"/ui/{name}" for name in re.findall(r'from "\./([^"]+)"', program)} <= PATHS
            assert not re.search(r"(inner|outer)HTML|insertAdjacent|document\.write|\beval\b|Function\(", program)


@pytest.mark.parametrize("path", sorted(PATHS))
def test_pages_can_be_switched_off(client, service, path):
    assert client(service(ui=False)).get(path).status_code == 404
    assert client(service(ui=False, api_key="k")).get(path).status_code == 401


@pytest.mark.parametrize("path", HTML)
def test_pages_obey_the_check_of_the_host(client, service, path):
    http = client(service(allow_hosts=LOCAL))
    assert http.get(path, headers={"host": "elsewhere.example"}).status_code == 403
    assert http.get(path, headers={"host": "localhost:8090"}).status_code == 200


@pytest.mark.parametrize("path", ["/ui/", "/ui/chat.html", "/ui/../app.py", "/ui/%2e%2e/app.py", "/ui/chat.js/"])
def test_nothing_else_is_served(client, service, path):
    assert client(service()).get(path, follow_redirects=False).status_code in (307, 404)


@pytest.mark.parametrize("path", HTML)
def test_a_page_is_only_read(client, service, path):
    assert client(service()).head(path).status_code == 200
    assert client(service()).post(path).status_code == 405
