"""What may be shown of a text that others wrote: passwords, tokens and keys are taken out, wherever it is quoted."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from typing import TypeVar
from urllib.parse import quote

T = TypeVar("T")
HIDDEN = "…"

# User and password of a URL, up to the last @ before the path; or before a space, if a password holds a slash.
# Everything here is bounded: a text of megabytes must not take minutes.
# In JSON, slashes may be escaped: `https:\/\/host`.
_CREDENTIALS = re.compile(r"(:(?:\\{0,9}/){2})(?:[^/\s]{0,999}@|[^/\s:]{0,999}:(?!\d{0,5}\\{0,9}/)\S{0,999}@)")
_QUERY = re.compile(r"(:(?:\\{0,9}/){2}[^\s?#]{0,1999})[?#]\S*")
# The same of a URL whose beginning is left out: `//me:secret@host`, `me:secret@host`, and `/path?key=…`, as HTTP
# clients say it.
_NO_SCHEME = re.compile(r"(?<![\w.%+/:@\\-])((?:\\{0,9}/){2})[^/\s:@'\"]{0,99}:[^\s/'\"]{1,199}@(?=[\w\[])")
_BARE_CREDENTIALS = re.compile(r"(?<![\w.%+/:@-])[\w.%+-]{1,99}:[^\s/:@'\"]{1,999}@(?=[\w\[])")
_BARE_QUERY = re.compile(r"(?<![^\s\"'(=:,])(/[^\s?#]{0,1999})\?(?=[\w.%\[\]-]{1,99}=)\S*")

_NAME = r"""(?:
    pass(?:word|wd|phrase|code) | (?<![a-z])pass(?![a-z]) | pwd | secret | token(?!s) | credential | authorization
    | bearer(?=\s*=) | cookie | jwt | (?<![a-z])auth(?![a-z]) | (?<![a-z])sig(?:nature)?(?=\s*=) | sess(?:ion)?[-_]?id
    | (?:api|access|account|private|secret|shared|signing|encryption|session|auth|master|service)[-_.\ ]?key
)"""
_QUOTED = r"(?P<{0}>\\*[\"'])(?:\\.|(?!(?P={0})).){{0,4000}}?(?P={0})"
_NOTHING = r"(?!(?:none|null|true|false|yes|no)(?:[\s,;)\]}}]|$))"  # what is no secret, and helps
_BRACKETS = r"[(\[{][^)\]}]*[)\]}]?"
_PLAIN = r"(?:(?:basic|bearer|digest|token|apikey|negotiate)\s+)?[^\s<]+"

_ASSIGNED = re.compile(
    rf"""(?P<key>{_NAME}[\w-]{{0,40}}(?:\ (?:provided|given|used))?)
    (?P<sep> \\*["']?\s*=>?\s*                                # password=…, "password" = …
        | \\*["']\s*[:,]\s*                                   # "password": …, ("password", …)
        | >(?=[^\s<])                                         # <password>…
        | (?:[,:][^()]{{0,200}})?\){{1,2}}=(?=\()                # Key (token, shop)=(…), as in PostgreSQL
        | (?<=password)\s+(?=["']) )                          # PASSWORD '…', as in SQL
    (?:[bru]?{_QUOTED.format("q")} | {_NOTHING}(?:{_BRACKETS} | {_PLAIN}))""",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
# A name, a colon and what follows may be a sentence: `password: too short`.
_SAID = re.compile(
    rf"""(?<!unrecognized\ )(?<!unexpected\ )(?P<key>{_NAME}[\w-]{{0,40}}(?:\ (?:provided|given|used))?)(?P<sep>\s*:\s*)
    (?:{_QUOTED.format("q")} | {_NOTHING}(?:{_BRACKETS}
        | (?=[a-z.]{{0,99}}[^\sa-z,;.])[^\s<]+ | [^\s,;<]{{1,99}}(?=\s*(?:[,;\r\n]|$)) ))""",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
_HEADER = re.compile(r"(?<![\w\"'])((?:proxy-)?authorization|(?:set-)?cookie)(\s*:\s*)[^\r\n]+", re.IGNORECASE)
_SCHEME = re.compile(
    r"\b(bearer\s+(?!tokens?\b|auth|realm\b)|basic\s+(?!auth)(?=[a-z0-9+/]{4})(?=[a-z0-9+/]{0,99}(?-i:[0-9=]|[a-z][A-Z])))[^\s'\",;)]+",
    re.IGNORECASE,
)
_OPTION = re.compile(rf"((?<![\w-])--[\w-]{{0,40}}?{_NAME}[\w-]{{0,40}}\s+)[^\s-]\S*", re.IGNORECASE | re.VERBOSE)
_CURL = re.compile(
    r"(\bcurl\b[^\r\n]{0,199}?(?<![\w-])(?:-u|-U|--user|--proxy-user)[\s\"',=]{0,9})[^\s\"':]{1,99}:[^\s\"']{1,199}"
)
_IDENTIFIED = re.compile(r"(identified\s+(?:with\s+\S+\s+)?(?:by|as)\s+)(\"[^\"]*\"|'[^']*'|\S+)", re.IGNORECASE)
_SHAPES = re.compile(
    r"""-----BEGIN\ [A-Z ]*PRIVATE\ KEY-----.*?(?:-----END\ [A-Z ]*PRIVATE\ KEY-----|\Z)
    | (?<![\w-])(?:sk|pk|rk)[-_](?=[\w-]{0,99}\d)[\w-]{8,}
    | \bgh[pousr]_\w{16,} | \bgithub_pat_\w{16,} | \bglpat-[\w-]{16,}
    | \b(?:AKIA|ASIA)[0-9A-Z]{12,} | \bxox[abeprs]-[\w-]{8,} | \bAIza[\w-]{20,}
    | (?<![\w-])eyJ[\w-]+\.[\w-]+(?:\.[\w-]*)?""",
    re.VERBOSE | re.DOTALL,
)


# Without one of these, there is nothing to look for: texts are many, and secrets few.
_WORDS = (
    *(
        "pass",
        "pwd",
        "secret",
        "token",
        "credential",
        "auth",
        "cookie",
        "jwt",
        "sig",
        "sess",
        "key",
        "identified",
        "curl",
    ),
    *("bearer", "basic", "sk-", "sk_", "pk-", "pk_", "rk-", "rk_", "gh", "glpat", "akia", "asia", "xox", "aiza", "eyj"),
)


def without_secrets(text: str, *secrets: str) -> str:
    """Return *text* without users, passwords, queries and fragments of URLs, named secrets, and *secrets* themselves.

    >>> without_secrets("cannot read ftp://me:secret@host/orders.csv?key=1")
    'cannot read ftp://host/orders.csv'
    >>> without_secrets("no route: host=db password=sesame")
    'no route: host=db password=…'
    """
    for secret in filter(None, secrets):
        for shown in (secret, quote(secret, safe="")):
            text = text.replace(shown, HIDDEN)
    if "//" in text or "\\/" in text:
        text = _NO_SCHEME.sub(r"\1", _QUERY.sub(r"\1", _CREDENTIALS.sub(r"\1", text)))
    if "@" in text or "?" in text:
        text = _BARE_QUERY.sub(r"\1", _BARE_CREDENTIALS.sub(f"{HIDDEN}@", text))
    lower = text.lower()
    if not any(word in lower for word in _WORDS):
        return text
    text = _HEADER.sub(rf"\1\2{HIDDEN}", _SHAPES.sub(HIDDEN, text))
    text = _CURL.sub(rf"\1{HIDDEN}", _SAID.sub(_hidden, _ASSIGNED.sub(_hidden, text)))
    return _SCHEME.sub(rf"\1{HIDDEN}", _IDENTIFIED.sub(rf"\1{HIDDEN}", _OPTION.sub(rf"\1{HIDDEN}", text)))


def _hidden(found: re.Match[str]) -> str:
    quotes = found["q"] or ""
    return f"{found['key']}{found['sep']}{quotes}{HIDDEN}{quotes}"


def quoted(error: BaseException, *secrets: str) -> str:
    """Return the kind of an error of others and its text without secrets: what our own texts may quote of it."""
    text = text_of(error, *secrets)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def text_of(error: BaseException, *secrets: str) -> str:
    """Return the text of an error of others without secrets."""
    try:
        text = str(error)
    except Exception:  # its own mistake: the error that it tells of matters more
        return ""
    return without_secrets(text, *secrets)


def half_made_too(picture: Callable[[T], str]) -> Callable[[T], str]:
    """Make a ``__repr__`` that does not fail for an object whose constructor did: a traceback with locals shows it."""

    @wraps(picture)
    def shown(self: T) -> str:
        try:
            return picture(self)
        except AttributeError:
            return f"<{type(self).__name__}, half made>"

    return shown
