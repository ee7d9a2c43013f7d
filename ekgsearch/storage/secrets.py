"""Clean a text of credentials before a person, a log file or an error message sees it."""

import os
import re
from urllib.parse import parse_qsl, unquote

_HIDDEN = "[redacted]"
_SECRET_WORD = (
    r"(?:secret(?!ar)|token(?!i[sz])|passw(?:or)?d|passphrase|credential|signature|api[_-]?key|access[_-]?key"
    r"|private[_-]?key)"
)
# "the token: it is the same", "the password: leave it out": a sentence goes on after the colon. No password is an
# article, a pronoun, a preposition or the like, nor a word in small letters that an article or a pronoun follows.
_POINTING = "an?|any|all|each|every|it|its|my|no|one|our|some|that|the|their|them|these|they|this|those|us|we|your?"
_LINKING = (
    "and|are|as|at|be|been|but|by|can|do|does|for|from|has|have|how|if|in|is|may|must|not|none|nor|nothing|of|on|only"
    "|or|see|so|than|then|there|to|was|were|what|when|where|which|who|why|will|with|without"
)
_PROSE = rf"(?-i:(?i:{_POINTING}|{_LINKING})|[A-Z]?[a-z]+[ \t]+(?:{_POINTING}))(?![\w=:/+.@-]*[\w=:/+@])"
_ASSIGNMENT = re.compile(
    rf"""(?ix) ([\w.\-]*{_SECRET_WORD}[\w.\-]*["']? [ \t]*[=:](?:[ \t]*|\s+(?=["']|\S*\d))) (?!//|\[redacted\])
    (?! (?<=:[ \t]) {_PROSE} )
    ("[^"\n]*" | '[^'\n]*' | (?:(?:bearer|basic)\s+)?[^\s"'&,;)}}\]]+)"""
)
_PATTERNS = (
    re.compile(r"\b(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{12,}\b"),
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
    re.compile(r"\b(?:ghp|gho|ghs|github_pat|hf|sk)[_-][A-Za-z0-9_]{16,}\b"),
    re.compile(r"(?i)(?<=authorization: bearer )[A-Za-z0-9._~+/=\-]{8,}"),
    re.compile(r"(?<=[Bb][Ee][Aa][Rr][Ee][Rr] )(?=[a-z\-]*(?:[A-Z0-9]|[._~+=]+[A-Za-z0-9]))[A-Za-z0-9._~+/=\-]{8,}"),
)
_USERINFO = re.compile(r"(?<=://)[^/\s@]+@")
_SECRET_NAME = re.compile(rf"(?i){_SECRET_WORD}|^aws_session|(?:^|_)key$")
_SHORTEST_SECRET = 8


def redact(text: str) -> str:
    """Replace everything in a text that looks like a credential by ``[redacted]``.

    Found are: values of environment variables with a telling name (secret, token, password, key), cloud access keys,
    private key blocks, bearer tokens, user names and passwords in addresses, and ``name=value`` or ``name: value`` with
    a telling name. A sentence that goes on after a telling word and a colon ("the token: the same on every node")
    stays as it is.

    Args:
        text: any text, such as a log line with its traceback.

    Returns:
        The text without credentials.
    """
    telling = {value for name, value in os.environ.items() if names_a_secret(name) and len(value) >= _SHORTEST_SECRET}
    for value in sorted(telling, key=len, reverse=True):
        if value in text and not os.path.exists(value):  # a variable may name the file of a secret, which is none
            text = text.replace(value, _HIDDEN)
    for pattern in _PATTERNS:
        text = pattern.sub(_HIDDEN, text)
    text = _USERINFO.sub(f"{_HIDDEN}@", text)
    return _ASSIGNMENT.sub(rf"\g<1>{_HIDDEN}", text)


def names_a_secret(name: str) -> bool:
    """Whether a name is one that credentials are given under.

    Args:
        name: name of an environment variable, option or field.
    """
    return _SECRET_NAME.search(name) is not None


def credentials_in(address: str) -> str:
    """Say why an address of a store may not be used: it holds a user, a password or a secret.

    Args:
        address: a folder, or ``scheme://bucket/prefix?option=value``.

    Returns:
        The reason, in words that repeat nothing of what follows ``scheme://``; empty where the address is clean.
    """
    scheme, separator, rest = address.partition("://")
    place, _, query = rest.partition("?")
    has_user = "@" in place.partition("/")[0] or re.search(":.*@", place)  # a secret may hold a slash
    options = parse_qsl(query, keep_blank_values=True)
    names_secret = any(names_a_secret(name) for name, _ in options)
    if separator and (has_user or names_secret or _USERINFO.search(unquote(query))):
        return (
            f"the address of the store ({scheme}://...) holds credentials; leave them out and set them where the "
            "provider looks for them (environment variables, profile, instance role)"
        )
    return ""
