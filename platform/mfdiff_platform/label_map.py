"""The YAML file that says which tissue a segmentation's values mean."""

from __future__ import annotations

from pathlib import Path

import yaml

from mfdiff_core.errors import ConfigError


def read_label_map(path: Path | None) -> dict[int, str]:
    """Value to tissue name; empty for no file.

    Raises:
        ConfigError: the file is not a mapping of whole numbers to names.
    """
    if path is None:
        return {}
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as fault:
        raise ConfigError(f"{path}: cannot be read as YAML ({fault})") from None
    if not isinstance(content, dict) or not all(
        isinstance(value, int) and isinstance(name, str) for value, name in content.items()
    ):
        raise ConfigError(f"{path}: a label map looks like {{1: csf, 2: grey, 3: white}}")
    return content
