"""The tokens of callers, and the groups of calls that each token allows."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from glowserve_service.errors import ForbiddenError, UnauthenticatedError
from glowserve_service.security.reloaded_files import ReloadedFiles

GROUPS = ("infer", "admin", "metrics")
# A random token of that many letters and digits cannot be guessed.
_SHORTEST_TOKEN = 20
_COMMENT = re.compile(r"(^|\s)#.*")


@dataclass(frozen=True)
class _Token:
    digest: bytes
    name: str
    groups: frozenset[str]


class Tokens:
    """The tokens that a file lists, and the groups of each.

    A line is NAME TOKEN, or NAME TOKEN GROUPS with some of infer,admin,metrics; without GROUPS, infer alone. A comment
    begins with # at the beginning of a line or after a space. Lines without words are skipped.

    Args:
        path: the file.

    Raises:
        ValueError: the file cannot be read, or a line is not as above; tokens are not in the message.
    """

    def __init__(self, path: Path) -> None:
        self._file = ReloadedFiles([path], lambda: _read_tokens(path))

    def check(self, authorization: str, group: str) -> None:
        """Checks the authorization of a call: "Bearer TOKEN".

        Raises:
            UnauthenticatedError: there is no token, or a wrong one.
            ForbiddenError: the token does not allow calls of that group.
        """
        scheme, _, presented = authorization.partition(" ")
        if scheme.lower() != "bearer" or not presented:
            raise UnauthenticatedError('a token is needed here: send "authorization: Bearer TOKEN"')
        digest = _digest(presented.strip())
        # All tokens are compared, each in constant time: the time tells nothing about a token.
        found = [token for token in self._file.current() if hmac.compare_digest(token.digest, digest)]
        if not found:
            raise UnauthenticatedError("the token is not one that this service knows")
        if group not in found[0].groups:
            raise ForbiddenError(f"the token of {found[0].name!r} has no right to {group} calls")

    def has(self, group: str) -> bool:
        """Whether any token has that group."""
        return any(group in token.groups for token in self._file.current())


def _read_tokens(path: Path) -> list[_Token]:
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except OSError as error:
        raise ValueError(f"tokens {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"tokens {path} is not UTF-8; save it as UTF-8 or ASCII") from None
    entries = ((number, _COMMENT.sub("", line).split()) for number, line in enumerate(lines, 1))
    tokens = [_token(f"tokens {path}, line {number}", words) for number, words in entries if words]
    if not tokens:
        raise ValueError(f"tokens {path} is empty; write a line NAME TOKEN for each caller")
    for what in ("name", "digest"):
        if len({getattr(token, what) for token in tokens}) < len(tokens):
            raise ValueError(f"tokens {path} has the same {'name' if what == 'name' else 'token'} twice")
    return tokens


def _token(where: str, words: Sequence[str]) -> _Token:
    if not all(word.isascii() for word in words):
        raise ValueError(f"{where} has characters that are not ASCII; only a comment may")
    if len(words) not in (2, 3):
        raise ValueError(f"{where} has {len(words)} words; write NAME TOKEN, or NAME TOKEN GROUPS")
    name, token, *rest = words
    groups = rest[0].split(",") if rest else ["infer"]
    # Messages do not repeat the words: any of them may be the token, in the wrong place.
    if len(token) < _SHORTEST_TOKEN:
        raise ValueError(
            f"{where}: the token has {len(token)} characters; it needs {_SHORTEST_TOKEN} or more"
        )
    if not set(groups) <= set(GROUPS):
        raise ValueError(f"{where}: the third word must be one or more of {','.join(GROUPS)}")
    return _Token(_digest(token), name, frozenset(groups))


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()
