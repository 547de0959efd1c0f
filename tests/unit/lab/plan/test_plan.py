import json
import math

import pytest
from trace_samples import sample
from typer.testing import CliRunner

from pdd_cli.main import app
from pdd_core.env import ServeSettings
from pdd_core.errors import ConfigurationError, InvalidTrace
from pdd_core.planner.lengths import OutputLengths
from pdd_core.planner.plan_file import PlanFile
from pdd_lab.plan.builtin import CLOUDS, DEVICES, cloud_profile, device_profile, trace
from pdd_lab.plan.plan_options import PlanOptions
from pdd_lab.plan.run import draw

KEYS = {
    "decode_ratio", "prefill_ratio", "stalled_share", "handed_off_share", "cloud_only_share", "device_only_share",
    "ttft_p50_ms", "ttft_p99_ms", "qoe_mean",
}  # fmt: skip


def run(*arguments):
    # 80 columns, as a terminal has
    return CliRunner().invoke(
        app, ["plan", *arguments], env={"COLUMNS": "80", "TERM": "dumb"}, catch_exceptions=False
    )


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """One whole run: what it printed, and the folder with its files."""
    folder = tmp_path_factory.mktemp("plan")
    files = [f"--{flag}={folder / name}" for flag, name in (("json", "figures.json"), ("plot", "front.png"),
                                                           ("settings", "plan.json"))]  # fmt: skip
    return run("--requests=400", "--noise=0.1", *files), folder


def test_it_fits_on_one_screen(planned):
    done, _ = planned
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert len(lines) <= 40
    table = lines[4:15]
    assert all(len(line) <= 80 and "…" not in line for line in table), table


def test_not_even_a_huge_budget_cuts_a_figure_off():
    table = run("--requests=60", "--policy=fixed_9999999").stdout.splitlines()[4:16]
    assert any(line.startswith("fixed_9999999") for line in table)
    assert all(len(line) <= 80 and "\u2026" not in line for line in table), table


def test_every_line_about_tokens_also_tells_requests_per_second_and_the_ceiling(planned):
    text = " ".join(planned[0].stdout.split())
    assert "fewer decode tokens in the cloud than with plain serving, and" in text
    assert "times the requests per second of one instance" in text
    assert "Prefill alone (a budget of 1 for every request) allows" in text


def test_the_json_has_every_policy_with_its_figures(planned):
    found = json.loads((planned[1] / "figures.json").read_text())
    assert list(found["policies"]) == ["planner", "best_fixed", "fixed_8", "fixed_16", "fixed_32", "fixed_64",
                                       "fixed_128", "oracle", "plain"]  # fmt: skip
    for row in found["policies"].values():
        assert set(row) >= KEYS
        shares = [row[f"{verdict}_share"] for verdict in ("handed_off", "cloud_only", "device_only")]
        assert sum(shares) == pytest.approx(1)
    assert found["policies"]["plain"]["decode_ratio"] == found["policies"]["plain"]["prefill_ratio"] == 1
    assert found["ceiling_requests_per_s"] >= found["policies"]["plain"]["requests_per_s"]


def test_the_picture_is_there_in_both_formats(planned):
    assert (planned[1] / "front.png").read_bytes()[:4] == b"\x89PNG"
    assert "cloud decode tokens per request (plain serving: " in (planned[1] / "front.svg").read_text()


def test_no_words_lie_among_the_points(monkeypatch, tmp_path, planned):
    pictures = []
    monkeypatch.setattr("pdd_lab.plan.run.save", lambda made, _: pictures.append(made))
    draw(json.loads((planned[1] / "figures.json").read_text()), tmp_path / "x.png")
    [axes] = pictures[0].axes
    assert not axes.texts
    assert "limit: 1 %" in [text.get_text() for text in pictures[0].legends[0].get_texts()]


def test_the_settings_file_is_loaded_by_serve(planned, monkeypatch):
    monkeypatch.setenv("PDD_PLAN_FILE", str(planned[1] / "plan.json"))
    settings = ServeSettings.load(None, {})
    assert (settings.plan, settings.rate, settings.stall_probability) == ("auto", 20.0, 0.01)
    assert settings.n_ctx == 32768, "what fits the device in the plan fits it in fact"
    assert ServeSettings.load(None, {"n_ctx": 2048}).n_ctx == 2048
    file = PlanFile.load(planned[1] / "plan.json")
    assert file.device.spread == 0.1
    lengths = OutputLengths()
    lengths.restore(file.lengths)
    assert lengths.table("", 1000).longer_than(100) > 0.3


