"""kmsfs mount, umount, volume, check, inspect, bench."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kmsfs.cli import sharing, volumekey
from kmsfs.cli.background import serve_mount
from kmsfs.cli.output import SETTINGS, confirm, facts, say, session, show
from kmsfs.errors import ExitCode, KmsfsError, UsageError

if TYPE_CHECKING:
    from kmsfs.check.rekey import RekeyReport
    from kmsfs.check.rescue import RescueReport
    from kmsfs.check.rewrap import RewrapReport
    from kmsfs.check.scrub import ScrubReport
    from kmsfs.check.verify import Report

volume_app = typer.Typer(no_args_is_help=True, help="Encrypted volumes.")
volume_app.add_typer(volumekey.app, name="key")
volume_app.command("snapshot")(sharing.snapshot)
volume_app.command("share")(sharing.share)
volume_app.command("receive")(sharing.receive)
CipherDir = Annotated[Path, typer.Argument(metavar="CIPHERDIR", help="Directory of the encrypted files.")]
MountPoint = Annotated[
    Path, typer.Argument(metavar="MOUNTPOINT", help="Directory where they appear readable.")
]
TRANSPORTS = ("kernel", "fusepy")
_ID_MAX = 0xFFFFFFFE
"""The one above stands for no user (chown(2))."""


def mount(
    cipher_dir: CipherDir,
    mountpoint: MountPoint,
    key: Annotated[
        str | None, typer.Option(help="KMS key of a new volume (default alias/kmsfs/default).")
    ] = None,
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay until it is unmounted.")] = False,
    transport: Annotated[str, typer.Option(help="kernel, or fusepy where that cannot run.")] = "kernel",
    allow_other: Annotated[
        bool, typer.Option("--allow-other", help="Let other users in, by file modes.")
    ] = False,
    read_only: Annotated[bool, typer.Option("--read-only", help="Change nothing.")] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Read what another mount of the volume writes, on this host or on another.")
    ] = False,
    recover: Annotated[bool, typer.Option("--recover", help="Accept files with one damaged header.")] = False,
    low_latency: Annotated[
        bool,
        typer.Option(help="As root: keep idle processors awake while requests come. Faster, for power."),
    ] = True,
    keys_ahead: Annotated[
        bool,
        typer.Option(help="Files read one after the other: get the next ones' data keys early, audited as Decrypt."),
    ] = True,
    memory: Annotated[
        int, typer.Option(min=128, metavar="MIB", help="About how much memory to use for what is remembered.")
    ] = 256,
    cache: Annotated[
        str, typer.Option(help="What the kernel keeps: full, metadata (names and attributes, no contents), or none.")
    ] = "full",
    chunk: Annotated[
        int | None, typer.Option(metavar="KIB", help="Of a new volume: how much is encrypted at once, 4 to 1024 (default 16).")
    ] = None,
    idle: Annotated[str | None, typer.Option(metavar="TIME", help="Unmount when nobody used it for so long: 30m, 2h.")] = None,
    uid: Annotated[int | None, typer.Option(min=0, max=_ID_MAX, help="Show everything as this user's.")] = None,
    gid: Annotated[int | None, typer.Option(min=0, max=_ID_MAX, help="Show everything as this group's.")] = None,
) -> None:
    """Mount an encrypted directory; makes it on first use. Example: kmsfs mount ~/cipher ~/plain"""
    from kmsfs.cli.grant import seconds_of
    from kmsfs.cli.successor import successor
    from kmsfs.mount.request import CACHES, CHUNKS, MountRequest, check_places
    from kmsfs.mount.run import run_mount

    for what, chosen, known in (("transport", transport, TRANSPORTS), ("cache", cache, CACHES)):
        if chosen not in known:
            raise UsageError(f"no {what} {chosen!r}", hint=f"one of {', '.join(known)}")
    if chunk is not None and chunk not in CHUNKS:
        raise UsageError(f"no chunk of {chunk} KiB", hint=f"one of {', '.join(map(str, CHUNKS))}")
    idle_seconds = seconds_of(idle) if idle else None
    if transport != "kernel" and (idle_seconds or cache != "full"):
        raise UsageError("--idle and --cache are for the kernel transport")
    request = MountRequest(
        cipher_dir.absolute(), mountpoint.absolute(), key, transport, allow_other, read_only or follow, recover,
        low_latency, keys_ahead, memory << 20, follow, cache, CHUNKS[chunk] if chunk else None, idle_seconds, uid, gid,
    )  # fmt: skip
    check_places(request)
    talk = session()
    following = successor(request.mountpoint, SETTINGS.socket, autostart=SETTINGS.autostart, foreground=foreground)
    serve_mount(
        lambda ready: run_mount(request, talk, following, ready), request.mountpoint,
        f"{cipher_dir} is mounted on {mountpoint}", foreground=foreground,
    )  # fmt: skip


def umount(
    mountpoint: MountPoint,
    lazy: Annotated[
        bool, typer.Option("--lazy", help="Detach now, end when nothing uses it any more.")
    ] = False,
) -> None:
    """Unmount, and wait until everything is stored."""
    from kmsfs.mount.run import unmount

    unmount(mountpoint.absolute(), lazy=lazy)
    show({}, lambda: say(f"{mountpoint} is unmounted"))


@volume_app.command()
def info(cipher_dir: CipherDir) -> None:
    """Describe a volume: its KMS key, its options, whether you may open it."""
    from kmsfs.check.inspect import inspect_path
    from kmsfs.mount.volume import decrypt_volume_keys, read_config

    found: dict[str, Any] = inspect_path(cipher_dir)
    config, mac = read_config(cipher_dir)
    try:
        decrypt_volume_keys(config, session()).check_config(config.signed_bytes(), mac)
        found["access"] = "allowed"
    except KmsfsError as error:
        found["access"] = f"refused: {error.detail}"
    show(found, lambda: facts((name.replace("_", " "), value) for name, value in found.items()))


@volume_app.command()
def restart(
    mountpoints: Annotated[
        list[Path] | None, typer.Argument(metavar="MOUNTPOINT…", help="Where volumes are mounted.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All volumes that you have mounted on this machine.")] = False,
) -> None:
    """Let the kmsfs that is installed now serve a mount, after an upgrade: open files and working directories stay. Example: kmsfs volume restart --all"""
    from kmsfs.mount.control import ask_restart
    from kmsfs.mount.mounttable import VOLUME, find_mounted, mounted_volumes

    if bool(mountpoints) == every:
        raise UsageError("name the mountpoints, or say --all")
    chosen = [entry for entry in mounted_volumes() if entry.uid == os.getuid()] if every else []
    for point in mountpoints or []:
        entry = find_mounted(point)
        if entry is None or entry.kind != VOLUME:
            raise UsageError(f"{point} is not a kmsfs mount")
        chosen.append(entry)
    done = []
    for entry in chosen:
        told = {"mountpoint": entry.point, **ask_restart(entry)}
        done.append(told)
        say(
            f"{entry.point} is served by kmsfs {told['version']} now; requests waited {told['waited_seconds']:.2f} s, "
            f"{told['open_files']} open files stayed open"
        )
    show({"restarted": done}, lambda: None)


@volume_app.command()
def accept_restore(
    cipher_dir: CipherDir,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Take a volume that a backup was restored into, or that was moved here, as it is now."""
    from kmsfs.mount.freshness import accept_restore as accept

    confirm(
        "What is there now will count as the newest, also what somebody else may have put back",
        os.fspath(cipher_dir),
        yes=yes,
    )
    accept(cipher_dir, session())
    show({}, lambda: say(f"{cipher_dir} is accepted as it is; its next mount begins new freshness records"))


