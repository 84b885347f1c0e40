#!/bin/sh
# Kasparro in one file: after the last line of this script is an archive with Python, PostgreSQL and the service.
# The script unpacks each version once, into KASPARRO_HOME or a temporary folder, and runs the service from there.
set -u
version=@VERSION@ megabytes=@MEGABYTES@ archive_at=@ARCHIVE_AT@
file=$0
problems=
newline="
"
# Modules of another Python would not fit.
unset PYTHONHOME PYTHONPATH PYTHONPLATLIBDIR

is_complete() {
  [ -x "$runtimes/$version/bin/python3" ]
}

# The folder `new` is renamed when it is complete. The caller holds the lock, so if it exists, the process that
# created it was killed.
unpack() {
  new=$runtimes/new
  if [ -t 3 ]; then echo "kasparro: unpacking into $runtimes, once for each version" >&3; fi
  rm -rf "$new" && mkdir "$new" &&
    tail -c "+$archive_at" "$file" | tar -xz --no-same-owner -f - -C "$new" &&
    # The file system may forbid programs, and the system may be too old for this one.
    "$new/bin/python3" -ISc "" &&
    # After a power failure, no folder may have the name of a version without its contents.
    sync -f "$new" && mv "$new" "$runtimes/$version"
}

# Removes the other versions. One that runs has a lock on its folder.
remove_others() {
  for other in "$runtimes"/*-*; do
    if [ "$other" != "$runtimes/$version" ]; then
      flock -xn "$other" mv "$other" "$runtimes/new" && rm -rf "$runtimes/new"
    fi
  done
  return 0
} 2>/dev/null

# Makes sure that $runtimes has this version. If that fails, prints why.
prepare() {
  is_complete && return
  umask 022
  mkdir -p "$runtimes" 2>&1 || return
  {
    flock 9 || return
    # Another process may have unpacked it meanwhile.
    is_complete && return
    unpack || { rm -rf "$new"; return 1; }
    remove_others
  } 3>&2 2>&1 9>"$runtimes/lock"
}

# Prepares the folder $1, and locks this version in it for as long as the process runs.
use() {
  if [ ! -d "$1" ]; then mkdir -p -m "$mode" "$1" 2>/dev/null; fi
  case $1 in
    /*) runtimes=$1/runtime ;;
    *) runtimes=$PWD/$1/runtime ;;
  esac
  # Another process may remove this version until it is locked.
  while problem=$(prepare); do
    command exec 9<"$runtimes/$version" || return
    # Some network file systems have no locks.
    flock -s 9
    if is_complete; then return; fi
  done
  # A full disk gives a line for each file. Otherwise the first line says why; that of gzip is empty.
  case $problem in
    *"No space left on device"*) problem="no space left on the device" ;;
    *) problem=${problem#"$newline"} ;;
  esac
  problems="$problems
  $runtimes: ${problem%%"$newline"*}"
  return 1
}

# A folder for all accounts, in which another one may have created ours.
use_temporary() {
  mkdir -p -m "$mode" "$1" 2>/dev/null
  if [ -O "$1" ] && [ ! -L "$1" ]; then
    use "$1"
  else
    problems="$problems
  $1: cannot be created, or belongs to another account"
    return 1
  fi
}

# Root's PostgreSQL runs as another account, which must reach its programs. The data have modes of their own.
if [ "$(id -u)" = 0 ]; then mode=711; else mode=700; fi
# Where the service has its data, if KASPARRO_HOME is unset.
share=${XDG_DATA_HOME:-${HOME:+$HOME/.local/share}}
home=${KASPARRO_HOME:-${share:+$share/kasparro}}
if ! { [ -n "$home" ] && use "$home"; } && ! use_temporary "${TMPDIR:-/tmp}/kasparro-$(id -u)"; then
  echo "kasparro: no folder can hold and run its $megabytes MB of programs:$problems" >&2
  exit 1
fi
runtime=$runtimes/$version

# The certificates of the system, which OpenSSL looks for where the system that built this file has them.
if [ -z "${SSL_CERT_FILE:-}${SSL_CERT_DIR:-}" ]; then
  for SSL_CERT_FILE in /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt \
    /etc/ssl/ca-bundle.pem /etc/ssl/cert.pem "$runtime/certificates.pem"; do
    if [ -r "$SSL_CERT_FILE" ]; then break; fi
  done
  export SSL_CERT_FILE
fi
export PYTHONNOUSERSITE=1 PYTHONSAFEPATH=1 PYTHONTZPATH="/usr/share/zoneinfo:$runtime/zoneinfo"
exec "$runtime/bin/python3" "$runtime/bin/kasparro" "$@"
