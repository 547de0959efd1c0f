"""A deployment that cannot be served ends before an engine is launched, and the last line says why."""

LAUNCHED = "Initializing a V1 LLM engine"
"""What vLLM says as it launches an engine."""


def test_vllms_own_scheduler_is_refused_with_the_setting_to_change(refused):
    error, log = refused
    assert error is not None, "it should not have started"
    last = log.rstrip().splitlines()[-1]
    assert "UnsupportedDeployment: the scheduler is AsyncScheduler" in last
    assert last.endswith("add --scheduler-cls pdd_vllm_plugin.scheduler.PDDAsyncScheduler")
    assert "pdd: refusing to start: the scheduler is AsyncScheduler" in log


def test_it_is_refused_before_an_engine_is_launched(refused, cloud):
    assert LAUNCHED in cloud.log_path.read_text()
    assert LAUNCHED not in refused[1]