@volume_app.command()
def rekey(cipher_dir: CipherDir) -> None:
    """Give every file a new data key and encrypt its content anew, where an old one may have become known. Not while it is mounted. Example: kmsfs volume rekey ~/cipher

    Needs room for what it has under way: the largest file once more, at least 64 MiB. Run again, it begins anew.
    """
    from kmsfs.cli.rewrapping import rekey_volume

    report = rekey_volume(cipher_dir, session())
    show(report.document(), lambda: _print_rekeyed(report))
    if report.failed:
        raise typer.Exit(ExitCode.DAMAGE_FOUND)


def _print_rekeyed(report: "RekeyReport") -> None:
    for name, problem in report.failed:
        print(f"failed    {name}  ({problem})")
    failed = f", {len(report.failed)} failed and are as they were" if report.failed else ""
    say(f"{report.rekeyed} of {report.files} files, {report.content_bytes} bytes, have new data keys{failed}")


@volume_app.command()
def records(
    cipher_dir: CipherDir,
    in_volume: Annotated[bool, typer.Option("--in-volume", help="Beside the ciphertext, where other hosts find them too.")] = False,
    in_state: Annotated[bool, typer.Option("--in-state", help="In your own state folder on this host.")] = False,
) -> None:
    """Say, or choose, where the freshness records of an unmounted volume lie. Example: kmsfs volume records /shared/cipher --in-volume

    In the volume they still tell when files were put back after a clean unmount; of an unclean one only those in the state do.
    """
    from kmsfs.mount.freshness import move_records, records_path
    from kmsfs.mount.volume import read_config

    if in_volume and in_state:
        raise UsageError("--in-volume or --in-state, not both")
    if in_volume or in_state:
        place = move_records(cipher_dir, session(), into_volume=in_volume)
    else:
        place = records_path(read_config(cipher_dir)[0].volume_id, cipher_dir)
    show({"records": os.fspath(place)}, lambda: say(f"the freshness records of {cipher_dir} lie in {place}"))


