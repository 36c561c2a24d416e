"""Pseudonyms: who a person is stays with the site that holds the salt."""

from __future__ import annotations

import hmac

LEAST_SALT_BYTES = 16
_DIGITS = 10


def pseudonym(salt: bytes, identity: str) -> str:
    """The name of a person in everything that is written, such as ``p-3f09c2a17b``.

    The same person under the same salt has the same name in every domain, so that subjects that
    stand in two datasets can be noticed. Without the salt it cannot be reversed by trying
    identities.

    Args:
        salt: the site's secret.
        identity: what the source calls the person: a patient ID, a participant of a dataset.

    Raises:
        ValueError: the salt is too short to be a secret.
    """
    if len(salt) < LEAST_SALT_BYTES:
        raise ValueError(f"a salt has at least {LEAST_SALT_BYTES} bytes, got {len(salt)}")
    return "p-" + hmac.new(salt, identity.encode(), "sha256").hexdigest()[:_DIGITS]
