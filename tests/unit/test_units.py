"""systemd's own check of the units."""

import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "systemd"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_units_verify(tmp_path):
    for unit in FOLDER.glob("*.s*"):
        # ExecStart must exist for verify; the programs are installed elsewhere here.
        if unit.is_file():
            text = unit.read_text().replace("/usr/bin/kmsd", "/bin/true").replace("/usr/bin/kmsfs", "/bin/true")
            (tmp_path / unit.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(str(p) for p in tmp_path.iterdir() if "@" not in p.name), str(tmp_path / "kmsfs@.service")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and str(tmp_path) not in done.stderr, done.stderr


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_the_daemon_is_hardened():
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=10", str(FOLDER / "kmsd.service")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-400:]


def test_an_audit_line_is_canonical_whatever_its_fields():
    """The MAC is spliced in: the result is what encoding the whole record, sorted, would give."""
    import msgspec

    from kmsfs.formats.audit import join, split

    encoder = msgspec.json.Encoder(order="sorted")
    for record in (
        {"seq": 1}, {"gid": 1}, {}, {"a": 1, "z": 2}, {"ec": {"mac": "x", "z": "}"}, "op": "x", "seq": 3}, {"m": 1, "macx": 2},
        {"ec": {'x","mac":\0': '"mac":\0'}, "nul": "\0", "mad": "\0"}, {"who": "x"},
        {"gid": 0, "key": 'quo"ted,"mac":"', "params": {"mac": 1}, "seq": 1, "ts": 1.5},
    ):  # fmt: skip
        whole = encoder.encode({**record, "mac": "ab" * 16}) + b"\n"
        before, after = split(dict(record))
        assert before + after == encoder.encode(record), record
        assert join(before, after, b"\xab" * 16) == whole, record


def test_an_algorithm_that_the_library_lacks_is_named(monkeypatch):
    from cryptography.exceptions import UnsupportedAlgorithm

    from kmsfs import errors
    from kmsfs.aead import asymmetric

    class Lacking:
        @staticmethod
        def generate():
            raise UnsupportedAlgorithm("no")

    monkeypatch.setitem(asymmetric._OTHERS, "ML_DSA_44", Lacking)
    with pytest.raises(errors.UnsupportedOperation, match="ML_DSA_44"):
        asymmetric.generate_private("ML_DSA_44")


def test_lists_are_told_in_constraints_but_never_what_may_be_secret():
    from kmsfs.api.registry import find
    from kmsfs.api.validation import decode
    from kmsfs.errors import ShapeError

    def text(operation, **parameters):
        with pytest.raises(ShapeError) as caught:
            decode(find(operation), parameters)
        return caught.value.detail

    assert "Value '[a, b, c, d, e, f, g, h, i, j, k]' at 'names'" in text("GetParameters", Names=list("abcdefghijk"))
    for operation, parameters in (
        ("Encrypt", {"KeyId": "k", "Plaintext": b"x", "GrantTokens": ["hunter2"] * 11}),
        ("DescribeKey", {"KeyId": "k", "GrantTokens": ["hunter2"] * 11}),
        ("PutSecretValue", {"SecretId": "s", "SecretString": "hunter2" * 10_000}),
        ("DecryptBatch", {"Items": [{"CiphertextBlob": b"hunter2"}] * 100_000}),
        ("TagResource", {"KeyId": "k", "Tags": [{"TagKey": "hunter2", "TagValue": "hunter2"}] * 51}),
    ):
        assert "hunter2" not in text(operation, **parameters), operation


@pytest.mark.parametrize("mode, good", [(0o400, True), (0o440, True), (0o404, False), (0o444, False)])
def test_a_credential_may_have_an_acl(tmp_path, monkeypatch, mode, good):
    """systemd lets the unit's user read it by an ACL, which stat shows as the group's bits; a keyfile has none."""
    from kmsd.root.sources import Argon2Parameters, RootSource, SealType, read_root_key
    from kmsfs.errors import RootKeyMissing

    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    path = tmp_path / "kmsfs-root"
    path.write_bytes(b"k" * 32)
    path.chmod(mode)
    for kind, allowed in ((SealType.CREDENTIAL, good), (SealType.KEYFILE, mode == 0o400)):
        source = RootSource(kind, path, None)
        if allowed:
            assert read_root_key(source, Argon2Parameters()).reveal() == b"k" * 32
        else:
            with pytest.raises(RootKeyMissing):
                read_root_key(source, Argon2Parameters())
