"""AWS Signature Version 4, the verifier's side (AWS General Reference, "Signing AWS API requests").

`GET /` and `POST /`, the payload hashed, the signature in the Authorization header, or in the URL: such a URL can be handed
to somebody who is to find out who signed it, by asking for it (STS GetCallerIdentity). Pure: the clock and the secrets are the caller's.
"""

import calendar
import hashlib
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote

from kmsfs.aead.kdf import equal, hmac_sha256
from kmsfs.errors import IncompleteSignature, InvalidSignature, MissingAuthentication, SerializationFailed

ALGORITHM = "AWS4-HMAC-SHA256"
SKEW_SECONDS = 900
_SIGNATURE = re.compile(
    ALGORITHM + r" +Credential=(?P<id>[A-Za-z0-9]{4,128})/(?P<date>\d{8})/(?P<region>[a-z0-9-]{1,64})/"
    r"(?P<service>[a-z0-9-]{1,64})/aws4_request *, *SignedHeaders=(?P<headers>[a-z0-9;-]{1,4096}) *, *"
    r"Signature=(?P<signature>[0-9a-f]{64})\Z"
)
_TIMESTAMP = re.compile(r"\d{8}T\d{6}Z")
_IN_QUERY = "X-Amz-"
_EXPIRES_MAX = 604_800
_FIELDS_MAX = 500


@dataclass(slots=True)
class HttpRequest:
    """What a client sent. Names of headers are in lower case; `fields` are those of the URL, decoded."""

    method: str
    headers: Mapping[str, str]
    fields: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    address: str = ""
    """The client's IP address, if it has one."""

    @property
    def signed_in_url(self) -> bool:
        """Whether the signature is in the URL."""
        return "X-Amz-Algorithm" in self.fields

    @property
    def own_fields(self) -> dict[str, str]:
        """The URL's fields that are not of the signature."""
        return {name: value for name, value in self.fields.items() if not name.startswith(_IN_QUERY)}

    def said(self, name: str) -> str:
        """Return what a request says of its signature beside it, such as X-Amz-Date: in the URL or in a header. Empty if nothing."""
        return self.fields.get(name, "") if self.signed_in_url else self.headers.get(name.lower(), "")


def read_url(query: bytes) -> dict[str, str]:
    """Return the fields of a URL's query.

    Raises:
        SerializationFailed: if it is none, or has two fields of the same name.
    """
    if not query:
        return {}
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, strict_parsing=True, max_num_fields=_FIELDS_MAX)
    except ValueError as error:
        raise SerializationFailed("The URL's query is malformed.") from error
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise SerializationFailed("The URL's query has a field twice.")
    return fields


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


def parse_signature(asked: HttpRequest) -> SignedScope:
    """Read the Authorization header, or the same out of the URL.

    Raises:
        MissingAuthentication: if there is none.
        IncompleteSignature: if it is no SigV4 signature, or does not sign the host and the date, or there are two.
    """
    text = asked.headers.get("authorization", "")
    if asked.signed_in_url:
        if text:
            raise IncompleteSignature("The request has a signature in its URL and another one in its header.")
        text = _of_url(asked.fields)
    if not text:
        raise MissingAuthentication("Missing Authentication Token")
    found = _SIGNATURE.match(text)
    if found is None:
        raise IncompleteSignature("The request has no complete AWS4-HMAC-SHA256 signature.")
    signed, timestamp = tuple(found["headers"].split(";")), asked.said("X-Amz-Date")
    required = {"host"} if asked.signed_in_url else {"host", "x-amz-date"}
    if not set(signed) >= required or list(signed) != sorted(set(signed)):
        raise IncompleteSignature(f"SignedHeaders must hold {' and '.join(sorted(required))}, sorted, each once.")
    if not _TIMESTAMP.fullmatch(timestamp) or timestamp[:8] != found["date"]:
        raise IncompleteSignature("X-Amz-Date is missing or does not fit the credential's date.")
    return SignedScope(
        found["id"], found["date"], found["region"], found["service"], signed, found["signature"], timestamp
    )


def _of_url(fields: Mapping[str, str]) -> str:
    """Return what the Authorization header would say."""
    if fields["X-Amz-Algorithm"] != ALGORITHM:
        raise IncompleteSignature(f"X-Amz-Algorithm must be {ALGORITHM}.")
    # STS, for which such URLs are made, takes them for 15 minutes whatever they say (aws-iam-authenticator, token.go).
    expires = fields.get("X-Amz-Expires", "")
    if not (expires.isascii() and expires.isdigit() and len(expires) <= 6 and 1 <= int(expires) <= _EXPIRES_MAX):
        raise IncompleteSignature(f"X-Amz-Expires must be 1 to {_EXPIRES_MAX} seconds.")
    credential, headers, signature = (fields.get(f"X-Amz-{name}", "") for name in ("Credential", "SignedHeaders", "Signature"))
    return f"{ALGORITHM} Credential={credential}, SignedHeaders={headers}, Signature={signature}"


def check_signature(scope: SignedScope, asked: HttpRequest, secret: Callable[[str], str], now: float) -> None:
    """Check time, payload and signature of a request for `/`.

    Raises:
        InvalidSignature: if the request is not from now, was changed, or was signed with another secret.
    """
    _check_time(scope.timestamp, now)
    digest = hashlib.sha256(asked.body).hexdigest()
    if asked.headers.get("x-amz-content-sha256", digest) != digest:
        raise InvalidSignature("The payload does not match X-Amz-Content-Sha256.")
    query = _canonical_query(asked.fields)
    lines = "".join(f"{name}:{' '.join(asked.headers.get(name, '').split())}\n" for name in scope.headers)
    canonical = f"{asked.method}\n/\n{query}\n{lines}\n{';'.join(scope.headers)}\n{digest}"
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


def _canonical_query(fields: Mapping[str, str]) -> str:
    """All fields but the signature, encoded as RFC 3986 says, in the order of their encoded names."""
    encoded = [(quote(name, safe="-_.~"), quote(value, safe="-_.~")) for name, value in fields.items() if name != "X-Amz-Signature"]
    return "&".join(f"{name}={value}" for name, value in sorted(encoded))


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
