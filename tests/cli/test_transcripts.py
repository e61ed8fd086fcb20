"""Golden transcripts: what commands print, kept as text. `KMSFS_UPDATE=1 pytest tests/cli/test_transcripts.py` rewrites them."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "transcripts"
# Only what differs from run to run is hidden; a placeholder keeps its kind and its number.
VARIABLE = [
    (re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"), "KEY"),
    (re.compile(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\.\d+)?(\+00:00|Z)?"), "TIME"),
    (re.compile(r"\b1[789]\d{8}(\.\d+)?\b"), "TIME"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "GRANT"),
    (re.compile(r"kgt1?[.:]?[A-Za-z0-9_-]{40,}={0,2}"), "TOKEN"),
    (re.compile(r"[A-Za-z0-9+/_-]{60,}={0,2}"), "BLOB"),
    (re.compile(r"(?<=[:\"])\d{12}(?=[:\"])|(?<=account {7})\d{12}"), "ACCOUNT"),
    (re.compile(r"(?<=secret:app/db-)[A-Za-z0-9]{6}\b"), "END"),
    (re.compile(r"/\S*/kmsd\.sock|/\S*pytest-\S*"), "PATH"),
    (re.compile(r"\bpid( +)\d+"), "PID"),
    (re.compile(r"\b\d+ s$", re.M), "SECONDS"),
    (re.compile(r"(?<=keys {10})\d+"), "COUNT"),
    (re.compile(r"(?<=state {9})\S+"), "PATH"),
]


def hide(text, seen):
    for pattern, word in VARIABLE:
        def place(match):
            if word == "TIME":
                return "<TIME>"
            names = seen.setdefault(word, {})
            return f"<{word}{names.setdefault(match[0], len(names) + 1)}>"

        text = pattern.sub(place, text)
    return text


def play(daemon, script):
    """Run `$ kmsfs …` lines; `< text` after one is its standard input. `{0}` is the first line of the first answer."""
    seen, firsts, shown = {}, [], []
    for line in script:
        command, _, given = line.partition(" <<< ")
        words = shlex.split(command.format(*firsts))
        environment = {**os.environ, "KMSFS_SOCKET": str(daemon.socket), "NO_COLOR": "1", "COLUMNS": "100"}
        done = subprocess.run([sys.executable, "-m", "kmsfs.cli", *words], env=environment, input=given,
                              capture_output=True, text=True, timeout=60)
        firsts.append(done.stdout.split("\n")[0])
        shown.append(f"$ kmsfs {command}" + (f" <<< {given!r}" if given else ""))
        shown += [f"  {part.rstrip()}" for part in done.stdout.splitlines()]
        shown += [f"! {part.rstrip()}" for part in done.stderr.splitlines()]
        if done.returncode:
            shown.append(f"= exit {done.returncode}")
    return hide("\n".join(shown) + "\n", seen)


SCRIPTS = {
    "keys": [
        "key create --description demo --alias alias/demo",
        "key list",
        "key describe alias/demo",
        "alias list",
        "key disable alias/demo",
        "key encrypt alias/demo <<< hello",
        "key enable alias/demo",
        "key rotate alias/demo",
        "key schedule-deletion alias/demo",
        "key schedule-deletion alias/demo --days 7 --yes",
        "key describe alias/demo --json",
        "key cancel-deletion alias/demo",
        "key describe alias/none",
        "key policy get alias/demo",
    ],
    "grants": [
        "key create --alias alias/g",
        "grant create {0} --to uid/1234 --operation Decrypt --name once --json",
        "grant create {0} --to uid/1234 --operation Nonsense",
        "grant list {0}",
        "grant revoke {0} nonsense",
    ],
    "parameters": [
        "param put /t/db --type SecureString --value-file - <<< s3cret",
        "param put /t/db --type SecureString --value-file - <<< again",
        "param put /t/plain --type String --value-file - <<< hello",
        "param put /t/big --type SecureString --tier Advanced --value-file - <<< large",
        "param get /t/db --with-decryption --raw",
        "param get /t/db",
        "param get /t/plain --json",
        "param list /t",
        "param history /t/db",
        "param get /t/none",
        "param delete /t/db",
        "param delete /t/db --yes",
    ],
    "kinds": [
        "key create --spec HMAC_256 --usage GENERATE_VERIFY_MAC --alias alias/mac --tag team=red",
        "key create --spec RSA_2048",
        "key create --spec ECC_NIST_P256 --usage SIGN_VERIFY --alias alias/signer",
        "key describe alias/signer",
        "key tag alias/mac team=blue stage=test",
        "key tags alias/mac",
        "key untag alias/mac stage",
        "key sign alias/mac ECDSA_SHA_256 <<< message",
        "key sign alias/signer ECDSA_SHA_384 <<< message",
        "key auto-rotate alias/mac",
        "key create --alias alias/plain",
        "key auto-rotate alias/plain --days 90",
        "key auto-rotate alias/plain --off",
        "key auto-rotate alias/plain --days 1",
    ],
    "aws": ["aws env", "daemon status"],
    "errors": [
        "volume info /nowhere",
        "umount /nowhere",
        "mount /dev/null /nowhere/x",
        "api NoSuchOperation <<< {}",
        "api DescribeKey <<< {",
        "api DescribeKey <<< {}",
        "nonsense",
        "key create --nonsense",
    ],
    "secrets": [
        "secret put app/db --value-file - --description database <<< first\n",
        "secret put app/db --value-file - <<< second\n",
        "secret get app/db --raw",
        "secret get app/db --stage AWSPREVIOUS",
        "secret describe app/db",
        "secret list",
        "secret versions app/db",
        "param put /exec/db/pass-word --type SecureString --value-file - <<< hidden\n",
        "exec --path /exec --secret OTHER=app/db --pristine -- sh -c 'echo $DB_PASS_WORD $OTHER'",
        "exec --var 1=/exec/db/pass-word -- true",
        "exec --path /exec -- /no/such/program",
        "secret delete app/db",
        "secret delete app/db --yes --days 7",
        "secret get app/db",
        "secret restore app/db",
        "secret delete app/db --now --yes",
        "secret get app/db",
    ],
    "paramtools": [
        "param import /tool/prod --file - <<< # comment\nDB_HOST=db.example # where\nexport TOKEN=\"a \\\"b\\\"\"\nRAW='x $y'\n",
        "param import /tool/prod --file - --format json <<< {\"deep\": {\"flag\": true, \"name\": \"n\"}}",
        "param tree /tool",
        "param export /tool/prod",
        "param export /tool/prod --format json",
        "param import /tool/prod --file - <<< DB_HOST=again\n",
        "param import /tool/prod --file - --overwrite --yes <<< DB_HOST=again\n",
        "param import /tool/prod --file - <<< nonsense\n",
        "param diff /tool/prod/DB_HOST 1",
        "param rollback /tool/prod/DB_HOST --to 1",
        "param get /tool/prod/DB_HOST --with-decryption --raw",
        "param copy /tool/prod /tool/test --recursive",
        "param copy /tool/prod/RAW /tool/one",
        "param tree /tool/test",
        "param copy /tool/none /tool/x --recursive",
    ],
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_transcript(daemon, name):
    shown = play(daemon, SCRIPTS[name])
    path = FOLDER / f"{name}.txt"
    if os.environ.get("KMSFS_UPDATE"):
        FOLDER.mkdir(exist_ok=True)
        path.write_text(shown)
    assert shown == path.read_text()