@volume_app.command()
def scrub(
    mountpoint: MountPoint,
    rate: Annotated[float | None, typer.Option(min=0.1, metavar="MIB", help="Read no more than so many MiB a second.")] = None,
    limit: Annotated[int, typer.Option(help="Problems to print; JSON has them all.")] = 50,
) -> None:
    """Read every byte of a mounted volume from the disk, while it is used. Exit code 21: something cannot be read. Example: kmsfs volume scrub ~/plain --rate 50

    What is named is damaged, or not yours to read: after unmounting, `kmsfs check` tells more.
    """
    from kmsfs.check.scrub import scrub as read_all
    from kmsfs.cli.output import byte_progress
    from kmsfs.mount.mounttable import VOLUME, find_mounted

    entry = find_mounted(mountpoint)
    if entry is None or entry.kind != VOLUME:
        raise UsageError(f"{mountpoint} is not a kmsfs mount", hint="for a volume that is not mounted: kmsfs check CIPHERDIR")
    facts_of = os.statvfs(mountpoint)
    with byte_progress("scrubbing", (facts_of.f_blocks - facts_of.f_bfree) * facts_of.f_frsize) as advance:
        report = read_all(Path(entry.point), advance, rate * 1_048_576 if rate else None)
    show(report.document(), lambda: _print_scrubbed(report, limit))
    if report.problems:
        raise typer.Exit(ExitCode.DAMAGE_FOUND)


def _print_scrubbed(report: "ScrubReport", limit: int) -> None:
    for path, problem in report.problems[:limit]:
        print(f"{path}  ({problem})")
    if len(report.problems) > limit:
        print(f"… and {len(report.problems) - limit} more")
    told = f"{len(report.problems)} could not be read" if report.problems else "all as written"
    say(f"read {report.files} files, {report.content_bytes} bytes: {told}")


def check(
    cipher_dir: CipherDir,
    limit: Annotated[int, typer.Option(help="Findings to print; JSON has them all.")] = 50,
    repair: Annotated[
        bool, typer.Option("--repair", help="Mend headers of which the other one is good, remove leftovers.")
    ] = False,
    quarantine: Annotated[
        bool, typer.Option("--quarantine", help="With --repair: move what is damaged beyond that into CIPHERDIR/.damaged.")
    ] = False,
    go_on: Annotated[
        bool, typer.Option("--continue", help="After a check that was cut off: contents that it verified, and that did not change, are not read again.")
    ] = False,
) -> None:
    """Verify every byte of a volume that is not mounted, changing nothing unless asked. Exit code 21: something is damaged."""
    from kmsfs.cli.checking import check_volume, repair_volume

    if quarantine and not repair:
        raise UsageError("--quarantine goes with --repair")
    talk = session()
    report = check_volume(cipher_dir, talk, go_on=go_on)
    document = report.document()
    if repair and (report.findings or report.doubtful):
        done = repair_volume(cipher_dir, talk, report, set_aside=quarantine)
        for where, what in done.done:
            say(f"{where}: {what}")
        report = check_volume(cipher_dir, talk)
        document = {**report.document(), **done.document()}
    show(document, lambda: _print_report(report, limit))
    if report.damaged:
        raise typer.Exit(ExitCode.DAMAGE_FOUND)


def _print_report(report: "Report", limit: int) -> None:
    for finding in report.findings[:limit]:
        print(f"{finding.kind:9} {finding.path}  ({finding.problem}; stored as {finding.stored_as})")
    if len(report.findings) > limit:
        print(f"… and {len(report.findings) - limit} more")
    counts = f"{report.files} files, {report.directories} directories, {report.plain_bytes} bytes"
    bad = sum(finding.kind == "damage" for finding in report.findings)
    unread = sum(finding.kind == "unread" for finding in report.findings)
    left = sum(finding.kind == "leftover" for finding in report.findings)
    told = [f"{bad} damaged"] * bool(bad) + [f"{unread} could not be looked into"] * bool(unread) + [f"{left} left over"] * bool(left)
    say(f"checked {counts}: {', '.join(told) or 'all as written'}")


