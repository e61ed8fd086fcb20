"""What an alarm does: a program of the operator's, a request on loopback, a mail. One after the other, beside the watching."""

import json
import logging
import os
import queue
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from kmsfs.alarms.watching import Alarm
from kmsfs.errors import KmsfsError

_LOG = logging.getLogger("kmsfs.alarms")
_PROGRAM_SECONDS = 60
_WEBHOOK_SECONDS = 10
_WAITING_MAX = 256
SENDMAIL = "/usr/sbin/sendmail"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A receiver on loopback must not send the alarm elsewhere."""

    def redirect_request(self, *_arguments: Any, **_options: Any) -> None:
        return None


class Doer:
    """Does what alarms ask for, in a thread: a slow program holds up neither the watching nor another alarm's line."""

    def __init__(self, publish: Callable[[Alarm], None] | None = None) -> None:
        """`publish` tells the daemon's event stream of each alarm."""
        self._publish = publish
        self._waiting: queue.Queue[Alarm | None] = queue.Queue(_WAITING_MAX)
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects)
        self._thread = threading.Thread(target=self._work, name="kmsfs-alarms", daemon=True)
        self._thread.start()

    def take(self, alarm: Alarm) -> None:
        """Do an alarm's actions soon; dropped, with a word in the log, while too many wait."""
        actions = alarm.actions
        if self._publish is not None or actions.run or actions.webhook or actions.mail:
            try:
                self._waiting.put_nowait(alarm)
            except queue.Full:
                _LOG.error("alarm %s: its actions are dropped, as %d wait", alarm.name, _WAITING_MAX)

    def close(self) -> None:
        """Do what waits, then end."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (alarm := self._waiting.get()) is not None:
            text = json.dumps(alarm.document())
            if self._publish is not None:
                try:
                    self._publish(alarm)
                except KmsfsError as error:
                    _LOG.error("alarm %s: the key daemon does not take it: %s", alarm.name, error)
            for done, act in ((alarm.actions.run, self._run), (alarm.actions.webhook, self._post), (alarm.actions.mail, self._mail)):
                if done:
                    try:
                        act(alarm, text)
                    except (OSError, subprocess.SubprocessError, ValueError) as error:
                        _LOG.error("alarm %s: %s failed: %s", alarm.name, done, error)

    def _run(self, alarm: Alarm, text: str) -> None:
        environment = {**os.environ, "KMSFS_ALARM": alarm.name, "KMSFS_ALARM_ON": alarm.kind.value}
        done = subprocess.run(
            alarm.actions.run, input=text.encode(), env=environment, timeout=_PROGRAM_SECONDS, check=False
        )
        if done.returncode:
            _LOG.error("alarm %s: %s ended with %d", alarm.name, alarm.actions.run[0], done.returncode)

    def _post(self, alarm: Alarm, text: str) -> None:
        request = urllib.request.Request(  # noqa: S310  (http:// on loopback: the rules were checked)
            alarm.actions.webhook, text.encode(), {"Content-Type": "application/json"}, method="POST"
        )
        try:
            with self._opener.open(request, timeout=_WEBHOOK_SECONDS):
                pass
        except urllib.error.HTTPError as error:
            _LOG.error("alarm %s: the webhook answered %d", alarm.name, error.code)

    def _mail(self, alarm: Alarm, text: str) -> None:
        subject = " ".join(f"kmsfs alarm: {alarm.name}".split()).encode("ascii", "replace").decode()
        letter = f"To: {alarm.actions.mail}\nSubject: {subject}\nContent-Type: text/plain; charset=utf-8\n\n{_pretty(text)}\n"
        command = [SENDMAIL, "-i", "--", alarm.actions.mail]
        subprocess.run(command, input=letter.encode(), timeout=_PROGRAM_SECONDS, check=True)


def _pretty(text: str) -> str:
    return json.dumps(json.loads(text), indent=2, sort_keys=True)
