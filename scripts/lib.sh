# shellcheck shell=bash
# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# What scripts/demo, scripts/test and scripts/in-lab share: where things are cached, and how a fresh
# machine gets the tools. Sourced, never run.

set -euo pipefail

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
export HOME=${HOME:-/root}
CACHE=$(realpath -m -- "${CLEARPROXY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/clearproxy}")
RUN=/run/clearproxy-lab
export CLEARPROXY_CACHE=$CACHE REPO
mkdir -p "$CACHE"

# Each clone has a lab of its own: its number picks the names and the subnets, so that two clones
# can have their labs up at once. 100 numbers: a clash is refused (lock_lab), never shared silently.
LAB_NUMBER=${CLEARPROXY_LAB_NUMBER:-$((100 + $(printf '%s' "$REPO" | cksum | cut -d' ' -f1) % 100))}
LAB_PREFIX=clearproxy-$LAB_NUMBER
CLONE_CACHE=$CACHE/clones/$LAB_NUMBER
export CLEARPROXY_LAB_NUMBER=$LAB_NUMBER CLEARPROXY_LAB_PREFIX=$LAB_PREFIX

say() { printf '%s\n' "$*"; }
step() { printf '\n\033[1m==> %s\033[0m\n' "$*"; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

[[ $LAB_NUMBER =~ ^[1-9][0-9]{0,2}$ && $LAB_NUMBER -le 255 ]] || die "CLEARPROXY_LAB_NUMBER is '$LAB_NUMBER': give a number from 1 to 255"

content_key() { cat -- "$@" | sha256sum | cut -c1-16; }

# Debian packages that the lab itself needs. Nothing is asked of the mirror when all are there.
need_packages() {
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  command -v apt-get >/dev/null || die "this machine has no apt-get; install by its own means: ${missing[*]}"
  [ "$(id -u)" = 0 ] || die "run as root: the packages ${missing[*]} are missing, and hosts with a kernel network of their own need root"
  step "Installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -qq -y --no-install-recommends "${missing[@]}" >"$CACHE/apt.log" 2>&1 \
    || { tail -n 20 "$CACHE/apt.log" >&2; die "apt-get could not install ${missing[*]}"; }
}

# Python tools, in an environment of their own for each version of the list.
need_tools() {
  lock_cache
  local list=$REPO/tests/requirements.txt
  TOOLS=$CACHE/tools/$(python3 -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])')-$(content_key "$list")
  if [ ! -e "$TOOLS/complete" ]; then
    step "Installing ansible-core, molecule, pytest and the linters into $TOOLS"
    rm -rf "$TOOLS"
    python3 -m venv "$TOOLS" 2>"$CACHE/venv.log" || { need_packages python3-venv; python3 -m venv "$TOOLS"; }
    "$TOOLS/bin/pip" install --quiet --disable-pip-version-check --requirement "$list" 2>"$CACHE/pip.log" \
      || { tail -n 20 "$CACHE/pip.log" >&2; die "pip could not install the tools of $list"; }
    touch "$TOOLS/complete"
  fi
  unlock_cache
  export TOOLS PATH=$TOOLS/bin:$PATH
}

# The cache is shared by all clones: only one fills it at a time.
lock_cache() { exec 7>"$CACHE/.lock"; flock 7; }
unlock_cache() { exec 7>&-; }

# The collections that only the lab uses. PyPI's `ansible` package carries them; taken one by one
# from its wheel they are 4 MB instead of 570, and Galaxy is not asked.
need_collections() {
  lock_cache
  COLLECTIONS=$CACHE/collections-1
  if [ ! -e "$COLLECTIONS/complete" ]; then
    step "Fetching the collection containers.podman"
    rm -rf "$COLLECTIONS" "$CACHE/wheel"
    "$TOOLS/bin/pip" download --quiet --disable-pip-version-check --no-deps --dest "$CACHE/wheel" 'ansible>=12,<13' 2>"$CACHE/pip.log" \
      || { tail -n 20 "$CACHE/pip.log" >&2; die "pip could not download the package ansible"; }
    "$TOOLS/bin/python" - "$CACHE"/wheel/ansible-*.whl "$COLLECTIONS" <<'PY'
import sys, zipfile
wheel, target = sys.argv[1:]
with zipfile.ZipFile(wheel) as archive:
    wanted = ("ansible_collections/containers/podman/", "ansible_collections/ansible/posix/")
    archive.extractall(target, [n for n in archive.namelist() if n.startswith(wanted)])
PY
    rm -rf "$CACHE/wheel"
    touch "$COLLECTIONS/complete"
  fi
  unlock_cache
  mkdir -p "$CLONE_CACHE/collections/ansible_collections/clearproxy"
  ln -sfn "$REPO" "$CLONE_CACHE/collections/ansible_collections/clearproxy/haproxy"
  export COLLECTIONS ANSIBLE_COLLECTIONS_PATH=$CLONE_CACHE/collections:$COLLECTIONS
}

