"""YAML as people expect it: ``1e-4`` is a number, ``no`` is a word, a key counts once.

PyYAML follows YAML 1.1, where ``1e-4`` is text, ``no`` is false, ``1:30`` is 90, and the first of
two equal keys vanishes without a word.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from mfdiff_core.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """Safe loader with the scalars of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own attribute)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _fault(key_node, f"key {key!r} must be text")
            if key in keys:
                raise _fault(key_node, f"key {key!r} stands twice")
            keys.add(key)
        return super().construct_mapping(node, deep)


_SCALARS = {
    "null": (r"~|null|", ["~", "n", ""]),
    "bool": (r"true|false", list("tf")),
    "int": (r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+\.?[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan",
        list("-+.0123456789"),
    ),
}
for _name, (_pattern, _starts) in _SCALARS.items():
    _regex = re.compile(rf"(?:{_pattern})\Z")
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _regex, _starts)


def parse_yaml(text: str, where: str) -> Any:
    """Content of a YAML document; plain data only.

    Args:
        text: the document.
        where: its name, for messages.

    Raises:
        ConfigError: it is not YAML; names the line.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as fault:
        mark = fault.problem_mark or fault.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{where}{line}: {fault.problem or fault.context}") from None
    except (yaml.YAMLError, ValueError) as fault:
        raise ConfigError(f"{where}: {fault}") from None


def _fault(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
