"""Keys of a volume, derived from its volume key: attributes, names, directories, links, homes, configuration."""

import binascii

from kmsfs.aead.gcm import GcmKey
from kmsfs.aead.kdf import Label, derive, equal, hmac_sha256, sha256
from kmsfs.aead.nonces import Rng
from kmsfs.aead.siv import SivKey
from kmsfs.errors import AuthenticationFailed, CorruptFile, CorruptVolume, IntegrityReason, InvalidName
from kmsfs.secret import KeyMaterial

HOME_TAG_BYTES = 16
DIR_TAG_BYTES = 8
LONG_NAME_BYTES = 160
DIR_ID_NAME = ".kd"
_DIR_PREFIX = "kd1."
_TO_URLSAFE = bytes.maketrans(b"+/", b"-_")
_TO_STANDARD = bytes.maketrans(b"-_+/", b"+/\0\0")
_NAME_AAD = b"kmsfs/name"
_DIR_AAD = b"kmsfs/dir"
_LINK_AAD = b"kmsfs/link"


class VolumeKeys:
    """Names and attributes of one volume need only these keys, so `stat` and `rename` cost no KMS call."""

    def __init__(self, volume_id: bytes, volume_key: KeyMaterial) -> None:
        root = volume_key.reveal()
        self.volume_id = volume_id
        self.attr = SivKey(derive(root, Label.VOLUME_ATTR))
        self._name = SivKey(derive(root, Label.VOLUME_NAME))
        self._dir = SivKey(derive(root, Label.VOLUME_DIR))
        self._link = SivKey(derive(root, Label.VOLUME_LINK))
        self._home = derive(root, Label.VOLUME_HOME)
        self._config = derive(root, Label.VOLUME_CONFIG)
        self.extras = GcmKey(derive(root, Label.VOLUME_EXTRAS))
        self.freshness = SivKey(derive(root, Label.VOLUME_FRESHNESS))
        self.listing = SivKey(derive(root, Label.VOLUME_LISTING))

    # --- configuration ------------------------------------------------------------------------------------

    def config_mac(self, signed: bytes) -> bytes:
        """Return the MAC of a volume configuration."""
        return hmac_sha256(self._config, signed)

    def check_config(self, signed: bytes, mac: bytes) -> None:
        """Check a volume configuration.

        Raises:
            CorruptVolume: if it was edited.
        """
        if not equal(self.config_mac(signed), mac):
            raise CorruptVolume(
                "the volume configuration was edited or damaged", hint="restore it from a backup"
            )

    # --- names --------------------------------------------------------------------------------------------

    def seal_name(self, dir_id: bytes, name: bytes) -> tuple[str, str | None]:
        """Return (name on disk, target of its sidecar or None) for a name of 1 to 255 bytes."""
        sealed = self._name.seal(name + bytes(-len(name) % 16), (_NAME_AAD, dir_id))
        text = _encode(sealed)
        if len(name) <= LONG_NAME_BYTES:
            return "n" + text, None
        return "l" + _encode(sha256(sealed)), text

    def open_name(self, dir_id: bytes, disk_name: str, sidecar_target: str | None) -> bytes:
        """Return the plain name of a name on disk.

        Raises:
            InvalidName: if it was not made in this directory of this volume.
        """
        try:
            if disk_name[:1] == "l" and sidecar_target is not None:
                sealed = _decode(sidecar_target)
                if "l" + _encode(sha256(sealed)) != disk_name:
                    raise InvalidName("a long name does not match its sidecar")
            elif disk_name[:1] == "n":
                sealed = _decode(disk_name[1:])
            else:
                raise InvalidName("not a name of this volume")
            padded = self._name.open(sealed, (_NAME_AAD, dir_id))
        except AuthenticationFailed as error:
            raise InvalidName("a name was not made in this directory") from error
        name = padded.rstrip(b"\0")
        if not name or len(name) > 255 or len(padded) != len(name) + -len(name) % 16:
            raise InvalidName("a name is padded wrongly")
        return name

    # --- directories --------------------------------------------------------------------------------------

    def dir_tag(self, parent_id: bytes, name: bytes) -> bytes:
        """Return the short tag that binds a directory to its place."""
        return hmac_sha256(self._home, b"d" + parent_id + name)[:DIR_TAG_BYTES]

    def seal_dir_id(self, dir_id: bytes, tags: list[bytes]) -> str:
        """Return the target of the `.kd` symlink: 59 characters for one tag, a fast symlink on ext4."""
        plain = dir_id + bytes([len(tags)]) + b"".join(tags)
        return _DIR_PREFIX + _encode(self._dir.seal(plain, (_DIR_AAD, self.volume_id)))

    def open_dir_id(self, target: str) -> tuple[bytes, list[bytes]]:
        """Return (directory id, tags of its places: one, or two while a rename is under way).

        Raises:
            CorruptVolume: if it was not made for this volume.
        """
        try:
            if not target.startswith(_DIR_PREFIX):
                raise CorruptVolume("a directory id is damaged")
            plain = self._dir.open(_decode(target.removeprefix(_DIR_PREFIX)), (_DIR_AAD, self.volume_id))
        except (AuthenticationFailed, InvalidName) as error:
            raise CorruptVolume("a directory id is damaged or of another volume") from error
        count, body = plain[16], plain[17:]
        if len(body) != count * DIR_TAG_BYTES or count not in (1, 2):
            raise CorruptVolume("a directory id has an impossible shape")
        return plain[:16], [body[i * DIR_TAG_BYTES : (i + 1) * DIR_TAG_BYTES] for i in range(count)]

    # --- symlinks and homes -------------------------------------------------------------------------------

    def seal_link(self, target: bytes, rng: Rng) -> str:
        """Return the text that a symlink's target is stored as; equal targets differ."""
        salt = rng(16)
        return _encode(salt + self._link.seal(target + bytes(-len(target) % 16), (_LINK_AAD, salt)))

    def open_link(self, text: str) -> bytes:
        """Return a symlink's plain target.

        Raises:
            CorruptFile: if it was not made by this volume.
        """
        try:
            raw = _decode(text)
            return self._link.open(raw[16:], (_LINK_AAD, raw[:16])).rstrip(b"\0")
        except (AuthenticationFailed, InvalidName) as error:
            raise CorruptFile("a symbolic link's target is damaged", IntegrityReason.NAME) from error

    def home_tag(self, dir_id: bytes, name: bytes) -> bytes:
        """Return the tag of a file's home: directory id and name."""
        return hmac_sha256(self._home, b"f" + dir_id + name)[:HOME_TAG_BYTES]

    def extras_name(self, owner: bytes) -> str:
        """Return the name on disk of the extras record of a file id or directory id."""
        return "x" + _encode(hmac_sha256(self._home, b"x" + owner)[:HOME_TAG_BYTES])


def _encode(raw: bytes) -> str:
    return binascii.b2a_base64(raw, newline=False).translate(_TO_URLSAFE).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    try:
        standard = text.encode("ascii").translate(_TO_STANDARD)
        raw = binascii.a2b_base64(standard + b"=" * (-len(text) % 4), strict_mode=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidName("not a name of this volume") from error
    if _encode(raw) != text:
        raise InvalidName("a name has a second spelling")
    return raw
