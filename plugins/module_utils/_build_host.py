# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The I/O of HAProxy's releases: directories, links, archives, processes and systemd. Private to the collection."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import time
import typing as t
import zlib

from ansible_collections.clearproxy.haproxy.plugins.module_utils._build_release import (
    BINARY,
    CURRENT,
    MARKER,
    OWN,
    PREVIOUS,
    RECORD,
    Names,
    Process,
    Release,
    ReleaseError,
    Service,
    Step,
    Switch,
    after,
    check_options,
    choose_pruned,
    command_conflict,
    master_option,
    member_name,
    missing_features,
    parse_policy,
    parse_record,
    parse_show,
    plan_action,
    plan_switch,
    release_of,
    reload_failed,
    root_conflict,
    runs,
    steps_back,
    verify_record,
)

# What HAProxy begins its lines with: the level, up to 2.3 the time, and the process, which is another each time.
_PREFIX = re.compile(r"^\[[A-Z]+\]\s*(?:[0-9/]+\s+)?\([0-9]+\)\s*: ")
# Seconds: between two looks at the processes, and that a new worker has to stay to count.
_LOOK = 0.02
_STAY = 0.15
# Seconds for a program that only answers.
_ANSWER = 30
_JOURNAL_LINES = 10
_PROPERTIES = (
    "LoadState,ActiveState,SubState,MainPID,StatusText,FragmentPath,NeedDaemonReload,"
    "ExecMainStartTimestampMonotonic"
)


@dataclasses.dataclass(frozen=True)
class Done:
    """A program that has ended; 127 when it could not be started, 124 when it took too long."""

    rc: int
    stdout: str
    stderr: str

    @property
    def said(self) -> str:
        # Notices name the version and the executable, which the sentence around this does.
        lines = [
            _PREFIX.sub("", line).strip()
            for line in (self.stderr or self.stdout).splitlines()
            if not line.startswith("[NOTICE]")
        ]
        return "; ".join([line for line in lines if line][-5:]) or f"it ended with {self.rc}"


