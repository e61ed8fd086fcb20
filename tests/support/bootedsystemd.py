"""A real systemd as PID 1 of its own namespaces, with private /tmp, /run, /var/tmp and /etc; driven through nsenter.

Its tmpfiles empty /tmp and /run at boot, so those are private before it starts. What must outlive a reboot of that
systemd lies in the folder `kept`: a copy of /etc, the daemon's state, and /srv.
"""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

_BOOT = """
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /run
for folder in /tmp /var/tmp; do mount -t tmpfs tmpfs $folder; done
mount -t proc proc /proc
umount -R /sys/fs/cgroup 2>/dev/null || true
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount --bind {kept}/etc /etc
mount --bind {kept}/sbin /usr/sbin
mount --bind {kept}/lib /var/lib
mount --bind {kept}/log /var/log
mount --bind {kept}/srv /srv
mkdir -p /usr/local/share/man
mount --bind {kept}/man /usr/local/share/man
# Shared among the namespaces that this systemd makes, as at a real boot: credentials are mounted in one of those first.
mount --make-rshared /
hostname kmsfs-test
export container=kmsfs-test
exec /lib/systemd/systemd --system --unit=multi-user.target --log-target=console
"""


class BootedSystemd:
    """Boot, talk, reboot, end; every step is bounded in time."""

    def __init__(self, kept: Path) -> None:
        self.kept = kept
        self.outer = None
        self.pid = 0
        for name, source in (("etc", "/etc"), ("sbin", "/usr/sbin")):
            if not (kept / name).exists():
                subprocess.run(["cp", "-a", source, str(kept / name)], check=True)
        for name in ("lib", "log", "srv", "man"):
            (kept / name).mkdir(exist_ok=True)
        units = kept / "etc/systemd/system"
        shutil.rmtree(units)
        units.mkdir()
        (kept / "etc/fstab").write_text("")
        # Nothing of the machine's own that would reach out or wait.
        for unit in ("systemd-timesyncd.service", "systemd-networkd.service", "getty.target", "systemd-logind.service", "cron.service",
                     "postgresql.service", "ssh.service", "apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_reap.service"):  # fmt: skip
            (units / unit).symlink_to("/dev/null")

    def boot(self) -> "BootedSystemd":
        self.log = open(self.kept / "console.log", "ab")
        self.outer = subprocess.Popen(
            ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--uts", "--ipc", "--cgroup", "bash", "-c",
             _BOOT.format(kept=self.kept)],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            self.pid = self._child()
            if self.pid and self.systemctl("is-system-running", check=False).stdout.strip() in ("running", "degraded"):
                return self
            time.sleep(0.2)
        raise RuntimeError(f"systemd does not come up: {(self.kept / 'console.log').read_text()[-2000:]}")

    def _child(self) -> int:
        try:
            text = Path(f"/proc/{self.outer.pid}/task/{self.outer.pid}/children").read_text()
        except FileNotFoundError:
            return 0
        return int(text.split()[0]) if text.split() else 0

    def run(self, *command: str, check=True, timeout=60, **options) -> subprocess.CompletedProcess:
        done = subprocess.run(
            ["nsenter", "-t", str(self.pid), "-a", "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", *command],
            capture_output=True, text=True, timeout=timeout, check=False, **options,
        )  # fmt: skip
        if check and done.returncode:
            raise RuntimeError(f"{command} failed: {done.stdout[-1500:]}{done.stderr[-1500:]}")
        return done

    def systemctl(self, *words: str, check=True) -> subprocess.CompletedProcess:
        return self.run("systemctl", "--no-pager", *words, check=check)

    def main_pid(self, unit: str) -> int:
        return int(self.systemctl("show", "-P", "MainPID", unit).stdout)

    def outside_pid(self, inside: int) -> int:
        """Return the number that this namespace gives to a process of the inner one."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    lines = (entry / "status").read_text().splitlines()
                except OSError:
                    continue
                numbers = next((line.split()[1:] for line in lines if line.startswith("NSpid:")), [])
                same = os.path.exists(f"/proc/{self.pid}/ns/pid") and len(numbers) > 1 and int(numbers[-1]) == inside
                if same and os.readlink(f"{entry}/ns/pid") == os.readlink(f"/proc/{self.pid}/ns/pid"):
                    return int(entry.name)
        raise LookupError(inside)

    def shutdown(self) -> None:
        """Power off cleanly; if that takes too long, end the namespace by its PID."""
        if self.outer is None:
            return
        try:
            os.kill(self.pid, signal.SIGRTMIN + 4)
            self.outer.wait(40)
        except (subprocess.TimeoutExpired, ProcessLookupError):
            os.killpg(self.outer.pid, signal.SIGKILL)
            self.outer.wait(20)
        self.outer = None
        self.log.close()
