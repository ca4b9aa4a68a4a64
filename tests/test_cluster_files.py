"""The cluster files against Ray's own schema and scheduler. Nothing here talks to a cloud, and a fixture holds that."""

from __future__ import annotations

import copy
import re
import socket
import subprocess
import tomllib
from pathlib import Path
from unittest.mock import MagicMock

import click
import pytest
import yaml
from jsonschema import ValidationError
from packaging.specifiers import SpecifierSet
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

ROOT = Path(__file__).resolve().parents[1]
FILES = ["cluster.yaml", "cluster-onprem.yaml"]
STORE = "/mnt/regrade"

every_file = pytest.mark.parametrize("name", FILES)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*_):
        raise AssertionError("a cluster file must be checked without the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def load(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text())


def validated(config: dict) -> dict:
    """What `ray up` works with: the file, Ray's defaults filled in, and checked."""
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def commands(config: dict) -> list[str]:
    return [command for key, value in config.items() if key.endswith("_commands") for command in value]


def header(name: str) -> str:
    """The comment at the top: how the file is used."""
    return (ROOT / name).read_text().split("\ncluster_name:")[0]


# Both files


@every_file
def test_ray_accepts_the_file(name):
    assert validated(load(name))["cluster_name"] == "regrade"


@every_file
def test_ray_refuses_an_unknown_key(name):
    with pytest.raises(ValidationError, match="idle_timeout"):
        validated(load(name) | {"idle_timeout": 10})


@every_file
def test_every_ray_is_the_tested_one(name):
    tested = re.search(r"^ray==(\S+)", (ROOT / "constraints" / "cpu.txt").read_text(), re.MULTILINE)[1]
    text = (ROOT / name).read_text()
    pins = re.findall(r"ray\[[\w,]+\](\S*?)['\"\s]", text)
    assert set(pins) == {f"=={tested}"}
    assert any(f"'ray[default,tune]=={tested}'" in command for command in load(name)["setup_commands"])


@every_file
def test_the_project_allows_that_ray(name):
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    allowed = next(re.fullmatch(r"ray\[\w+\](.*)", line)[1] for line in dependencies if line.startswith("ray"))
    pinned = re.search(r"'ray\[default,tune\]==([\d.]+)'", (ROOT / name).read_text())[1]
    assert pinned in SpecifierSet(allowed)


@every_file
def test_every_node_gets_this_project_without_what_it_leaves_behind(name):
    config = load(name)
    assert config["file_mounts"] == {"~/regrade": "."}
    assert {"/.git", "/runs", "/stores", "/venv", "/.venv"} <= set(config["rsync_exclude"])
    assert any(command.endswith("-e ~/regrade") for command in config["setup_commands"])


@every_file
def test_every_command_is_shell(name):
    for command in commands(load(name)):
        checked = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, f"{command}: {checked.stderr}"


@every_file
def test_nodes_allow_many_open_files_and_keep_the_dashboard_to_themselves(name):
    config = load(name)
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        (start,) = (command for command in config[key] if "ray start" in command)
        assert "ulimit -n 65536;" in start
        assert "--dashboard-host" not in start


@every_file
def test_the_header_says_how_to_start_run_and_stop(name):
    text = header(name)
    for command in (f"ray up -y {name}", f"ray rsync-up {name}", "ray job submit", f"ray down -y {name}"):
        assert command in text
    assert "regrade sweep configs/sweeps/grades.yaml --runner ray --address auto" in text
    assert f"--store {STORE}/" in text


# AWS


def workers(config: dict) -> dict[str, dict]:
    return {name: kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]}


def launched(config: dict, demands: list[dict[str, float]]) -> dict[str, int]:
    """Nodes by type that Ray's scheduler would start for these demands, from nothing (the head included)."""
    scaling = AutoscalingConfig(validated(config), skip_content_hash=True)
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=scaling.get_node_type_configs(),
        max_num_nodes=scaling.get_max_num_nodes(),
        resource_requests=ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(demand) for demand in demands]),
    )
    return {
        launch.instance_type: launch.count
        for launch in ResourceDemandScheduler(MagicMock()).schedule(request).to_launch
    }


