"""A deployment that cannot be served ends at start, with the reason in one line of the log."""

import pytest

from pdd_cli.launcher import CloudServer
from pdd_core.errors import ConfigurationError


def test_several_api_servers_are_refused_with_the_setting_to_change(prepared, tmp_path):
    log = tmp_path / "vllm.log"
    server = CloudServer(prepared.vllm_dir, demo=True, extra_args=["--api-server-count", "2"], log_path=log)
    with pytest.raises(ConfigurationError), server:
        pytest.fail("it should not have started")
    line = next(line for line in log.read_text().splitlines() if "pdd: refusing to start" in line)
    assert "2 API server processes are not supported" in line
    assert "--api-server-count 1" in line
