"""Addresses without their passwords and signatures, as rows, messages and records show them."""

import hashlib
import re

HIDDEN = "***"

_WEB_USER = re.compile(r"(\Ahttps?://)[^/?#]*@|\b(https?://)[^/?#\s'\"]*@", re.IGNORECASE)
"""User name and password of a web address, in a text or as all of it; a name is often a token."""
_PASSWORD = re.compile(r"\b([a-z][a-z0-9+.-]*://[^/?#\s'\":]*):[^/?#\s'\"]*@", re.IGNORECASE)
_SECRET = re.compile(
    r"([?&;#](?:[\w.-]*(?:signature|secret|passw|credential|security-token|access-?_?key"
    r"|access-?_?id|api-?_?key|_token|-token|hmac|authoriz|key-pair-id)[\w.-]*"
    r"|sig|auth|pwd|policy|jwt|sas)=)[^&;#\s'\"]*",
    re.IGNORECASE,
)
"""A signature and what it is made of. Another signature leads to the same image."""
_KEY = re.compile(
    r"([?&;#](?:key|token|code|ticket|session|session_?id|sid)=)([^&;#\s'\"]+)", re.IGNORECASE
)
"""What is a secret in many addresses, and names the image in others."""


def public(text: str) -> str:
    """The text with secrets in the addresses in it hidden.

    What may name the image is hidden by a few digits of its hash: then two images keep two names.
    """
    if "://" not in text and "=" not in text:
        return text
    text = _WEB_USER.sub(rf"\1\2{HIDDEN}@", text)
    text = _PASSWORD.sub(rf"\1:{HIDDEN}@", text)
    text = _SECRET.sub(rf"\1{HIDDEN}", text)
    return _KEY.sub(lambda match: f"{match[1]}{HIDDEN}{_digits(match[2])}", text)


def _digits(secret: str) -> str:
    if secret.startswith(HIDDEN):  # hidden before
        return secret.removeprefix(HIDDEN)
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()[:8]
