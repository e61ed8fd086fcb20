"""Which unit asks for which credential, and which parameters may be the answer. Pure.

systemd binds its end to an abstract name, NUL RANDOM "/unit/" UNIT "/" ID (systemd.exec(5), "Credentials").
"""

import re

from kmsfs.errors import InvalidRequest

FOLDER = "/systemd"
_PEER = re.compile(rb"\0[0-9A-Za-z]+/unit/([0-9A-Za-z:_.\\@-]{1,255})/([\x21-\x2e\x30-\x7e]{1,255})\Z")
_FOREIGN = re.compile(r"[^0-9A-Za-z_.-]|_(?=[0-9A-F]{2})")


def parse_peer(address: bytes | str) -> tuple[str, str]:
    """Return (unit, credential id) of a connection's peer name.

    Raises:
        InvalidRequest: if it is not one that systemd gives.
    """
    found = _PEER.match(address if isinstance(address, bytes) else address.encode())
    if found is None:
        raise InvalidRequest("the peer's name is not that of a unit's credential")
    return found[1].decode(), found[2].decode()


def escaped(text: str) -> str:
    """Return a unit's name or a credential's id as a level of a parameter's name.

    What a parameter's name cannot have becomes `_` and two upper-case hex digits: `db@main.service` is
    `db_40main.service`. Different texts stay different.
    """
    return _FOREIGN.sub(lambda found: f"_{ord(found[0]):02X}", text)


def places_of(unit: str, credential: str) -> list[str]:
    """Return the names of the parameters that may hold a unit's credential, best first: its own, then its template's."""
    names = [unit]
    prefix, at, rest = unit.partition("@")
    if at and rest.rpartition(".")[0]:
        names.append(f"{prefix}@.{rest.rpartition('.')[2]}")
    return [f"{FOLDER}/{escaped(name)}/{escaped(credential)}" for name in names]


def belongs_to(unit: str, parameter: str) -> bool:
    """Whether a parameter lies where a unit's credentials, or its template's, lie."""
    folder, _, _ = parameter.rpartition("/")
    return any(place.rpartition("/")[0] == folder for place in places_of(unit, "x"))