ansible_environment() {
  # In a directory of its own, since `molecule reset` removes what is around it.
  export MOLECULE_EPHEMERAL_DIRECTORY=$CLONE_CACHE/molecule/state
  mkdir -p "$MOLECULE_EPHEMERAL_DIRECTORY"
  export LC_ALL=C.UTF-8 ANSIBLE_INJECT_FACT_VARS=false ANSIBLE_DEPRECATION_WARNINGS=true
  export ANSIBLE_LOCALHOST_WARNING=false ANSIBLE_INVENTORY_UNPARSED_WARNING=false ANSIBLE_NOCOWS=1 ANSIBLE_PIPELINING=true
}

LAB_PACKAGES=(podman crun netavark mmdebstrap iptables nftables procps gnupg)

need_lab() {
  [ "$(id -u)" = 0 ] || die "run as root: the lab's hosts have a kernel network of their own"
  need_packages "${LAB_PACKAGES[@]}"
  need_tools
  need_collections
  ansible_environment
}

# crun refuses a machine whose cgroups are hybrid (v1 and v2). There podman gets a mount namespace of
# its own with a plain cgroup v2 mount; the machine's own cgroups stay as they are. All podman
# calls must come from that one namespace: network namespaces made in it are invisible outside.
in_lab() {
  export CONTAINERS_CONF=$REPO/molecule/resources/containers.conf
  # The locks stay behind: a container's monitor would keep them for as long as the container lives.
  if [ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ]; then
    "$@" 8>&-
    return
  fi
  mkdir -p "$RUN"
  (
    flock 9
    mountpoint -q "$RUN" || { mount --bind "$RUN" "$RUN"; mount --make-private "$RUN"; }
    mountpoint -q "$RUN/mnt" || {
      touch "$RUN/mnt"
      unshare --mount="$RUN/mnt" sh -c 'umount -R /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup'
    }
  ) 9>"$RUN.lock"
  nsenter --mount="$RUN/mnt" --wd="$PWD" -- "$@" 8>&-
}

# Undo in_lab's mount namespace, unless another clone's lab is up.
leave_lab() {
  [ -z "$(in_lab podman network ls --quiet --filter name=^clearproxy-)" ] || return 0
  # Two that ended at the same moment may each have left this to the other.
  in_lab "$REPO/molecule/resources/machine" restore
  (
    flock 9
    ! mountpoint -q "$RUN/mnt" || umount "$RUN/mnt"
    ! mountpoint -q "$RUN" || umount "$RUN"
    rm -rf "$RUN"
  ) 9>"$RUN.lock"
}

# One user of this clone's lab at a time: a demo, a gate and a person may share the machine.
lock_lab() {
  mkdir -p "$RUN.locks"
  exec 8>"$RUN.locks/$LAB_NUMBER"
  flock -n 8 || { say "Waiting for another run that uses the lab $LAB_PREFIX…"; flock -w 3600 8 || die "the lab $LAB_PREFIX stayed in use for an hour"; }
  local owner
  owner=$(cat "$RUN.locks/$LAB_NUMBER.owner" 2>/dev/null || true)
  if [ -n "$owner" ] && [ "$owner" != "$REPO" ] && [ -e "$owner/galaxy.yml" ]; then
    die "the lab $LAB_PREFIX belongs to the clone in $owner: set CLEARPROXY_LAB_NUMBER to another number (1 to 255), or run scripts/demo --destroy there"
  fi
  printf '%s\n' "$REPO" >"$RUN.locks/$LAB_NUMBER.owner"
  # Molecule believes its notes about what is up, and a run that was killed leaves them wrong.
  lab_is_up || rm -f "$MOLECULE_EPHEMERAL_DIRECTORY/state.yml"
}

lab_is_up() { [ -n "$(in_lab podman ps --quiet --filter "name=^$LAB_PREFIX-")" ]; }

# After the lab is gone: another clone may have the number.
disown_lab() { rm -f "$RUN.locks/$LAB_NUMBER.owner"; }
