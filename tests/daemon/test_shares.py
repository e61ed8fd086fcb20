"""Recovery shares: any M of N bring everything back, fewer do not, and mistakes are said."""

import itertools
import json
import os
import subprocess
import sys

import pytest

from kmsd.root.shares import SHARE_WORDS, join_shares, make_shares
from kmsfs.errors import ExitCode, RootKeyMissing, UsageError
from kmsfs.secret import KeyMaterial


def test_any_three_of_five_and_no_two():
    key = os.urandom(32)
    made = make_shares(KeyMaterial(key), 3, 5)
    assert len(set(made)) == 5 and all(len(share.split()) == SHARE_WORDS for share in made)
    for some in itertools.combinations(made, 3):
        assert join_shares(list(some)).reveal() == key
    for some in itertools.combinations(made, 2):
        with pytest.raises(RootKeyMissing):
            join_shares(list(some))
    # More than enough, twice the same, other letters and spaces.
    assert join_shares([made[4].upper(), f"  {made[1]}  ", made[1], made[0], "", made[2]][:5]).reveal() == key


def test_mistakes_are_said():
    made = make_shares(KeyMaterial(os.urandom(32)), 2, 3)
    words = made[0].split()
    words[5] = "academic" if words[5] != "academic" else "acid"
    for wrong in ([" ".join(words), made[1]], [made[0], "word " * 33], [made[0], make_shares(KeyMaterial(os.urandom(32)), 2, 2)[0]],
                  [made[0], made[0]], [], [make_shares(KeyMaterial(os.urandom(16)), 2, 2)[0]] * 2):  # fmt: skip
        with pytest.raises(RootKeyMissing):
            join_shares(wrong)
    with pytest.raises(RootKeyMissing, match="something else"):
        join_shares(make_shares(KeyMaterial(os.urandom(16)), 2, 2))
    for threshold, count in ((1, 3), (4, 3), (2, 17), (0, 0)):
        with pytest.raises(UsageError):
            make_shares(KeyMaterial(bytes(32)), threshold, count)


def test_the_reference_vectors_of_the_standard():
    """SLIP-0039, test vector 4: two of three, a secret of 16 bytes under the passphrase of the vectors."""
    from shamir_mnemonic import combine_mnemonics

    shares = [
        "shadow pistol academic always adequate wildlife fancy gross oasis cylinder mustang wrist rescue view short owner flip making coding armed",
        "shadow pistol academic acid actress prayer class unknown daughter sweater depict flip twice unkind craft early superior advocate guest smoking",
    ]
    assert combine_mnemonics(shares, b"TREZOR").hex() == "b43ceb7e57a0ea8766221624d01b0864"


def kmsd(*arguments, stdin=""):
    command = [sys.executable, "-m", "kmsd", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, input=stdin)


def test_shares_recover_a_realm(fresh_daemon, tmp_path):
    session = fresh_daemon.start().session()
    key = session.call("CreateKey", {})["KeyMetadata"]["KeyId"]
    blob = session.call("Encrypt", {"KeyId": key, "Plaintext": b"x"})["CiphertextBlob"]
    state = ("--state", fresh_daemon.state)
    made = json.loads(kmsd("shares", "--threshold", "2", "--of", "3", *state, "--json").stdout)["shares"]
    assert kmsd("shares", "--threshold", "1", "--of", "3", *state).returncode == ExitCode.USAGE
    assert "Any 2 of these 3 lines" in kmsd("shares", "--threshold", "2", "--of", "3", *state).stdout
    two = "\n".join(made[1:]) + "\n"
    assert "opens all of it" in kmsd("recovery-drill", *state, stdin=two).stdout
    assert kmsd("recovery-drill", *state, stdin=made[0] + "\n\n").returncode == RootKeyMissing.exit_code
    archive = tmp_path / "b.kmsbackup"
    assert kmsd("backup", archive, *state).returncode == 0
    fresh_daemon.stop()
    # The keyfile is lost: two people bring it back.
    os.unlink(fresh_daemon.state / "root.key")
    refused = kmsd("serve", *state, "--socket", fresh_daemon.socket)
    assert refused.returncode == RootKeyMissing.exit_code
    assert kmsd("recover", *state, stdin=two).returncode == 0
    assert fresh_daemon.start().session().call("Decrypt", {"CiphertextBlob": blob})["Plaintext"] == b"x"
    fresh_daemon.stop()
    # All is lost but the backup, and a file with two shares.
    (tmp_path / "shares").write_text(two)
    done = kmsd("restore", archive, "--state", tmp_path / "elsewhere", "--code-file", tmp_path / "shares")
    assert done.returncode == 0, done.stderr