def test_bytes_and_their_price_are_told(tmp_path, monkeypatch):
    flags = (
        "--device=phone",
        "--rate=15",
        "--requests=60",
        "--kv=auto",
        "--link=100mbit",
        "--kv-cell-bytes=13312",
    )
    files = [f"--json={tmp_path / 'figures.json'}", f"--settings={tmp_path / 'plan.json'}"]
    done = run(*flags, "--kv-price-per-gb=0.00001", *files)
    assert done.exit_code == 0
    assert all(len(line) <= 80 for line in done.stdout.splitlines()[:16])
    text = " ".join(done.stdout.split())
    assert (
        "link: 100 Mbit/s, 20% spread; a cell of the KV cache has 13,312 bytes, so 939 arrive per second" in text
    )
    assert "GB of KV cache arrive on devices, which cost" in text
    found = json.loads((tmp_path / "figures.json").read_text())
    planner = found["policies"]["planner"]
    assert planner["kv_bytes"] > 0
    assert 0 < planner["kv_share"] <= planner["handed_off_share"]
    assert found["policies"]["plain"]["kv_bytes"] == 0
    assert found["link"]["bytes_per_s"] == 12.5e6
    monkeypatch.delenv("PDD_KV", raising=False)
    settings = ServeSettings.load(None, {"plan_file": str(tmp_path / "plan.json")})
    assert (settings.kv, settings.kv_price_per_gb, settings.gpu_hour_price) == ("auto", 0.00001, 3.0)
    assert PlanFile.load(tmp_path / "plan.json").cloud.link_bps == 12.5e6
    dear = json.loads(run_json(tmp_path, *flags, "--kv-price-per-gb=0.05"))
    assert dear["policies"]["planner"]["kv_bytes"] == 0


def run_json(folder, *flags):
    assert run(*flags, f"--json={folder / 'again.json'}").exit_code == 0
    return (folder / "again.json").read_text()


def test_the_same_seed_gives_the_same_figures(tmp_path):
    for name in ("a", "b"):
        run("--requests=300", "--noise=0.2", "--seed=7", f"--json={tmp_path / name}")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_device_that_answers_alone_leaves_ratios_without_bound(tmp_path):
    done = run("--requests=60", "--device-prefill-tps=1e7", f"--json={tmp_path / 'f'}")
    row = json.loads((tmp_path / "f").read_text())["policies"]["planner"]
    assert row["device_only_share"] == 1.0
    assert row["decode_ratio"] is row["prefill_ratio"] is row["requests_per_s"] is None
    assert "the devices make every answer" in done.stdout


@pytest.mark.parametrize(
    ("policy", "plan", "budget"),
    [("fixed_24", "handoff", 24), ("plain", "cloud", "auto"), ("planner", "auto", "auto")],
)
def test_the_settings_are_those_of_the_policy_that_was_chosen(tmp_path, policy, plan, budget):
    file = tmp_path / "plan.json"
    run("--requests=60", f"--policy={policy}", f"--settings={file}", "--ratio=0.5", "--must-begin-in-cloud")
    settings = PlanFile.load(file).settings
    assert (settings.plan, settings.decode_budget, settings.refine) == (plan, budget, 0.5)
    assert settings.must_begin_in_cloud is True


@pytest.mark.parametrize(
    ("name", "read_as"),
    [
        ("azure", "dates"),
        ("bailian", "timestamps in s, hash blocks of 16 tokens"),
        ("dynamo", "timestamps in ms, hash blocks of 64 tokens"),
        ("mooncake", "timestamps in ms, hash blocks of 512 tokens"),
        ("burstgpt", "timestamps in s"),
        ("jsonl", "timestamps in s, hash blocks of 512 tokens"),
    ],
)
def test_every_trace_format_can_be_planned_for(name, read_as):
    done = run(f"--trace={sample(name)}", "--device=phone", "--ratio=auto")
    assert done.exit_code == 0
    assert "200 requests" in done.stdout
    assert f"read as {name}, {read_as}" in done.stdout


def test_other_units_may_be_said_for_a_file_and_not_for_a_made_up_trace():
    done = run(f"--trace={sample('dynamo')}", "--format=mooncake", "--block-size=64", "--time-unit=us")
    assert "read as mooncake, timestamps in us, hash blocks of 64 tokens" in done.stdout
    with pytest.raises(ConfigurationError, match="--block-size: the trace chat is made up"):
        run("--trace=chat", "--block-size=64")


