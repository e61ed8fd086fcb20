"""Random passwords, purely (Secrets Manager API, GetRandomPassword)."""

import string

from kmsfs.aead.nonces import Rng
from kmsfs.api.shapes.secrets import GetRandomPasswordRequest
from kmsfs.errors import InvalidParameter

PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"


def make_password(request: GetRandomPasswordRequest, rng: Rng) -> str:
    """Return a password of the wanted length and kinds of characters, each choice uniform.

    Raises:
        InvalidParameter: if the length is not 1 to 4,096, is too short for one of each kind, or nothing is left to choose from.
    """
    length = request.password_length
    if not 1 <= length <= 4096:
        raise InvalidParameter(f"Invalid password length: {length}: it must be between 1 and 4096.")
    offered = (
        (string.ascii_lowercase, request.exclude_lowercase), (string.ascii_uppercase, request.exclude_uppercase),
        (string.digits, request.exclude_numbers), (PUNCTUATION, request.exclude_punctuation),
        (" ", not request.include_space),
    )  # fmt: skip
    # A space may be in it; of the other kinds each must (Secrets Manager API, GetRandomPassword).
    kinds = [
        "".join(character for character in kind if character not in request.exclude_characters)
        for kind, excluded in offered
        if not excluded
    ]
    kinds = [kind for kind in kinds if kind]
    required = [kind for kind in kinds if kind != " "]
    if not kinds:
        raise InvalidParameter("The excluded characters leave nothing to make a password of.")
    alphabet = "".join(kinds)
    if not request.require_each_included_type:
        return "".join(_choose(alphabet, rng) for _ in range(length))
    if length < len(required):
        raise InvalidParameter(
            f"Password length {length} is too short: {len(required)} kinds of characters are required."
        )
    chosen = [_choose(kind, rng) for kind in required]
    chosen += [_choose(alphabet, rng) for _ in range(length - len(required))]
    for last in range(length - 1, 0, -1):
        other = _below(last + 1, rng)
        chosen[last], chosen[other] = chosen[other], chosen[last]
    return "".join(chosen)


def _choose(alphabet: str, rng: Rng) -> str:
    return alphabet[_below(len(alphabet), rng)]


def _below(bound: int, rng: Rng) -> int:
    """Return a uniform number below a bound of at most 4,096."""
    limit = 65_536 - 65_536 % bound
    while True:
        number = int.from_bytes(rng(2), "big")
        if number < limit:
            return number % bound
