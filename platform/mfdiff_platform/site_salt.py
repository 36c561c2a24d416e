"""The site's secret that pseudonyms depend on, a file of the workspace."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from mfdiff_core.errors import DataError
from mfdiff_core.scans.pseudonyms import LEAST_SALT_BYTES

SALT = "site-salt"


def site_salt(workspace: Path) -> bytes:
    """The salt of a workspace, made at first use and readable by its owner alone.

    A site with several workspaces copies the file, so that a person has one pseudonym.

    Raises:
        DataError: the file is damaged.
    """
    path = workspace / SALT
    try:
        # A secret, so not from seeding.py; O_EXCL makes one of two commands the first.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        pass
    else:
        with os.fdopen(descriptor, "w") as stream:
            stream.write(secrets.token_hex(32))
    try:
        salt = bytes.fromhex(path.read_text().strip())
    except (OSError, ValueError):
        salt = b""
    if len(salt) < LEAST_SALT_BYTES:
        raise DataError(f"{path}: not a salt; restore the file, or remove it to make a new one")
    return salt