@pytest.mark.parametrize("command", ["plan", "replay"])
def test_a_trace_without_a_single_token_is_one_message(tmp_path, command):
    file = tmp_path / "t.csv"
    file.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,0,5\n2023-11-16 18:17:03,5,0\n")
    arguments = [command, f"--trace={file}", *(["--simulate"] if command == "replay" else [])]
    with pytest.raises(InvalidTrace, match="none of its 2 requests has both a prompt and an answer"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


def options(**changes):
    return PlanOptions(**{"trace": "chat", "device": "laptop", "cloud": "h200-8b", "requests": 10} | changes)


def test_flags_override_what_the_profiles_say():
    scenario = options(device_prefill_tps=250.0, noise=0.3, rtt_ms=80.0, jitter_ms=5.0, rate=7.0).scenario()
    assert scenario.device.prefill_tps[0].value == 250.0
    assert (scenario.device.spread, scenario.cloud.rtt_s, scenario.cloud.jitter_s) == (0.3, 0.08, 0.005)
    assert (scenario.rate, scenario.refine_ratio) == (7.0, 1.0)
    assert options(rtt_ms=50.0).scenario().cloud.jitter_s == 0.05
    assert options(ratio="auto").scenario().refine_ratio is None


def test_clients_are_taken_to_allow_what_no_answer_exceeds():
    scenario = options(requests=2000).scenario()
    longest = int(scenario.trace.output_tokens.max())
    assert longest <= scenario.max_tokens < 2 * max(longest, 1024)


def test_no_answer_is_longer_than_clients_allow():
    scenario = options(requests=200, max_tokens=77).scenario()
    assert scenario.max_tokens == 77
    assert int(scenario.trace.output_tokens.max()) == 77
    assert int(scenario.trace.output_tokens.min()) < 77


def test_a_seed_below_zero_is_refused():
    done = CliRunner().invoke(app, ["plan", "--seed=-1"])
    assert done.exit_code == 2
    assert "--seed" in done.stderr


@pytest.mark.parametrize("flag", ["json", "plot", "settings"])
def test_a_file_that_cannot_be_written_is_found_out_before_the_work(tmp_path, monkeypatch, flag):
    monkeypatch.setattr("pdd_lab.plan.run.compare", lambda *_, **__: pytest.fail("it has begun to work"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        run("--requests=60", f"--{flag}={tmp_path / 'file' / 'x.png'}")


def test_folders_of_the_files_are_made(tmp_path):
    files = [f"--{flag}={tmp_path / flag / 'x.png'}" for flag in ("json", "plot", "settings")]
    assert run("--requests=60", *files).exit_code == 0
    assert all((tmp_path / flag / "x.png").is_file() for flag in ("json", "plot", "settings"))


@pytest.mark.parametrize("what", ["device", "cloud"])
def test_a_profile_that_is_nested_without_end_is_refused(tmp_path, what):
    file = tmp_path / "deep.json"
    file.write_text("[" * 100_000)
    with pytest.raises(ConfigurationError, match="cannot be read: nested too deeply"):
        run(f"--{what}={file}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trace": "none.csv"}, "trace 'none.csv' is no file, and none of chat, editor, documents"),
        ({"device": "watch"}, "device profile 'watch' is no file, and none of phone, laptop"),
        ({"cloud": "abacus"}, "cloud profile 'abacus' is no file, and none of h200-8b"),
        ({"ratio": "2"}, "--ratio 2 is neither auto nor a share"),
        ({"ratio": "much"}, "--ratio much is neither"),
        ({"stall_probability": 0.0}, "stall_probability must be above 0"),
        ({"rate": math.inf}, "--rate must be from 0.1 to 1e[+]06, not inf"),
        ({"rate": math.nan}, "--rate must be"),
        ({"noise": math.nan}, "--noise must be from 0 to 5, not nan"),
        ({"device_prefill_tps": math.inf}, "--device-prefill-tps must be"),
        ({"rtt_ms": math.inf}, "--rtt-ms must be"),
        ({"jitter_ms": math.inf}, "--jitter-ms must be"),
        ({"ttft_target": math.inf}, "--ttft-target must be"),
        ({"ttft_target": 0.0}, "--ttft-target must be"),
        ({"kv": "on"}, "--kv on is none of off, auto, always"),
        ({"kv": "auto"}, "h200-8b does not say how fast the link is: --link does"),
        ({"kv": "auto", "link": "3g"}, "--link 3g is none of 4g, 5g, wifi, lan, and no speed such as 100mbit"),
        ({"kv_price_per_gb": math.nan}, "--kv-price-per-gb must be"),
        ({"gpu_hour_price": math.inf}, "--gpu-hour-price must be"),
        ({"rtt_ms": 0.0, "jitter_ms": 100.0}, "jitter of 0.1 s around a round trip of 0 s"),
        ({"rtt_ms": 1e-300, "jitter_ms": 100.0}, "jitter of 0.1 s around a round trip of 1e-303 s"),
    ],
)
def test_what_cannot_work_is_refused_by_name(changes, message):
    with pytest.raises(ConfigurationError, match=message):
        options(**changes).scenario()


