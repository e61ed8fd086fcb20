"""AWS Signature Version 4, the verifier's side (AWS General Reference, "Signing AWS API requests").

Only the form that SDKs send to these services: `POST /`, the signature in the Authorization header, the payload
hashed. Pure: the clock and the secrets are the caller's.
"""

import calendar
import hashlib
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kmsfs.aead.kdf import equal, hmac_sha256
from kmsfs.errors import IncompleteSignature, InvalidSignature, MissingAuthentication

ALGORITHM = "AWS4-HMAC-SHA256"
SKEW_SECONDS = 900
_HEADER = re.compile(
    ALGORITHM + r" +Credential=(?P<id>[A-Za-z0-9]{4,128})/(?P<date>\d{8})/(?P<region>[a-z0-9-]{1,64})/"
    r"(?P<service>[a-z0-9-]{1,64})/aws4_request *, *SignedHeaders=(?P<headers>[a-z0-9;-]{1,4096}) *, *"
    r"Signature=(?P<signature>[0-9a-f]{64})\Z"
)
_REQUIRED = frozenset({"host", "x-amz-date"})


@dataclass(frozen=True, slots=True)
class SignedScope:
    """What a request says of its signature, before anything of it is believed."""

    access_key_id: str
    date: str
    region: str
    service: str
    headers: tuple[str, ...]
    signature: str
    timestamp: str


def parse_signature(headers: Mapping[str, str]) -> SignedScope:
    """Read the Authorization header.

    Raises:
        MissingAuthentication: if there is none.
        IncompleteSignature: if it is no SigV4 header, or does not sign the host and the date.
    """
    text = headers.get("authorization", "")
    if not text:
        raise MissingAuthentication("Missing Authentication Token")
    found = _HEADER.match(text)
    if found is None:
        raise IncompleteSignature("Authorization header is not a complete AWS4-HMAC-SHA256 signature.")
    signed = tuple(found["headers"].split(";"))
    timestamp = headers.get("x-amz-date", "")
    if not set(signed) >= _REQUIRED or list(signed) != sorted(set(signed)):
        raise IncompleteSignature("SignedHeaders must hold host and x-amz-date, sorted, each once.")
    if not re.fullmatch(r"\d{8}T\d{6}Z", timestamp) or timestamp[:8] != found["date"]:
        raise IncompleteSignature("X-Amz-Date is missing or does not fit the credential's date.")
    return SignedScope(
        found["id"], found["date"], found["region"], found["service"], signed, found["signature"], timestamp
    )


def check_signature(
    scope: SignedScope, headers: Mapping[str, str], body: bytes, secret: Callable[[str], str], now: float
) -> None:
    """Check time, payload and signature of a `POST /`.

    Raises:
        InvalidSignature: if the request is not from now, was changed, or was signed with another secret.
    """
    _check_time(scope.timestamp, now)
    digest = hashlib.sha256(body).hexdigest()
    if headers.get("x-amz-content-sha256", digest) != digest:
        raise InvalidSignature("The payload does not match X-Amz-Content-Sha256.")
    lines = "".join(f"{name}:{' '.join(headers.get(name, '').split())}\n" for name in scope.headers)
    canonical = f"POST\n/\n\n{lines}\n{';'.join(scope.headers)}\n{digest}"
    place = f"{scope.date}/{scope.region}/{scope.service}/aws4_request"
    to_sign = f"{ALGORITHM}\n{scope.timestamp}\n{place}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = ("AWS4" + secret(scope.access_key_id)).encode()
    for part in (scope.date, scope.region, scope.service, "aws4_request"):
        key = hmac_sha256(key, part.encode())
    if not equal(hmac_sha256(key, to_sign.encode()).hex().encode(), scope.signature.encode()):
        raise InvalidSignature(
            "The request signature we calculated does not match the signature you provided. Check your AWS "
            "Secret Access Key and signing method. Consult the service documentation for details."
        )


def _check_time(timestamp: str, now: float) -> None:
    try:
        signed_at = calendar.timegm(time.strptime(timestamp, "%Y%m%dT%H%M%SZ"))
    except ValueError as error:
        raise IncompleteSignature("X-Amz-Date is no time.") from error
    present = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    if signed_at < now - SKEW_SECONDS:
        raise InvalidSignature(f"Signature expired: {timestamp} is now earlier than {present} - 15 min.")
    if signed_at > now + SKEW_SECONDS:
        raise InvalidSignature(
            f"Signature not yet current: {timestamp} is still later than {present} + 15 min."
        )
