"""A deployment that cannot be served ends at start, with the reason in one line of the log."""


def test_several_api_servers_are_refused_with_the_setting_to_change(refused):
    error, log = refused
    assert error is not None, "it should not have started"
    line = next(line for line in log.splitlines() if "pdd: refusing to start" in line)
    assert "2 API server processes are not supported" in line
    assert "--api-server-count 1" in line