def rescue(
    cipher_dir: CipherDir,
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="An empty directory for what can be read.")],
    limit: Annotated[int, typer.Option(help="Problems to print; JSON has them all.")] = 50,
) -> None:
    """Bring whatever can still be read out of a damaged volume; the volume is not changed. Exit code 21: something is lost."""
    from kmsfs.cli.checking import rescue_volume

    report = rescue_volume(cipher_dir, target.absolute(), session())
    show(report.document(), lambda: _print_rescued(report, target, limit))
    if report.problems:
        raise typer.Exit(ExitCode.DAMAGE_FOUND)


def _print_rescued(report: "RescueReport", target: Path, limit: int) -> None:
    for path, problem in report.problems[:limit]:
        print(f"{path}  ({problem})")
    if len(report.problems) > limit:
        print(f"… and {len(report.problems) - limit} more")
    lost = f"{report.lost_files} files and {report.lost_bytes} bytes of others are lost"
    if report.refused_files:
        lost += f", {report.refused_files} files could not be looked into: try those again"
    say(f"rescued {report.files} files, {report.plain_bytes} bytes into {target}; {lost}")


def rewrap(
    cipher_dir: CipherDir,
    to: Annotated[str | None, typer.Option(help="KMS key to move to; the volume's own if none.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only count which key material wraps how many headers.")
    ] = False,
) -> None:
    """Wrap every file's data key anew, after `kmsfs key rotate` or under another key. Content stays as it is."""
    from kmsfs.cli.rewrapping import rewrap_volume

    report = rewrap_volume(cipher_dir, session(), to, dry_run=dry_run)
    show(report.document(), lambda: _print_rewrapped(report, dry_run=dry_run))
    if report.failed:
        raise typer.Exit(ExitCode.DAMAGE_FOUND)


def _print_rewrapped(report: "RewrapReport", *, dry_run: bool) -> None:
    from kmsfs.cli.output import table

    rows = [
        (entry["key_id"], entry["material_version"], entry["headers"]) for entry in report.document()["headers"]
    ]
    table(("KMS key", "material version", "headers under it"), rows)
    for name, problem in report.failed:
        print(f"failed    {name}  ({problem})")
    done = "counted" if dry_run else f"rewrapped {report.rewrapped} of"
    say(f"{done} {report.files} files" + (f", {len(report.failed)} failed" if report.failed else ""))


def inspect(path: Annotated[Path, typer.Argument(help="An encrypted file, or a cipher directory.")]) -> None:
    """Tell what an encrypted file is, without any key."""
    from kmsfs.check.inspect import inspect_path

    found = inspect_path(path)
    show(found, lambda: facts((name.replace("_", " "), value) for name, value in found.items()))


def bench(
    what: Annotated[str, typer.Argument(help="aead, kms, mount, all of these, door, growth, or shared.")] = "all",
    peers: Annotated[str, typer.Option(help="Peers by comma: for `mount` gocryptfs,securefs,encfs, for `door` moto.")] = "",
    rounds: Annotated[int, typer.Option(help="Alternating rounds; medians are printed.")] = 3,
    folder: Annotated[Path, typer.Option(help="Where `mount`, `door` and `growth` work; a tmpfs is best.")] = Path("/dev/shm"),  # noqa: S108
    low_latency: Annotated[bool, typer.Option(help="How `mount` mounts kmsfs: see `kmsfs mount`.")] = True,
    up_to: Annotated[int, typer.Option(min=10, help="How many of each `growth` makes at most; of a file, how many MiB.")] = 10_000,
    only: Annotated[str, typer.Option(help="What alone `growth` measures: statements, grants, parameters, keys, files, size, writers.")] = "",
    database: Annotated[str, typer.Option(metavar="URL", help="An empty PostgreSQL database, for `shared`.")] = "",
) -> None:
    """Measure this machine: the AES-GCM core, the key service, its HTTP door, the mount beside its peers; what grows with what is there; two daemons with one database."""
    from kmsfs.cli.benchmarks import run_benchmarks

    results = run_benchmarks(
        what, [name for name in peers.split(",") if name], rounds, folder,
        low_latency=low_latency, up_to=up_to, only=only, database=database, quiet=SETTINGS.quiet,
    )  # fmt: skip
    show(results, lambda: _print_results(results))


def _print_results(results: dict[str, Any]) -> None:
    from kmsfs.cli.output import table

    for name, part in results.items():
        print(f"\n{name}")
        table(part["columns"], part["rows"])
