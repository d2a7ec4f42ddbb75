"""When certificates begin and end to be valid, and what the log says about that."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

_DAY_SECONDS = 86_400.0
# How long before the end the log warns.
_NEAR_DAYS = 14
_REMEDY = "renew the file: the service reads it again at the next connection"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Validity:
    """The time in which the file of a setting is of use, in Unix seconds."""

    setting: str
    """tls_cert or tls_client_ca."""
    path: Path
    begin: float
    end: float

    def log(self) -> None:
        """Logs that the file is expired or not yet valid, or that its end is near."""
        now, file = time.time(), f"{self.setting} {self.path}"
        if now >= self.end:
            log.error("%s expired on %s, so connections fail; %s", file, _date(self.end), _REMEDY)
        elif now < self.begin:
            log.error(
                "%s is not valid before %s, so connections fail until then; see to the clock, or to the file",
                file,
                _date(self.begin),
            )
        elif self.end - now < _NEAR_DAYS * _DAY_SECONDS:
            log.warning("%s expires on %s; %s", file, _date(self.end), _REMEDY)


def validity(setting: str, path: Path, data: bytes) -> list[Validity]:
    """The time in which all certificates of a chain are valid, or any of several authorities.

    Args:
        setting: tls_cert, a chain, or tls_client_ca, authorities.
        path: the file.
        data: its content, PEM.

    Returns:
        One element, or none where the dates cannot be read: OpenSSL, which checks the file, is more tolerant.
    """
    from cryptography import x509  # not needed without TLS

    try:
        found = x509.load_pem_x509_certificates(data)
        begins = [each.not_valid_before_utc.timestamp() for each in found]
        ends = [each.not_valid_after_utc.timestamp() for each in found]
    except ValueError:
        return []
    if setting == "tls_cert":
        return [Validity(setting, path, max(begins), min(ends))]
    return [Validity(setting, path, min(begins), max(ends))]


def _date(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
