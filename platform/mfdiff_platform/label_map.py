"""The YAML file that says which tissue a segmentation's values mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from mfdiff_core.errors import ConfigError


def read_label_map(path: Path | None) -> dict[int, str]:
    """Value to tissue name; empty for no file.

    Raises:
        ConfigError: the file is not a mapping of whole numbers to names, each named once.
    """
    if path is None:
        return {}
    try:
        content = yaml.load(path.read_text(), Loader=_OnceLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as fault:
        raise ConfigError(f"{path}: cannot be read as YAML ({fault})") from None
    if not isinstance(content, dict) or not all(
        type(value) is int and isinstance(name, str) for value, name in content.items()
    ):
        raise ConfigError(f"{path}: a label map looks like {{1: csf, 2: grey, 3: white}}")
    return content


class _OnceLoader(yaml.SafeLoader):
    """Of two equal keys YAML keeps the last without a word; here they are a fault."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {str(key) for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.YAMLError(f"{', '.join(sorted(twice))} stands twice")
        return super().construct_mapping(node, deep)
