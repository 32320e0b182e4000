# shellcheck shell=bash
# What the installer and the package do alike on a node. Sourced by scripts with `set -eu`; in the
# package's maintainer scripts by sh, so nothing here is bash's own.

CONFIG_DIR=/etc/criserver
DRIVER_FILE=$CONFIG_DIR/config.d/10-node.toml
CRICTL_FILE=/etc/crictl.yaml
OURS="^# Made by the installation of criserver"

# Prints the cgroup driver that fits this node: kubeadm's default is systemd, which cgroup v1 has not.
fitting_driver() {
  if [ "$(stat --file-system --format=%T /sys/fs/cgroup)" = cgroup2fs ] && [ -d /run/systemd/system ]
  then echo systemd
  else echo cgroupfs
  fi
}

# Writes the node's own settings, once: what is there, or was deleted after the first time, stays so.
write_node_settings() {
  [ ! -e "$DRIVER_FILE" ] || return 0
  mkdir -p "${DRIVER_FILE%/*}"
  cat >"$DRIVER_FILE.new" <<END
# Made by the installation of criserver for this node; yours from now on. The kubelet's cgroupDriver
# has to be the same; from 1.34 on it asks the runtime.
cgroup_driver = "$1"
END
  mv "$DRIVER_FILE.new" "$DRIVER_FILE"
}

# Points crictl at criserver, unless it is configured already; $1 is the file to copy.
write_crictl() {
  [ -e "$CRICTL_FILE" ] || install -m 644 "$1" "$CRICTL_FILE"
}

# Takes away what the two above have made.
remove_node_settings() {
  rm -f "$DRIVER_FILE" "$DRIVER_FILE.new"
  if [ -f "$CRICTL_FILE" ] && grep -q "$OURS" "$CRICTL_FILE"; then rm "$CRICTL_FILE"; fi
}

# Prints how many pods there are; $1 is the program.
count_pods() {
  run_dir=$("$1" config dump | sed -n 's/^run_dir = "\(.*\)"  #.*/\1/p')
  if [ -d "$run_dir/sandboxes" ]; then find "$run_dir/sandboxes" -mindepth 1 -maxdepth 1 | wc -l
  else echo 0
  fi
}

# Prints which of the shared libraries that criserver loads are not there.
missing_libraries() {
  known=$(ldconfig -p) # not piped into grep -q, which ends ldconfig by SIGPIPE: a failure as well
  for library in libseccomp.so.2 libnftables.so.1 libstdc++.so.6; do
    case $known in
      *"$library"*) ;;
      *) echo "$library" ;;
    esac
  done
}
