"""The code of docs/device.md, in order, against the real server and the demo model."""

from pathlib import Path

from cloud_support import KEY
from readme import blocks, run

PAGE = Path(__file__).parents[3] / "docs" / "device.md"


def test_the_code_about_the_device_runs(cloud, prepared, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    text = PAGE.read_text()
    for old, new in {
        "http://127.0.0.1:8000/v1": cloud.base_url,
        '"model.gguf"': repr(str(prepared.gguf)),
        "threads=4": "threads=1",
    }.items():
        assert old in text
        text = text.replace(old, new)
    page = tmp_path / "device.md"
    page.write_text(text)
    assert run(page) == len(blocks(PAGE, "python"))
    printed = capsys.readouterr().out
    assert "handoff: " in printed
    assert "[cloud]" in printed
    assert "CloudUnreachable: " in printed
