"""`--cluster FILE`: from a cluster file to the address of the Ray that runs on it."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Any

from mfdiff_core.errors import ConfigError
from mfdiff_platform.cluster import knock, prepare_environment
from mfdiff_platform.errors import ResourceError
from mfdiff_platform.yaml_file import parse_yaml

PORT = 6379


def use_cluster(file: Path) -> str:
    """Let commands of this process use the cluster of ``file``; its address.

    Raises:
        ConfigError: not a file of `ray up`.
        ResourceError: nobody answers at its head.
    """
    prepare_environment(joining=True)
    address = head_address(file)
    try:
        knock(address)
    except OSError as fault:
        raise ResourceError(
            f"{file}: no Ray answers at {address} ({fault}); start it with `ray up {file}`, and"
            f" from outside its network run this command on its head: `ray exec {file} '...'`"
        ) from None
    os.environ["RAY_ADDRESS"] = address
    return address


def head_address(file: Path) -> str:
    """``host:port`` at which the cluster of a `ray up` file listens.

    Raises:
        ConfigError: the file is missing, or is for another launcher.
        ResourceError: the cloud knows no running head.
    """
    config = load_cluster(file)
    return f"{_head_host(file, config)}:{_port(config)}"


def load_cluster(file: Path) -> dict[str, Any]:
    """A `ray up` file through Ray's own loader.

    Raises:
        ConfigError: it is missing, for another launcher, or refused by Ray.
    """
    from ray.autoscaler._private.util import prepare_config, validate_config

    if not file.is_file():
        raise ConfigError(f"{file}: no such cluster file; clusters/ has some to copy")
    if file.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{file} is no `ray up` file; its header says how to use it")
    values = parse_yaml(file.read_text(), str(file))
    if not isinstance(values, dict) or "provider" not in values:
        raise ConfigError(f"{file} is no `ray up` file; its header says how to use it")
    try:
        config: dict[str, Any] = prepare_config(values)
        validate_config(config)
    except Exception as fault:  # Ray raises whatever its validators do
        reason = str(fault).strip().splitlines() or [type(fault).__name__]
        raise ConfigError(f"{file}: Ray refuses it: {reason[0]}") from None
    return config


def _head_host(file: Path, config: dict[str, Any]) -> str:
    provider = config["provider"]
    if provider["type"] == "local":
        return str(provider["head_ip"])
    from ray.autoscaler.sdk import get_head_node_ip

    try:
        return str(get_head_node_ip(config))
    except Exception as fault:  # any of a cloud's own errors
        reason = str(fault).strip().splitlines() or [type(fault).__name__]
        raise ResourceError(
            f"{file}: no running head found ({reason[0]}); start it with"
            f" `ray up {shlex.quote(str(file))}`"
        ) from None


def _port(config: dict[str, Any]) -> int:
    commands = " ".join(map(str, config.get("head_start_ray_commands", [])))
    found = re.search(r"--port[= ](\d+)", commands)
    return int(found[1]) if found else PORT
