from __future__ import annotations

from pathlib import Path

import pytest

from mfdiff_core.errors import ConfigError
from mfdiff_platform.label_map import read_label_map


def test_values_get_their_tissues(tmp_path: Path) -> None:
    path = tmp_path / "map.yaml"
    path.write_text("{1: csf, 2: grey, 3: white}")
    assert read_label_map(path) == {1: "csf", 2: "grey", 3: "white"}
    assert read_label_map(None) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1: grey\n2: white\n1: csf\n", "1 stands twice"),
        ("{true: grey}", "a label map looks like"),
        ("{1.5: grey}", "a label map looks like"),
        ("{1: 2}", "a label map looks like"),
        ("[1, 2]", "a label map looks like"),
        ("{1: grey", "cannot be read as YAML"),
    ],
)
def test_what_is_no_label_map_is_refused_with_the_file_named(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "map.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"map\.yaml: .*{message}"):
        read_label_map(path)