@pytest.mark.parametrize("policy", ["fixed_0", "fixed_", "best", "fixed_1x", "fixed_1\u0662", "fixed_99999999"])
def test_an_unknown_policy_is_refused(policy):
    with pytest.raises(ConfigurationError, match=f"--policy {policy} is none of"):
        _ = options(policy=policy).budgets


def test_a_malformed_trace_is_an_error_of_its_own(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,1,x\n")
    with pytest.raises(InvalidTrace, match="line 2"):
        trace(str(file))


@pytest.mark.parametrize("name", DEVICES)
def test_every_built_in_device_can_be_read(name):
    assert device_profile(name).name == name


@pytest.mark.parametrize("name", CLOUDS)
def test_every_built_in_cloud_can_be_read(name):
    assert cloud_profile(name).name == name


def test_a_file_is_as_good_as_a_name(tmp_path):
    file = tmp_path / "mine.json"
    device_profile("phone").model_copy(update={"name": "mine"}).save(file)
    assert device_profile(str(file)).name == "mine"


FLEET = """
gpus = 1
trace = "chat"
requests_per_s = 60
devices = [{ profile = "phone", share = 2 }, { profile = "laptop", share = 1 }]
"""


def test_a_fleet_is_planned_for_and_a_gpu_has_its_price(tmp_path):
    file = tmp_path / "fleet.toml"
    file.write_text(FLEET)
    done = run(f"--fleet={file}", f"--json={tmp_path / 'f.json'}")
    found = json.loads((tmp_path / "f.json").read_text())
    assert done.exit_code == 0
    assert "One more GPU would be worth" in done.stdout
    assert found["gpus_used"] <= 1 + 1e-6
    assert found["shadow_price"] > 0
    assert math.isclose(sum(share["requests_per_s"] for share in found["shares"]), 60, rel_tol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpus = -1", "gpus: Input should be greater than or equal to 0"),
        ("gpus = 1", "a fleet has `classes`, or a `trace` and `devices`"),
        ("gpus = 1\nspeed = 3", "speed: Extra inputs are not permitted"),
        ("gpus = ", "cannot be read"),
        (FLEET + "harm = { anger = 1.0 }", "harm has no anger"),
        (FLEET + "harm = { stall = inf }", "harm.stall: "),
        (FLEET.replace("gpus = 1", "gpus = inf"), "gpus: "),
        (FLEET.replace("gpus = 1", "gpus = nan"), "gpus: "),
        (FLEET.replace("_s = 60", "_s = inf"), "requests_per_s: "),
        (FLEET + "rate = inf", "rate: "),
        (FLEET + "ttft_target_s = inf", "ttft_target_s: "),
        ("a = " + "[" * 100_000, "cannot be read"),
    ],
)
def test_a_fleet_that_cannot_work_is_refused(tmp_path, text, message):
    file = tmp_path / "fleet.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        run(f"--fleet={file}")


@pytest.mark.parametrize("arrivals", [[0], [3, 3, 3]])
def test_a_fleet_whose_trace_has_no_rate_of_its_own_has_to_name_one(tmp_path, arrivals):
    lines = [json.dumps({"arrival_s": at, "prompt_tokens": 100, "output_tokens": 90}) + "\n" for at in arrivals]
    (tmp_path / "t.jsonl").write_text("".join(lines))
    file = tmp_path / "fleet.toml"
    text = f'gpus = 1\ntrace = "{tmp_path / "t.jsonl"}"\ndevices = [{{ profile = "phone", share = 1 }}]\n'
    file.write_text(text)
    with pytest.raises(ConfigurationError, match="all come at once: requests_per_s has to say how many"):
        run(f"--fleet={file}")
    file.write_text(text + "requests_per_s = 5\n")
    assert "5 of 5 requests per second" in run(f"--fleet={file}").stdout


@pytest.mark.parametrize(
    "option",
    ["--plot=x.png", "--settings=x.json", "--rate=5", "--device-prefill-tps=100", "--trace=chat", "--seed=0"],
)
def test_an_option_that_a_fleet_has_no_use_for_is_refused(tmp_path, option):
    file = tmp_path / "fleet.toml"
    file.write_text(FLEET)
    with pytest.raises(
        ConfigurationError, match=f"--fleet goes with --json alone, not with {option.split('=')[0]}"
    ):
        run(f"--fleet={file}", option)


def test_a_fleets_classes_may_be_given_one_by_one(tmp_path):
    file = tmp_path / "fleet.json"
    one = {"name": "mail", "requests_per_s": 5, "prompt_tokens": 800, "output_tokens": 150, "device": "laptop"}
    file.write_text(json.dumps({"gpus": 4, "classes": [one], "mixed": False}))
    assert "mail" in run(f"--fleet={file}").stdout
