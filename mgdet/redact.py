"""Passwords in URIs, which must not reach a log, a file or an error message."""

import re

_PATTERNS = (
    # user:password@, whatever the password holds; rather too much than too little of what follows is taken out
    (re.compile(r"(?<=://)[^\s/@:]*:\S*@"), ""),
    # a user alone may be a token; in abfs(s)://container@account it is no user
    (re.compile(r"(?<!abfs)(?<!abfss)://[^\s/@]*@"), "://"),
    # ?password=..., &client_secret=..., &sig=... (the signature of a shared link)
    (re.compile(r"(?i)([?&](?:sig|[^\s=&?]*(?:passw|pwd|secret|token|_key)[^\s=&?]*)=)[^\s&#'\"]+"), r"\1***"),
)


def redacted(text: str) -> str:
    """The text with users, passwords and secret parameters taken out of every URI in it."""
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def has_password(uri: str) -> bool:
    """Whether the URI carries something secret (a user alone is none)."""
    return bool(_PATTERNS[0][0].search(uri) or _PATTERNS[2][0].search(uri))