def call(argv: list[str], seconds: float = _ANSWER, stdin: str = "") -> Done:
    try:
        done = subprocess.run(
            argv,
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired:
        return Done(124, "", f"{argv[0]} did not end within {seconds:g} s")
    except OSError as exc:
        return Done(127, "", str(exc))
    return Done(done.returncode, done.stdout, done.stderr)


class Host:
    """What this host has of HAProxy's releases."""

    def __init__(self, root: str, command: str, service: str, unit: str = "") -> None:
        self.root = os.path.normpath(root)
        self.command = command
        self.service = service
        self.unit = unit

    # --- directories and links ---

    def directory(self, identifier: str) -> str:
        return f"{self.root}/releases/{identifier}"

    def binary(self, identifier: str) -> str:
        return f"{self.directory(identifier)}/{BINARY}"

    def conflicts(self) -> list[str]:
        """One sentence for each place that is somebody else's."""
        found = []
        if os.path.lexists(self.command) and not self.is_command_ours():
            found.append(command_conflict(self.command))
        if not any(os.path.isfile(f"{path}/{RECORD}") for path in self._directories()):
            own = {f"{self.root}/{name}" for name in OWN}
            inside = [
                *self._inside(self.root),
                *self._inside(f"{self.root}/releases"),
            ]
            others = sorted(
                path
                for path in inside
                if path not in own and not os.path.basename(path).startswith("staging-")
            )
            if others:
                found.append(root_conflict(self.root, others))
        return found

    def is_command_ours(self) -> bool:
        return _target(self.command) == f"{self.root}/current/{BINARY}"

    def _inside(self, path: str) -> list[str]:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return [f"{path}/{name}" for name in sorted(os.listdir(path))]
        return []

    def _directories(self) -> list[str]:
        return [path for path in self._inside(f"{self.root}/releases") if os.path.isdir(path)]

    def names(self) -> Names:
        return Names(
            self._named(CURRENT), self._named(PREVIOUS), _text(f"{self.root}/{MARKER}") or None
        )

    def _named(self, name: str) -> str | None:
        target = _target(f"{self.root}/{name}")
        if target is None:
            return None
        path = os.path.normpath(os.path.join(self.root, target))
        return os.path.basename(path) if os.path.dirname(path) == f"{self.root}/releases" else None

    def releases(self, *, tried: bool = True) -> list[Release]:
        """Every directory among the releases. `tried`: whether its binary is run."""
        return [self.release(os.path.basename(path), tried=tried) for path in self._directories()]

    def release(self, identifier: str, *, tried: bool = True) -> Release:
        try:
            with open(f"{self.directory(identifier)}/{RECORD}", "rb") as file:
                record = parse_record(file.read())
        except OSError as exc:
            return Release(identifier, {}, f"{RECORD} cannot be read: {exc.strerror}")
        except ReleaseError as exc:
            return Release(identifier, {}, str(exc))
        if record.get("id") != identifier:
            return Release(identifier, {}, f"{RECORD} is that of {record.get('id')!r}")
        if tried:
            done = call([self.binary(identifier), "-vv"])
            if done.rc != 0:
                return Release(identifier, record, f"haproxy -vv does not run: {done.said}")
        return Release(identifier, record)

    def do(self, step: Step) -> None:
        """One step, at once: whoever looks sees the old or the new."""
        path = f"{self.root}/{step.name}"
        if step.id is None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        elif step.name == MARKER:
            new = f"{self.root}/staging-{step.name}"
            with open(new, "w", encoding="utf-8") as file:
                file.write(f"{step.id}\n")
            os.replace(new, path)
        else:
            self._link(f"releases/{step.id}", path)

    def link_command(self) -> None:
        os.makedirs(os.path.dirname(self.command), exist_ok=True)
        self._link(f"{self.root}/current/{BINARY}", self.command)

    def _link(self, target: str, path: str) -> None:
        new = f"{path}.new-{os.getpid()}"
        if path.startswith(f"{self.root}/"):
            new = f"{self.root}/staging-{os.path.basename(path)}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        os.symlink(target, new)
        os.replace(new, path)

    @contextlib.contextmanager
    def alone(self, seconds: float) -> t.Iterator[None]:
        """One run at a time; what an ended one left half-done in the root is removed."""
        os.makedirs(f"{self.root}/releases", mode=0o755, exist_ok=True)
        descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            end = time.monotonic() + seconds
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > end:
                        raise ReleaseError(
                            f"another run has been changing {self.root} for {seconds:g} s; wait until it has ended"
                        ) from None
                time.sleep(_LOOK)
            self._clear()
            try:
                yield
            finally:
                self._clear()
        finally:
            os.close(descriptor)

    def _clear(self) -> None:
        for path in self._inside(self.root):
            if os.path.basename(path).startswith("staging-"):
                _remove(path)

    def prune(self, identifier: str) -> None:
        # Renamed first: half a release is never among the releases.
        gone = f"{self.root}/staging-gone-{identifier}"
        os.rename(self.directory(identifier), gone)
        _remove(gone)

    # --- the service ---

    def read_service(self) -> Service | None:
        """The service; None without systemd, or when it has no such unit."""
        if not os.path.isdir("/run/systemd/system"):
            return None
        done = call(["systemctl", "show", self.service, f"--property={_PROPERTIES}"])
        shown = parse_show(done.stdout)
        if done.rc != 0 or shown.get("LoadState", "not-found") in ("not-found", "masked"):
            return None
        pid = int(shown.get("MainPID") or 0)
        executable = _target(f"/proc/{pid}/exe") if pid else None
        master = Process(pid, executable) if executable else None
        unit = shown.get("FragmentPath", "")
        return Service(
            shown.get("ActiveState", ""),
            unit,
            master,
            _workers(pid) if master else (),
            shown.get("StatusText", ""),
            unread=shown.get("NeedDaemonReload") == "yes",
            outdated=master is not None
            and _is_newer(
                self.unit or unit, int(shown.get("ExecMainStartTimestampMonotonic") or 0)
            ),
        )

    def act(self, action: str, service: Service, seconds: float) -> Done:
        """Have systemd do it; what it said."""
        if service.unread and action != "reload":
            call(["systemctl", "daemon-reload"])
        if action != "reload":
            # One that failed too often is not started otherwise.
            call(["systemctl", "reset-failed", self.service])
        return call(["systemctl", action, self.service], seconds)

    def until_runs(
        self, binary: str, ignored: t.Collection[int], end: float
    ) -> tuple[bool, Service | None]:
        """Whether, before the end, a worker that is none of the ignored ones runs the binary, and stays."""
        since, seen, failed = 0.0, 0, 0.0
        while True:
            service = self.read_service()
            now = time.monotonic()
            # What the status says of an earlier reload is there for a moment more.
            if service is None or not reload_failed(service):
                failed = 0.0
            elif failed and now - failed >= 2 * _STAY:
                return False, service
            else:
                failed = failed or now
            if service is None or service.state != "active" or not runs(service, binary, ignored):
                seen = 0
            elif seen != service.workers[-1].pid:
                since, seen = now, service.workers[-1].pid
            elif now - since >= _STAY and not failed:
                return True, service
            if now >= end:
                return False, service
            time.sleep(_LOOK)

    def journal(self, since: float) -> list[str]:
        done = call(
            [
                *("journalctl", f"--unit={self.service}", "--no-pager", "--output=cat", "--quiet"),
                *(f"--lines={_JOURNAL_LINES}", f"--since=@{int(since)}"),
            ]
        )
        return [line for line in done.stdout.splitlines() if line.strip()] if done.rc == 0 else []

    # --- what haproxy_build_info returns ---

    def describe(self, libraries: list[str], compiler: str) -> dict[str, t.Any]:
        names = self.names()
        service = self.read_service()
        running = None
        if service is not None and service.master is not None:
            running = {
                **dataclasses.asdict(service.master),
                "release": release_of(service.master.exe, self.root),
                "unit": service.unit,
                "workers": [dataclasses.asdict(worker) for worker in service.workers],
            }
        version = call([compiler, "--version"])
        return {
            "releases": [
                {**r.record, "id": r.id, "usable": r.usable, "problem": r.problem}
                for r in self.releases()
            ],
            "current": names.current,
            "previous": names.previous,
            "rolled_back": names.marker,
            "compiler": next(iter(version.stdout.splitlines()), None) if version.rc == 0 else None,
            "libc": _libc(compiler),
            "libraries": _libraries(libraries),
            "running": running,
            "conflicts": self.conflicts(),
        }


def _target(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1000).strip()
    except OSError:
        return ""


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def _workers(master: int) -> tuple[Process, ...]:
    """The children of the master that are HAProxy's, the oldest first. A configuration may have it start other programs."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        # After the command's name, which may hold anything: state, parent, …; the start is the 22nd field.
        fields = _text(f"/proc/{name}/stat").rpartition(")")[2].split()
        if len(fields) < 20 or int(fields[1]) != master or fields[0] == "Z":
            continue
        executable = _target(f"/proc/{name}/exe")
        if executable and os.path.basename(executable.replace(" (deleted)", "")).startswith(
            "haproxy"
        ):
            found.append((int(fields[19]), int(name), executable))
    return tuple(Process(pid, executable) for _start, pid, executable in sorted(found))


def _is_newer(path: str, started: int) -> bool:
    """Whether the file was changed after a process started, in microseconds of the monotonic clock."""
    try:
        changed = os.stat(path).st_mtime
    except OSError:
        return False
    return changed > time.time() - time.monotonic() + started / 1e6


def _libc(compiler: str) -> str | None:
    done = call([compiler, "-E", "-P", "-xc", "-"], stdin="#include <features.h>\n__GLIBC__\n")
    if done.rc != 0:
        return None
    if done.stdout.split()[-1:] != ["__GLIBC__"]:
        return "glibc"
    # musl names itself nowhere but in what the compiler aims at.
    return "musl" if "musl" in call([compiler, "-dumpmachine"]).stdout else None


def _libraries(packages: list[str]) -> dict[str, dict[str, str | None]]:
    found: dict[str, dict[str, str | None]] = {
        package: {"installed": None, "candidate": None} for package in packages
    }
    if not packages:
        return found
    for package, versions in parse_policy(
        call(["apt-cache", "policy", "--", *packages]).stdout
    ).items():
        if package in found:
            found[package]["candidate"] = versions["candidate"]
    form = "${db:Status-Status} ${Package} ${Version}\\n"
    for line in call(["dpkg-query", "-W", f"-f={form}", "--", *packages]).stdout.splitlines():
        status, package, version = (*line.split(" ", 2), "", "")[:3]
        if status == "installed" and package in found:
            found[package]["installed"] = version
    return found


# --- archives -------------------------------------------------------------------------------


def read_archive(path: str) -> str:
    """The ID of the release in an archive, all of whose members have been looked at."""
    record = None
    digests: dict[str, str | None] = {}
    with _open(path) as archive:
        for member in archive:
            name = member_name(member.name, path)
            if name in digests and not member.isdir():
                raise ReleaseError(f"{path} holds {name!r} twice; nothing was unpacked")
            if not (member.isreg() or member.isdir()):
                raise ReleaseError(
                    f"{path} holds {name!r}, which is neither a plain file nor a directory; nothing was unpacked"
                )
            digests[name] = None
            file = archive.extractfile(member)
            if file is None:
                continue
            if name == RECORD:
                try:
                    record = parse_record(file.read(1 << 20))
                except ReleaseError as exc:
                    raise ReleaseError(f"{path}: {exc}; build it again") from exc
            elif name == BINARY:
                digests[name] = _sha256(file)
    if record is None or digests.get(BINARY) is None:
        absent = RECORD if record is None else BINARY
        raise ReleaseError(f"{path} has no {absent}: it is not the archive of a release")
    identifier = verify_record(record, path)
    if record["binary_sha256"] != digests[BINARY]:
        raise ReleaseError(
            f"{path}: {BINARY} has the checksum {digests[BINARY]}, not the {record['binary_sha256']} of its record; "
            f"build it again, or take the archive from the cache again"
        )
    return identifier


def unpack(path: str, target: str) -> None:
    """Write an archive that has been looked at to a new directory, all of it on the disk."""
    os.mkdir(target, 0o755)
    with _open(path) as archive:
        for member in archive:
            name = member_name(member.name, path)
            where = f"{target}/{name}" if name else target
            file = archive.extractfile(member)
            if file is None:
                os.makedirs(where, mode=0o755, exist_ok=True)
                continue
            os.makedirs(os.path.dirname(where), mode=0o755, exist_ok=True)
            with open(where, "xb") as out:
                shutil.copyfileobj(file, out, 1 << 20)
                out.flush()
                os.fchmod(out.fileno(), 0o755 if member.mode & 0o100 else 0o644)
                os.fsync(out.fileno())


@contextlib.contextmanager
def _open(path: str) -> t.Iterator[tarfile.TarFile]:
    if not os.path.isfile(path):
        raise ReleaseError(
            f"there is no file {path}: artefact names the archive of a release on the host"
        )
    try:
        with tarfile.open(path, "r:gz") as archive:
            yield archive
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as exc:
        raise ReleaseError(
            f"{path} cannot be unpacked: {exc}; take the archive from the cache again"
        ) from exc


def _sha256(file: t.IO[bytes]) -> str:
    digest = hashlib.sha256()
    for block in iter(lambda: file.read(1 << 20), b""):
        digest.update(block)
    return digest.hexdigest()


# --- what haproxy_build_release does --------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Job:
    """What the task wants of the host."""

    host: Host
    config: str
    artefact: str | None
    wanted: str | None
    features: tuple[str, ...]
    unlisted: tuple[str, ...]
    keep: int
    timeout: int

    @classmethod
    def from_params(cls, host: Host, params: dict[str, t.Any]) -> Job:
        check_options(params["release"], params["keep"], params["timeout"])
        if params["artefact"] and params["release"] == PREVIOUS:
            raise ReleaseError("a rollback installs nothing: give artefact or release=previous")
        return cls(
            host,
            params["config"],
            params["artefact"],
            params["release"],
            tuple(params["features"]),
            tuple(params["unlisted"]),
            params["keep"],
            params["timeout"],
        )

    def carry_out(self, *, check_mode: bool) -> dict[str, t.Any]:
        conflicts = self.host.conflicts()
        if conflicts:
            raise ReleaseError("; ".join(conflicts), conflicts=conflicts)
        with contextlib.ExitStack() as stack:
            if not check_mode:
                stack.enter_context(self.host.alone(self.timeout))
            scratch = self.host.root
            if check_mode and self.artefact:
                scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="haproxy-build-"))
            return self._carry_out(scratch, check_mode)

    def _carry_out(self, scratch: str, check_mode: bool) -> dict[str, t.Any]:
        host = self.host
        new, tried = self._install(scratch, check_mode)
        names = host.names()
        switch = self._plan(names)
        binary, action, service = "", "none", None
        command = False
        if switch.release is not None and self.wanted is not None:
            binary = host.binary(switch.release)
            command = not host.is_command_ours()
            configured = os.path.exists(self.config)
            service = host.read_service()
            action = plan_action(service, binary, host.root, configured=configured)
            if switch.steps or command or action != "none":
                self._try(tried if tried and switch.release == new else binary, switch.release)
        now = after(names, switch.steps)
        releases = host.releases(tried=False)
        if new and check_mode and tried:
            releases = [r for r in releases if r.id != new]
            with open(f"{scratch}/staging-{new}/{RECORD}", "rb") as file:
                releases.append(Release(new, parse_record(file.read())))
        protected = {now.current, now.previous, names.current, new}
        looked = service or host.read_service()
        if looked is not None:
            protected |= {release_of(exe, host.root) for exe in looked.executables}
        pruned = choose_pruned(releases, self.keep, {p for p in protected if p})
        if not check_mode:
            if switch.steps or command or action != "none":
                self._switch(names, switch, action, service, binary)
            for identifier in pruned:
                host.prune(identifier)
        result: dict[str, t.Any] = {
            "changed": bool(tried or switch.steps or command or action != "none" or pruned),
            "release": now.current,
            "before": names.current,
            "previous": now.previous,
            "action": action,
            "installed": bool(tried),
            "pruned": pruned,
            "diff": {
                "before": _shown(names, [r.id for r in releases if not (tried and r.id == new)]),
                "after": _shown(now, [r.id for r in releases if r.id not in pruned]),
            },
        }
        if switch.said and not result["changed"]:
            result["msg"] = switch.said
        return result

    def _install(self, scratch: str, check_mode: bool) -> tuple[str | None, str | None]:
        """The ID of the archive's release; and, if it was not there, its binary."""
        if not self.artefact:
            return None, None
        host = self.host
        new = read_archive(self.artefact)
        if self.wanted not in (None, new):
            raise ReleaseError(f"{self.artefact} is the archive of {new}, not of {self.wanted}")
        if host.release(new).usable:
            return new, None
        staged = f"{scratch}/staging-{new}"
        unpack(self.artefact, staged)
        report = call([f"{staged}/{BINARY}", "-vv"])
        stays = "what was installed stays as it is"
        if report.rc != 0:
            raise ReleaseError(
                f"haproxy of {self.artefact} does not run on this host ({report.said}); {stays}"
            )
        missing = missing_features(report.stdout, self.features, self.unlisted)
        if missing:
            raise ReleaseError(
                f"haproxy of {self.artefact} does not report +{', +'.join(missing)} in 'haproxy -vv'; {stays}",
                missing=missing,
            )
        if check_mode:
            return new, f"{staged}/{BINARY}"
        if os.path.lexists(host.directory(new)):
            # It no longer runs, or is not a release.
            host.prune(new)
        os.rename(staged, host.directory(new))
        return new, host.binary(new)

    def _plan(self, names: Names) -> Switch:
        switch = plan_switch(names, self.wanted)
        if self.wanted is None or switch.release is None or self.artefact:
            return switch
        if switch.release == names.current and not switch.steps:
            return switch
        if not os.path.isdir(self.host.directory(switch.release)):
            have = ", ".join(r.id for r in self.host.releases(tried=False)) or "none"
            raise ReleaseError(
                f"the release {switch.release} is not installed in {self.host.root} (there: {have}); install it, or give another ID"
            )
        return switch

    def _try(self, binary: str, identifier: str) -> None:
        """See that the binary runs, and accepts the configuration if there is one."""
        stays = "what is in use stays as it is"
        report = call([binary, "-vv"])
        if report.rc != 0:
            raise ReleaseError(
                f"the release {identifier} does not run ({report.said}); {stays}. Install it again"
            )
        if not os.path.exists(self.config):
            return
        done = call([binary, master_option(report.stdout), "-c", "-f", self.config], 60)
        if done.rc != 0:
            raise ReleaseError(
                f"the release {identifier} does not accept {self.config}; {stays}. Correct the configuration for this version, "
                f"or take one that accepts it. It says: {done.said}"
            )

    def _switch(
        self, names: Names, switch: Switch, action: str, service: Service | None, binary: str
    ) -> None:
        host, begin = self.host, time.time()
        for step in switch.steps:
            host.do(step)
        made = not host.is_command_ours()
        if made:
            host.link_command()
        if action == "none" or service is None:
            return
        end = time.monotonic() + self.timeout
        ignored = {worker.pid for worker in service.workers}
        done = host.act(action, service, self.timeout)
        works, found = False, service
        if done.rc == 0:
            works, seen = host.until_runs(binary, ignored, end)
            found = seen or service
        if works:
            return
        journal = host.journal(begin)
        why = (
            f"'systemctl {action} {host.service}' failed ({done.said})"
            if done.rc != 0
            else f"no worker of it ran within {self.timeout} s"
            if not reload_failed(found)
            else f"HAProxy says: {found.status}"
        )
        for step in steps_back(names, switch.steps):
            host.do(step)
        if made and names.current is None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(host.command)
        serving = self._restore(names, again=names.current != switch.release)
        told = f" The journal ends with: {'; '.join(journal[-3:])}." if journal else ""
        raise ReleaseError(
            f"haproxy {switch.release} was switched to and does not run: {why}.{told} "
            + (
                f"{serving} serves, seen after that"
                if serving
                else f"No release serves now, see 'journalctl -u {host.service}'"
            ),
            journal=journal,
            serving=serving,
            action=action,
        )

    def _restore(self, names: Names, *, again: bool) -> str | None:
        """Have the service run what the links name again, if that is another; the ID of what is seen to serve."""
        host = self.host
        service = host.read_service()
        if again and names.current is not None and service is not None:
            binary = host.binary(names.current)
            action = plan_action(service, binary, host.root, configured=True)
            if action != "none":
                host.act(action, service, self.timeout)
            works, service = host.until_runs(binary, (), time.monotonic() + self.timeout)
            if works:
                return names.current
        # What keeps a worker from starting may keep the old release's too: those that were there go on.
        if service is None or not service.workers:
            return None
        return release_of(service.workers[-1].exe, host.root)


def _shown(names: Names, releases: list[str]) -> dict[str, t.Any]:
    return {
        "current": names.current,
        "previous": names.previous,
        "rolled_back": names.marker,
        "releases": sorted(releases),
    }
