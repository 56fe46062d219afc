# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure: the program that loads the boot files, looks at what is live, and puts back what is missing. Private to the collection."""

from __future__ import annotations

import typing as t

# What the loaders have in common; @NAME@ is filled in. For any POSIX shell and awk.
_TEMPLATE = r"""#!/bin/sh
@HEADER@
@USAGE@
# @PROGRAM@ restore: start, unless stopped; for others' units, which flush.
# @PROGRAM@ check: say what is not as the files want it, a line each; exit code 0 if nothing, 1 if something,
#     3 if another one is at work just now.
# @PROGRAM@ guard [SECONDS]: check again and again, and start if anything is missing, until `@PROGRAM@ stop`.
set -u
export LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
configuration=@CONFIGURATION@
sysctls=@SYSCTLS@
names=@TABLE_NAME@
stopped=@STOPPED@
failed=0
newline='
'

# The module holds the same lock while it works.
lock() {
    [ -d "$configuration" ] && command -v flock >/dev/null || return 0
    exec 9<"$configuration"
    flock "$@" 9
}

# Within so many seconds: less than what systemd gives the unit whose command this is.
alone() {
    lock -w "$1" && return
    echo "@PROGRAM@: another one has kept $configuration locked for $1 seconds; nothing was changed" >&2
    exit 1
}

@IPTABLES@load_nft() {
    [ -e "$1" ] || return 0
    nft -f "$1"
}

# nft lists the same rule differently from version to version: words are compared, whatever their order.
check_nft() {
    [ -e "$1" ] || return 0
    table=$(sed -n 's/^delete table //p' "$1")
    # shellcheck disable=SC2086
    nft -s -y list table $table 2>/dev/null | awk -v table="$table" '
        function canonical(line, count, words, i, j, word, text) {
            gsub(/[{},;"]/, " ", line)
            gsub(/ipv6-icmp/, "icmpv6", line)
            gsub(/0x0+/, "0x", line)
            gsub(/ or /, " | ", line)
            gsub(/ and /, " \\& ", line)
            gsub(/priority mangle/, "priority -150", line)
            count = split(line, words, " ")
            for (i = 1; i <= count; i++) {
                word = words[i]
                for (j = i - 1; j > 0 && words[j] > word; j--) words[j + 1] = words[j]
                words[j + 1] = word
            }
            for (i = 1; i <= count; i++) if (words[i] != "meta") text = text " " words[i]
            return text
        }
        /^#/ || /^delete / || /^table [^{]*$/ || /^[ \t}]*$/ { next }
        FNR == NR { wanted = wanted canonical($0) "\n"; next }
        { found = found canonical($0) "\n" }
        END { if (found != wanted) { print "nft table " table ": " (found ? "not as wanted" : "missing"); exit 1 } }
    ' "$1" -
}

# What tells routes apart, and all of it: versions of `ip` differ in what goes without saying, and with -d they say most.
route_of() {
    kind=unicast gateway='' device='' protocol=boot metric=$plain_metric
    case $1 in
        unicast|local|broadcast|multicast|anycast|throw|unreachable|prohibit|blackhole) kind=$1; shift ;;
    esac
    destination=$1
    shift
    while [ $# -gt 1 ]; do
        case $1 in
            via) gateway=$2 ;;
            dev) device=$2 ;;
            proto) protocol=$2 ;;
            metric) metric=$2 ;;
            # Words without a value.
            onlink|linkdown|dead|pervasive|offload|trap|notify|unresolved|rt_offload|rt_trap) shift; continue ;;
        esac
        shift 2
    done
    route="$kind $destination via $gateway dev $device proto $protocol metric $metric"
}

# Whether the words of a line of the routing files are in `ip -d rule` or in the table's routes.
present() {
    object=$1
    shift 2
    if [ "$object" = route ]; then
        route_of "$@"
        case $newline$routes in *"$newline$route$newline"*) return 0 ;; esac
        return 1
    fi
    not='' source=all mark='' iif='' table='' protocol=boot
    while [ $# -gt 0 ]; do
        case $1 in
            not) not='not '; shift; continue ;;
            priority) priority=$2 ;;
            from) source=$2 ;;
            fwmark) mark=" fwmark ${2%/0xffffffff}" ;;
            iif) iif=" iif $2" ;;
            lookup) table=$2 ;;
            protocol) protocol=$2 ;;
        esac
        shift 2
    done
    name=$table
    while read -r number word; do
        [ "$number" != "$table" ] || name=$word
    done <"$names"
    for table in "$table" "$name"; do
        line="$priority:	${not}from $source$mark$iif lookup $table proto $protocol"
        case $newline$rules$newline in *"$newline$line$newline"* | *"$newline$line $newline"*) return 0 ;; esac
    done
    return 1
}

# All routes of a file are in one table; those without one are default routes of the main table.
look_at_routing() {
    # What the kernel makes of a route without a metric.
    plain_metric=0
    [ "$1" = -4 ] || plain_metric=1024
    # [detached]: the interface is not there just now.
    rules=$(ip "$1" -d rule 2>/dev/null | sed 's/ \[detached\]//g')
    table=$(sed -n 's/^route .* table \([0-9]*\).*/\1/p' "$2" | sort -u)
    # shellcheck disable=SC2086
    routes=$(
        ip "$1" -d route show table ${table:-main default} 2>/dev/null | while read -r line; do
            route_of $line
            echo "$route"
        done
    )$newline
}

load_routing() {
    [ -e "$2" ] || return 0
    result=0
    look_at_routing "$1" "$2"
    while read -r object command words; do
        case $object in ''|'#'*) continue ;; esac
        # shellcheck disable=SC2086
        present "$object" "$command" $words && continue
        # The kernel takes rules that differ in nothing but the protocol for the same.
        # shellcheck disable=SC2086
        [ "$object" = route ] || ip "$1" rule del ${words%% protocol *} 2>/dev/null
        # shellcheck disable=SC2086
        message=$(ip "$1" "$object" "$command" $words 2>&1) && continue
        echo "ip $1 $object $command $words: $message" >&2
        result=1
    done <"$2"
    return "$result"
}

@REMOVAL@check_routing() {
    [ -e "$2" ] || return 0
    result=0
    look_at_routing "$1" "$2"
    while read -r object command words; do
        case $object in ''|'#'*) continue ;; esac
        # shellcheck disable=SC2086
        present "$object" "$command" $words && continue
        echo "ip $1 $object: missing: $words"
        result=1
    done <"$2"
    return "$result"
}

# net.ipv4.ip_forward -> net/ipv4/ip_forward
slashes() {
    set -f
    IFS=.
    # shellcheck disable=SC2086
    set -- $1
    IFS=/
    path=$*
    unset IFS
    set +f
}

# FILE FOUND WANTED, separated by tabs, for every value that is not as wanted.
wrong_sysctls() {
    [ -e "$sysctls" ] || return 0
    while read -r name _ value; do
        case $name in ''|'#'*) continue ;; */*) path=$name ;; *) slashes "$name" ;; esac
        for file in /proc/sys/$path; do
            # An interface that is not there yet takes its values from `default`.
            [ ! -e "$file" ] || echo "$file $value"
        done
    done <"$sysctls" | awk '
        function value_of(file, line) {
            getline line <file
            close(file)
            gsub(/[ \t]+/, " ", line)
            return line
        }
        # Of several lines for a file the last one counts.
        {
            file = $1
            sub(/^[^ ]+ /, "")
            if (!(file in wanted)) order[++count] = file
            wanted[file] = $0
        }
        END {
            for (i = 1; i <= count; i++) {
                file = order[i]
                found = value_of(file)
                if (found == wanted[file]) continue
                # The kernel takes the greater one of the interface and all.
                upper = file
                if (sub(/[^\/]+\/rp_filter$/, "all/rp_filter", upper) && upper != file) {
                    top = upper in wanted ? wanted[upper] : value_of(upper)
                    if (top > found && top == wanted[file]) continue
                }
                print file "\t" found "\t" wanted[file]
            }
        }'
}

write_sysctls() {
    wrong_sysctls | {
        result=0
        while IFS='	' read -r file _ value; do
            echo "$value" >"$file" || result=1
        done
        exit "$result"
    }
}

load_sysctls() {
    # What the kernel changes with a value may be one that was right until then.
    write_sysctls 2>/dev/null
    write_sysctls
}

check_sysctls() {
    wrong_sysctls | {
        result=0
        while IFS='	' read -r file found value; do
            echo "sysctl ${file#/proc/sys/}: found: $found, wanted: $value"
            result=1
        done
        exit "$result"
    }
}

start() {
    result_of_start=0
@START@
    return "$result_of_start"
}

check() {
    result_of_check=0
@CHECK@
    return "$result_of_check"
}

# The lines as one.
log() {
    echo "$1" | awk -v ORS='; ' -v end="$2" 'NF { print } END { printf "%s\n", end }'
}

# One line for each repair. What a repair does not help against is said once, and tried again now and then.
guard() {
    hopeless=
    while [ -d "$configuration" ]; do
        # Once it has the lock: a stop may have been at work until then.
        if lock -w 2 && [ ! -e "$stopped" ]; then
            wrong=$(check)
            if [ -z "$wrong" ]; then
                hopeless=
            else
                said=$(start 2>&1)
                left=$(check)
                if [ -z "$left" ]; then
                    log "$wrong" 'put back'
                elif [ "$left" != "$wrong" ]; then
                    log "$wrong" 'partly put back'
                elif [ "$left" != "$hopeless" ]; then
                    hopeless=$left
                    log "$left$newline$said" 'cannot put back'
                fi
            fi
        fi
        exec 9<&-
        sleep "${2-@GUARD_SECONDS@}"
    done
}

case ${1-} in
    start)
        alone 60
        rm -f "$stopped"
        start || failed=1
        ;;
    stop)
        alone 60
        # So that the guard, which may still run, keeps its hands off.
        [ ! -d "${stopped%/*}" ] || echo '@HEADER@' >"$stopped"
@STOP@        ;;
    restore)
        alone 20
        [ -e "$stopped" ] || start || failed=1
        ;;
    check)
        lock -n -s || exit 3
        check || failed=1
        ;;
    guard)
        guard "$@"
        ;;
    *)
        echo "usage: @PROGRAM@ start|stop|restore|check|guard" >&2
        exit 2
        ;;
esac
exit "$failed"
"""

