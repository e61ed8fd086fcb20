"""The HTTP door beside moto's server: one boto3 client, and one that sends a request signed once again and again."""

import http.client
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kmsfs.cli.benchrealm import bench_realm, end_process, processor_seconds
from kmsfs.errors import StorageError, UsageError

_CALLS = 300
_SIGNED_CALLS = 1000
_START_SECONDS = 30.0
_REGION = "us-east-1"
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _Server:
    """One that is measured: its name, process, endpoint and credentials."""

    name: str
    pid: int
    url: str
    access_key: str
    secret_key: str
    token: str | None

    def client(self, service: str) -> Any:
        """Return boto3's client for a service of it."""
        import boto3

        return boto3.client(
            service, endpoint_url=self.url, region_name=_REGION, aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key, aws_session_token=self.token,
        )  # fmt: skip


def bench_door(peers: list[str], rounds: int, folder: Path, tell: Tell) -> dict[str, Any]:
    """Return one table: calls a second and the server's processor time for each, by operation and server; rounds alternate.

    Raises:
        UsageError: if a peer is not known, or it or boto3 is not installed.
        DaemonUnreachable, StorageError: if a server cannot be started.
    """
    if not set(peers) <= {"moto"}:
        raise UsageError(f"no such peer of the door: {', '.join(peers)}", hint="moto is one")
    try:
        import boto3  # noqa: F401
    except ImportError as error:
        raise UsageError("boto3 is not installed", hint="pip install kmsfs[aws]") from error
    with ExitStack() as servers:
        measured = [servers.enter_context(_kmsfs(folder))]
        measured += [servers.enter_context(_moto()) for _ in peers]
        work = {server.name: _operations(server) for server in measured}
        rows = []
        for operation in next(iter(work.values())):
            row: list[Any] = [operation]
            found: dict[str, list[tuple[float, float]]] = {server.name: [] for server in measured}
            for _ in range(rounds):
                for server in measured:
                    tell(f"{operation} of {server.name}")
                    found[server.name].append(_timed(server.pid, *work[server.name][operation]))
            for results in found.values():
                row += [round(statistics.median(rate for rate, _ in results)), round(statistics.median(cpu for _, cpu in results))]
            rows.append(row)
    columns = ["operation", *(text for server in measured for text in (f"{server.name} calls/s", f"{server.name} server us"))]
    return {"door": {"columns": columns, "rows": rows}}


def _timed(pid: int, call: Callable[[], object], count: int) -> tuple[float, float]:
    """Return (calls a second, the server's processor time for each in microseconds)."""
    call()
    used, began = processor_seconds(pid), time.perf_counter()
    for _ in range(count):
        call()
    passed = time.perf_counter() - began
    return count / passed, (processor_seconds(pid) - used) / count * 1e6


def _operations(server: _Server) -> dict[str, tuple[Callable[[], object], int]]:
    """Return what is measured: a call, and how many of it make a round."""
    kms, ssm = server.client("kms"), server.client("ssm")
    key = kms.create_key()["KeyMetadata"]["KeyId"]
    blob = kms.encrypt(KeyId=key, Plaintext=b"secret")["CiphertextBlob"]
    name = "/kmsfs-bench/door"
    ssm.put_parameter(Name=name, Value="secret", Type="SecureString", KeyId=key)
    send = _signed(server, key)
    return {
        "Encrypt": (lambda: kms.encrypt(KeyId=key, Plaintext=b"secret"), _CALLS),
        "Decrypt": (lambda: kms.decrypt(CiphertextBlob=blob), _CALLS),
        "GenerateDataKey": (lambda: kms.generate_data_key(KeyId=key, KeySpec="AES_256"), _CALLS),
        "GetParameter(SecureString)": (lambda: ssm.get_parameter(Name=name, WithDecryption=True), _CALLS),
        "PutParameter": (lambda: ssm.put_parameter(Name=f"{name}/text", Value="text", Type="String", Overwrite=True), _CALLS),
        "Encrypt, signed once": (send, _SIGNED_CALLS),
    }


def _signed(server: _Server, key: str) -> Callable[[], None]:
    """Return what sends an Encrypt over one connection; its signature is made once and holds for some minutes."""
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    headers = {"X-Amz-Target": "TrentService.Encrypt", "Content-Type": "application/x-amz-json-1.1"}
    body = f'{{"KeyId": "{key}", "Plaintext": "c2VjcmV0"}}'
    request = AWSRequest("POST", f"{server.url}/", headers, body)
    SigV4Auth(Credentials(server.access_key, server.secret_key, server.token), "kms", _REGION).add_auth(request)
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc)

    def send() -> None:
        """Send the signed request once more, and take its answer."""
        connection.request("POST", "/", body, dict(request.headers))
        answer = connection.getresponse()
        said = answer.read()
        if answer.status != http.HTTPStatus.OK:
            raise StorageError(f"{server.name} answered {answer.status} to the benchmark: {said[:200]!r}")

    return send


@contextmanager
def _kmsfs(folder: Path) -> Iterator[_Server]:
    with bench_realm(folder, "--aws-endpoint", "127.0.0.1:0", "--aws-region", _REGION) as realm:
        made = realm.call("GetSessionToken")["Credentials"]
        url = realm.call("GetStatus")["AwsEndpoint"]
        yield _Server("kmsfs", realm.pid, url, made["AccessKeyId"], made["SecretAccessKey"], made["SessionToken"])


@contextmanager
def _moto() -> Iterator[_Server]:
    program = shutil.which("moto_server") or shutil.which("moto_server", path=str(Path(sys.executable).parent))
    if program is None:
        raise UsageError("moto_server is not installed", hint="pip install 'moto[server]'")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([program, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise StorageError("moto_server does not start") from error
                time.sleep(0.05)
        yield _Server("moto", process.pid, f"http://127.0.0.1:{port}", "testing", "testing", None)
    finally:
        end_process(process)
