# shellcheck shell=bash
# Making criserver's Python environment of a directory of wheels: for the installer and the package.
# Sourced, with `set -euo pipefail`, by scripts that define `fail MESSAGE…`.

# The directory of a bundle, with the file that says what it was made for.
BUNDLE_FACTS=bundle.env

# The distribution's Python: one in root's PATH may be a person's own, and vanish with it.
PYTHON=/usr/bin/python3

# Prints what the node is: what a bundle has to have been made for.
this_python() {
  "$PYTHON" -c 'import platform, sys; print("%d.%d-%s" % (*sys.version_info[:2], platform.machine()))'
}

# Fails unless the bundle $1 can be used with this node's python3.
check_bundle() {
  local directory=$1 made_for here
  [[ -f "$directory/$BUNDLE_FACTS" ]] ||
    fail "$directory is no bundle: it has no $BUNDLE_FACTS; deploy/bundle makes one"
  made_for=$(sed -n 's/^PYTHON=//p' "$directory/$BUNDLE_FACTS")
  [[ -x "$PYTHON" ]] ||
    fail "there is no $PYTHON: install Python ${made_for%%-*} (Debian: apt-get install python3)"
  here=$(this_python)
  [[ "$here" == "$made_for" ]] ||
    fail "the bundle $directory is for Python $made_for, $PYTHON here is $here:" \
      "make one with deploy/bundle on a machine like this one"
  (cd "$directory" && sha256sum --quiet --check SHA256SUMS) ||
    fail "the bundle $directory is damaged: copy it again"
}

# Prints VERSION-DIGEST of the bundle $1. The digest is that of the content of all wheels, and of what
# comes with them: the same code has the same name, wherever and whenever its wheels were made.
bundle_version() {
  "$PYTHON" - "$1"/wheels/*.whl "$1"/share/* <<'END'
import hashlib, sys, zipfile
from pathlib import Path

digest, version = hashlib.sha256(), ""
for name in sorted(sys.argv[1:]):
    if not name.endswith(".whl"):
        digest.update(Path(name).read_bytes())
        continue
    with zipfile.ZipFile(name) as wheel:
        (record,) = [each for each in wheel.namelist() if each.endswith(".dist-info/RECORD")]
        digest.update(b"\n".join(sorted(wheel.read(record).splitlines())))
    project, number = Path(name).name.split("-")[:2]
    if project == "criserver":
        version = number
print(f"{version}-{digest.hexdigest()[:8]}")
END
}

# Makes the environment of the bundle $1 in the new directory $2, to be used as $3.
make_environment() {
  local bundle=$1 stage=$2 final=$3 program pip=("$1"/wheels/pip-*.whl)
  "$PYTHON" -m venv --without-pip "$stage"
  # pip runs from its own wheel, and is not installed.
  "$stage/bin/python3" "${pip[0]}/pip" --isolated install --quiet --no-index \
    --find-links "$bundle/wheels" --no-compile --no-cache-dir --no-warn-script-location \
    --disable-pip-version-check --root-user-action ignore criserver
  for program in "$stage"/bin/*; do
    case ${program##*/} in
      python*) ;;
      criserver | runtimeshim) sed -i "1s|^#!$stage/|#!$final/|" "$program" ;;
      *) rm "$program" ;;
    esac
  done
  sed -i "s|$stage|$final|g" "$stage/pyvenv.cfg"
  rm -rf "$stage/include"
  # Daemons of root must not write .pyc files at run time; -s and -p: tracebacks name the place used.
  "$stage/bin/python3" -m compileall -q -s "$stage" -p "$final" "$stage/lib"
  mkdir -p "$stage/share"
  cp -r "$bundle/share" "$stage/share/criserver"
}
