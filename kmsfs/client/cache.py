"""Parameters held in memory: read in less than a microsecond, never of before a change that the daemon has told of."""

import threading
from dataclasses import dataclass

from kmsfs.client.changes import HEARD, LOST, RESET, ChangeStream
from kmsfs.client.session import ClientSession
from kmsfs.clock import passed
from kmsfs.errors import KmsfsError
from kmsfs.quantity import CACHE_IDLE_SECONDS


@dataclass(frozen=True, slots=True)
class _Held:
    value: str
    until: float


class ParameterCache:
    """`cache.get("/app/db")` asks the daemon once and then answers from memory until the parameter changes.

    What is held is used for at most 300 s, and only while the daemon was heard within ten seconds; else each `get` asks it. A change of any KMS key
    that the caller may know of drops everything, so that a revoked key takes its SecureStrings along. Thread-safe.
    """

    def __init__(self, *, socket: str | None = None, session: ClientSession | None = None) -> None:
        """Follow the daemon on `socket`, or on the one that the environment names.

        Raises:
            KmsfsError: if it cannot be reached or refuses.
        """
        self._session = session or ClientSession(socket=socket)
        self._stream = ChangeStream(self._session, sources=("ssm", "kms"))
        self._held: dict[str, _Held] = {}
        self._round = 0
        """Grows with each change, so that a value that was read before one is not held after it."""
        self._lock = threading.Lock()
        self._begun = threading.Event()
        self._failure: KmsfsError | None = None
        self._thread = threading.Thread(target=self._run, name="kmsfs-cache", daemon=True)
        self._thread.start()
        self._begun.wait()
        if self._failure is not None:
            raise self._failure

    def get(self, name: str) -> str:
        """Return a parameter's value, a SecureString in the clear; `name` may have a selector (`/app/db:3`).

        Raises:
            KmsfsError: as GetParameter.
        """
        held = self._held.get(name)
        now = passed()
        if held is not None and now < held.until and self._stream.lease.holds:
            return held.value
        before = self._round
        answer = self._session.call("GetParameter", {"Name": name, "WithDecryption": True})
        value: str = answer["Parameter"]["Value"]
        with self._lock:
            if self._round == before:
                self._held[name] = _Held(value, now + CACHE_IDLE_SECONDS)
        return value

    def close(self) -> None:
        """Stop following and forget what is held."""
        self._stream.close()
        self._thread.join(timeout=5)
        self._forget()

    def _run(self) -> None:
        try:
            for event in self._stream:
                if event["kind"] == HEARD:
                    self._begun.set()
                elif event["kind"] == LOST:
                    continue
                elif event["kind"] == RESET or event["source"] == "kms":
                    self._forget()
                else:
                    self._drop(event["name"])
        except KmsfsError as error:
            self._failure = error
        finally:
            self._begun.set()

    def _forget(self) -> None:
        with self._lock:
            self._round += 1
            self._held.clear()

    def _drop(self, name: str) -> None:
        with self._lock:
            self._round += 1
            for text in [text for text in self._held if _bare(text) == name.lstrip("/")]:
                del self._held[text]


def _bare(text: str) -> str:
    """Return the name in a text that may be an ARN or have a selector; a name of one level has two spellings."""
    if text.startswith("arn:"):
        text = text.partition(":parameter/")[2]
    return text.partition(":")[0].lstrip("/")