def test_the_head_has_no_gpu():
    config = validated(load("cluster.yaml"))
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"] == {"CPU": 8, "GPU": 0}
    assert head["max_workers"] == 0


def test_workers_have_gpus_and_scale_from_none():
    config = validated(load("cluster.yaml"))
    assert workers(config)
    for kind in workers(config).values():
        assert kind["min_workers"] == 0
        assert kind["max_workers"] > 0
        assert kind["resources"]["GPU"] >= 1
    assert sum(kind["max_workers"] for kind in workers(config).values()) == config["max_workers"]


@pytest.mark.parametrize(
    ("trials", "expected"),
    [(0, {}), (1, {"gpu-spot": 1}), (6, {"gpu-spot": 6}), (200, {"gpu-spot": 6, "gpu-ondemand": 2})],
)
def test_gpu_trials_start_workers_and_never_the_head(trials, expected):
    assert launched(load("cluster.yaml"), [{"CPU": 1, "GPU": 1}] * trials) == expected


def test_a_head_with_a_gpu_would_be_noticed():
    config = load("cluster.yaml")
    config["available_node_types"]["head"]["resources"]["GPU"] = 1
    assert "head" in launched(config, [{"CPU": 1, "GPU": 1}] * 9)


def test_a_trial_larger_than_any_machine_starts_nothing():
    assert launched(load("cluster.yaml"), [{"CPU": 1, "GPU": 2}]) == {}


def test_workers_are_one_kind_of_machine_and_all_nodes_have_one_image():
    config = load("cluster.yaml")
    nodes = config["available_node_types"].values()
    assert len({kind["node_config"]["ImageId"] for kind in nodes}) == 1
    assert len({kind["node_config"]["InstanceType"] for kind in workers(config).values()}) == 1


def test_spot_and_on_demand_workers_are_what_they_are_called():
    for name, kind in workers(load("cluster.yaml")).items():
        market = kind["node_config"].get("InstanceMarketOptions", {}).get("MarketType", "ondemand")
        assert name == f"gpu-{market}"


def test_workers_mount_what_the_head_exports():
    config = load("cluster.yaml")
    assert any(f"'{STORE} " in command and "exports" in command for command in config["head_setup_commands"])
    (mount,) = (command for command in config["worker_setup_commands"] if "mount -t nfs4" in command)
    assert f'"$RAY_HEAD_IP":{STORE} {STORE}' in mount
    assert "lookupcache=positive" in mount


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda types: types["gpu-spot"].pop("resources"), ValidationError),
        (lambda types: types["gpu-spot"]["resources"].update(GPU=0.5), ValidationError),
        (lambda types: types["gpu-spot"].update(spot=True), ValidationError),
        (lambda types: types["gpu-spot"].update(min_workers=9), ValueError),
        (lambda types: types.pop("head"), ValueError),
    ],
    ids=["resources", "fractional GPU", "unknown key", "more workers than max_workers", "head"],
)
def test_ray_refuses_broken_node_types(change, error):
    config = load("cluster.yaml")
    change(config["available_node_types"])
    with pytest.raises(error):
        validated(config)


# On-prem


def test_every_machine_of_the_list_joins():
    config = validated(load("cluster-onprem.yaml"))
    (kind,) = config["available_node_types"].values()
    assert kind["min_workers"] == kind["max_workers"] == len(config["provider"]["worker_ips"])


def test_an_onprem_head_offers_no_gpu():
    config = load("cluster-onprem.yaml")
    assert any("--head" in command and "--num-gpus=0" in command for command in config["head_start_ray_commands"])
    assert not any("--num-gpus" in command for command in config["worker_start_ray_commands"])


def test_an_onprem_machine_without_the_store_is_refused():
    assert load("cluster-onprem.yaml")["setup_commands"][0].startswith(f"mountpoint -q {STORE} ||")


def test_ray_refuses_node_types_on_prem():
    types = {"head": {"node_config": {}, "resources": {"CPU": 8}}}
    with pytest.raises(click.ClickException):
        validated(load("cluster-onprem.yaml") | {"available_node_types": types})
