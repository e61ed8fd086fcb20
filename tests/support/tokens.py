"""PKCS #11 tokens for tests: SoftHSM's, and a software TPM behind tpm2-pkcs11. Both are Debian packages that .ci/run installs."""

import contextlib
import os
import socket
import subprocess
import time
from pathlib import Path

SOFTHSM = Path("/usr/lib/softhsm/libsofthsm2.so")
TPM2_PKCS11 = Path("/usr/lib/x86_64-linux-gnu/pkcs11/libtpm2_pkcs11.so")
PIN = "correct-pin"


def run(*command, **more):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def make_softhsm(folder, label="kmsfs"):
    """Make a token; return what names it. SOFTHSM2_CONF has to be in the environment of who uses it, as it is in ours from now on."""
    (folder / "tokens").mkdir(exist_ok=True, parents=True)
    settings = folder / "softhsm2.conf"
    settings.write_text(f"directories.tokendir = {folder}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n")
    os.environ["SOFTHSM2_CONF"] = str(settings)
    run("softhsm2-util", "--init-token", "--free", "--label", label, "--pin", PIN, "--so-pin", "so-pin-of-it")
    return f"{SOFTHSM}:{label}"


@contextlib.contextmanager
def software_tpm(folder, label="tpm"):
    """Run a TPM in software with a token in it; yield what names the token."""
    (folder / "state").mkdir(parents=True)
    (folder / "store").mkdir()
    port = free_port_pair()
    process = subprocess.Popen(
        ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={folder}/state", "--ctrl", f"type=tcp,port={port + 1}",
         "--server", f"type=tcp,port={port}", "--flags", "not-need-init,startup-clear"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 20
        while not answers(port):
            assert time.monotonic() < deadline and process.poll() is None, "swtpm does not start"
            time.sleep(0.05)
        where = f"swtpm:host=127.0.0.1,port={port}"
        os.environ.update(TPM2_PKCS11_TCTI=where, TPM2_PKCS11_STORE=str(folder / "store"), TPM2TOOLS_TCTI=where)
        tools = {**os.environ, "PATH": f"{flushing_tools(folder / 'tools')}:{os.environ['PATH']}"}
        run("tpm2_ptool", "init", env=tools)
        run("tpm2_ptool", "addtoken", "--pid=1", f"--label={label}", "--sopin=so-pin-of-it", f"--userpin={PIN}", env=tools)
        yield f"{TPM2_PKCS11}:{label}"
    finally:
        process.kill()
        process.wait()


def answers(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def free_port_pair():
    """swtpm's clients take the control port to be the one after."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            try:
                two.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


def flushing_tools(folder):
    """tpm2-tools that forget their objects: a TPM has room for three, and there is no resource manager here as /dev/tpmrm0 is one."""
    folder.mkdir()
    for tool in Path("/usr/bin").glob("tpm2_*"):
        if tool.name not in ("tpm2_ptool", "tpm2_flushcontext"):
            script = folder / tool.name
            script.write_text(f'#!/bin/sh\n{tool} "$@"\nrc=$?\n/usr/bin/tpm2_flushcontext -t 2>/dev/null\nexit $rc\n')
            script.chmod(0o755)
    return folder