# Only tproxy-host has rules of iptables, and only it takes all of its own away.
_IPTABLES = r"""# Our own rules in the chains of others, as commands that delete them.
deletions() {
    "$1-save" -t mangle | sed -n 's/^-A \(PREROUTING .*--comment "\{0,1\}@OWNER@"\{0,1\} .*\)$/-D \1/p'
}

# The program that the rules in a file are for.
program_of() {
    program=
    while read -r _ key program; do
        [ "$key" != Program: ] || break
    done <"$1"
}

# One transaction: there is no moment without a rule, and no second copy of one.
load_firewall() {
    [ -e "$1" ] || return 0
    program_of "$1"
    {
        sed -n '/^[*:]/p' "$1"
        deletions "$program"
        sed '/^[*:#]/d' "$1"
    } | "$program-restore" --noflush --wait=10
}

remove_firewall() {
    [ -e "$1" ] || return 0
    program_of "$1"
    chain=$(sed -n 's/^:\([^ ]*\) .*/\1/p' "$1")
    {
        echo '*mangle'
        deletions "$program"
        if "$program-save" -t mangle | grep -q "^:$chain "; then
            echo "-F $chain"
            echo "-X $chain"
        fi
        echo COMMIT
    } | "$program-restore" --noflush --wait=10
}

# Our chain must hold our rules and no others, and our jumps must come first, or, where they are appended, be there.
check_firewall() {
    [ -e "$1" ] || return 0
    program_of "$1"
    "$program-save" -t mangle 2>/dev/null | awk -v program="$program" '
        { gsub(/"/, ""); gsub(/ipv6-icmp/, "icmpv6"); sub(/ +$/, "") }
        FNR == NR && sub(/^-I PREROUTING [0-9]+ /, "-A PREROUTING ") { wanted[++jumps] = $0; first = 1; next }
        FNR == NR && /^-A PREROUTING / { wanted[++jumps] = $0; next }
        FNR == NR && /^-A / { chain = $2; rules = rules $0 "\n"; next }
        FNR == NR { next }
        /^-A PREROUTING / { found[++count] = $0; there[$0] = 1 }
        /^-A / && $2 == chain { content = content $0 "\n" }
        END {
            if (content != rules) { print program " mangle chain " chain ": not as wanted"; wrong = 1 }
            for (i = 1; i <= jumps; i++)
                if (first ? found[i] != wanted[i] : !(wanted[i] in there)) {
                    print program " mangle: not in place: " wanted[i]
                    wrong = 1
                }
            exit wrong
        }' "$1" -
}

"""

