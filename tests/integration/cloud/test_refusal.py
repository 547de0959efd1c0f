"""A deployment that cannot be served ends at start, with the reason in one line of the log."""

import pytest

from pdd_cli.launcher import CloudServer
from pdd_core.errors import ConfigurationError


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--api-server-count", "2"], "2 API server processes are not supported"),
        (["--scheduler-cls", "vllm.v1.core.sched.scheduler.Scheduler"], "add --scheduler-cls pdd_vllm_plugin"),
    ],
)
def test_it_refuses_with_the_setting_to_change(prepared, tmp_path, flags, reason):
    log = tmp_path / "vllm.log"
    server = CloudServer(prepared.vllm_dir, demo=True, extra_args=flags, log_path=log)
    with pytest.raises(ConfigurationError), server:
        pytest.fail("it should not have started")
    lines = [line for line in log.read_text().splitlines() if "pdd: refusing to start" in line]
    assert lines
    assert reason in lines[0]