_REMOVAL = r"""# The file's own first two lines make sure that there is a table, and delete it.
remove_nft() {
    [ -e "$1" ] || return 0
    sed -n '/^table .*[^{]$/p; /^delete table /p' "$1" | nft -f -
}

remove_routing() {
    [ -e "$2" ] || return 0
    while read -r object command words; do
        case $object in ''|'#'*) continue ;; esac
        # shellcheck disable=SC2086
        while ip "$1" "$object" del $words 2>/dev/null; do :; done
    done <"$2"
}

"""


def loader(
    *,
    program: str,
    usage: t.Iterable[str],
    header: str,
    owner: str,
    configuration: str,
    sysctls: str,
    table_name: str,
    stopped: str,
    guard_seconds: int,
    nft: str,
    routing: t.Mapping[str, str],
    iptables: t.Iterable[str] = (),
    removes: bool,
) -> str:
    """The names of files are those in `configuration`; `routing` has ip's option for each."""
    rules = tuple(iptables)
    routes = [f'{option} "$configuration/{name}"' for option, name in routing.items()]
    firewalls = [f'firewall "$configuration/{name}"' for name in rules]
    firewalls.append(f'nft "$configuration/{nft}"')
    ways = [f"routing {words}" for words in routes]

    def calls(verb: str, words: t.Iterable[str], failed: str, indent: int) -> str:
        return "\n".join(f"{' ' * indent}{verb}_{entry} || {failed}=1" for entry in words)

    values = {
        # First those that have others in them.
        "IPTABLES": _IPTABLES if rules else "",
        "REMOVAL": _REMOVAL if removes else "",
        "START": calls("load", ("sysctls", *ways, *firewalls), "result_of_start", 4),
        "CHECK": calls("check", (*firewalls, *ways, "sysctls"), "result_of_check", 4),
        "STOP": calls("remove", (*firewalls, *ways), "failed", 8) + "\n" if removes else "",
        "USAGE": "\n".join(f"# {program} {line}" for line in usage),
        "PROGRAM": program,
        "HEADER": header,
        "OWNER": owner,
        "CONFIGURATION": configuration,
        "SYSCTLS": sysctls,
        "TABLE_NAME": table_name,
        "STOPPED": stopped,
        "GUARD_SECONDS": str(guard_seconds),
    }
    text = _TEMPLATE
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text
