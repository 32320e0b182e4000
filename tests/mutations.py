"""Defences of the executor and the shim, each as the change that takes it out.

hack/prove-defences makes each of them in a copy of the repository and sees that its tests fail
there. tests/unit/data/attacks.txt says which attack each test belongs to.
"""

from __future__ import annotations

from typing import NamedTuple


class Edit(NamedTuple):
    """One replacement; `old` is there exactly once."""

    file: str
    old: str
    new: str


class Mutation(NamedTuple):
    """A defence taken out, and the tests that must fail then: all of them, in any parameter."""

    name: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]


OCI = "runtimeshim/oci"
SEALED = "runtimeshim/cli/sealed.py"
MOUNT_LAYERS = 'm.mount("runtimeshim", directory, "overlay", flags, f"lowerdir={source}:{_EMPTY}")'
CONVENTIONS = "test_runtimeshim_cli_conventions.py::"
STARTING = "test_oci_attacks_starting.py::"
ATTACKS = "test_oci_attacks.py::"
RACES = "test_oci_races.py::"
EXECUTOR = "test_executor.py::"

MUTATIONS = (
    Mutation(
        "the command line's interpreter is mounted, and not read-only",
        (
            Edit(SEALED, MOUNT_LAYERS, "m.mount(source, directory, None, m.MS_BIND + 0 * flags)"),
            Edit(SEALED, 'bool(os.statvfs("/proc/self/exe").f_flag & os.ST_RDONLY)', "True"),
        ),
        (
            STARTING + "test_an_images_dynamic_linker_cannot_write_to_the_runtime_of_run",
            STARTING + "test_an_images_dynamic_linker_cannot_write_to_the_runtime_of_exec",
            CONVENTIONS + "test_the_hosts_interpreter_is_out_of_reach",
        ),
    ),
    Mutation(
        "the mount of the command line's interpreter is read-only, and no more",
        (
            Edit(
                SEALED,
                MOUNT_LAYERS,
                "m.mount(source, directory, None, m.MS_BIND);"
                ' m.mount("", directory, None, m.MS_BIND | m.MS_REMOUNT | flags)',
            ),
        ),
        (STARTING + "test_a_volume_with_the_mount_of_the_interpreter_in_it_stays_read_only",),
    ),
    Mutation(
        "the command line's interpreter is copied, and not sealed",
        (
            Edit(SEALED, "    fcntl.fcntl(copy, fcntl.F_ADD_SEALS, SEALS)\n", ""),
            Edit(
                SEALED,
                "        return fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEALS == SEALS\n",
                '        return "memfd:" in os.readlink("/proc/self/exe")\n',
            ),
        ),
        (STARTING + "test_without_a_mount_the_interpreter_is_a_sealed_copy",),
    ),
    Mutation(
        "the spawner's interpreter is copied, and not sealed",
        (
            Edit(
                "runtimeshim/client/launch.py",
                "    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)\n",
                "    assert seals\n",
            ),
        ),
        (ATTACKS + "test_the_interpreter_of_a_waiting_init_is_sealed_for_good",),
    ),
    Mutation(
        "fds of the host stay open in an init, and its directory is not checked",
        (
            Edit(
                f"{OCI}/init.py",
                '    os.close(resolve.make_directory(root, spec["process"]["cwd"]))\n',
                "",
            ),
            Edit(
                f"{OCI}/init.py",
                "    syscalls.close_all_but([sync.fileno(), *plan.invocation.fds(), *needed])\n",
                "    assert needed is not None\n",
            ),
            Edit(
                f"{OCI}/rootfs.py",
                '        m.umount(".", m.MNT_DETACH)\n    finally:\n        os.close(old)\n',
                '        m.umount(".", m.MNT_DETACH)\n    finally:\n        os.dup2(old, 60)\n',
            ),
            Edit(f"{OCI}/process.py", '    check_directory(process["cwd"])\n', ""),
        ),
        (
            STARTING + "test_no_fd_number_is_a_working_directory",
            EXECUTOR + "test_a_created_init_holds_no_fd_but_its_own",
        ),
    ),
    Mutation(
        "fds of the host stay open in an exec, and its directory is not checked",
        (
            Edit(
                f"{OCI}/join.py",
                "        syscalls.close_all_but(kept + ([] if label is None else [label[0]]))\n",
                "        os.dup2(1, 50)\n        os.dup2(kept[0], 51)\n",
            ),
            Edit(
                f"{OCI}/join.py",
                "        namespaces.join_all(pidfd)\n",
                '        host = os.open("/", os.O_PATH)\n'
                "        namespaces.join_all(pidfd)\n        os.dup2(host, 40)\n",
            ),
            Edit(f"{OCI}/process.py", '    check_directory(process["cwd"])\n', ""),
        ),
        (
            STARTING + "test_no_fd_number_is_a_working_directory",
            ATTACKS + "test_an_exec_holds_no_fd_beside_stdio",
        ),
    ),
    Mutation(
        "a working directory is not checked before execve",
        (
            Edit(
                f"{OCI}/process.py",
                '    if not where.startswith("/"):\n        raise',
                "    if not where and cwd == 0:\n        raise",
            ),
        ),
        (ATTACKS + "test_a_working_directory_outside_of_the_root_is_refused",),
    ),
    Mutation(
        "a starting process stays dumpable",
        (
            Edit(
                "runtimeshim/linux/syscalls.py",
                '    prctl(PR_SET_DUMPABLE, 0, "prctl(DUMPABLE)")\n',
                "",
            ),
        ),
        (
            ATTACKS + "test_a_waiting_init_is_closed_to_its_neighbours",
            STARTING + "test_a_starting_exec_is_closed_to_its_neighbours",
        ),
    ),
    Mutation(
        "the spawner has the daemon's environment",
        (
            Edit(
                "runtimeshim/client/launch.py",
                '            {"LANG": "C.UTF-8", "PATH": os.defpath},\n',
                "            dict(os.environ),\n",
            ),
        ),
        (ATTACKS + "test_nothing_of_the_daemons_environment_is_in_a_waiting_init",),
    ),
    Mutation(
        "paths are walked with the host's root",
        (
            Edit(
                f"{OCI}/resolve.py",
                "INSIDE = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS",
                "INSIDE = 0",
            ),
        ),
        (
            RACES + "test_a_mount_on_an_exchanged_directory_stays_inside",
            RACES + "test_a_bind_below_an_exchanged_directory_makes_nothing_outside",
            RACES + "test_a_working_directory_made_in_an_exchanged_one_stays_inside",
            RACES + "test_an_exchanged_masked_path_is_masked_or_refused",
            EXECUTOR + "test_a_symbolic_link_in_the_image_leads_nowhere_outside",
            ATTACKS + "test_dev_as_a_link_reaches_nothing_outside",
        ),
    ),
    Mutation(
        "proc and sysfs are mounted where links lead",
        (
            Edit(
                f"{OCI}/mounting.py",
                'NO_SYMLINK_TYPES = frozenset({"proc", "sysfs"})',
                "NO_SYMLINK_TYPES: frozenset[str] = frozenset()",
            ),
        ),
        (EXECUTOR + "test_proc_and_sys_are_not_mounted_over_a_symbolic_link",),
    ),
    Mutation(
        "masks are made of the container's /dev/null",
        (
            Edit(
                f"{OCI}/rootfs.py",
                "    null = _open_null()\n",
                '    null = resolve.open_inside(root, "/dev/null")\n',
            ),
        ),
        (ATTACKS + "test_a_mask_is_the_null_device_whatever_dev_null_is",),
    ),
    Mutation(
        "the host's /dev/null is taken for what it says",
        (
            Edit(
                f"{OCI}/rootfs.py",
                "    if not stat.S_ISCHR(found.st_mode) or found.st_rdev != os.makedev(1, 3):\n",
                "    if stat.S_ISBLK(found.st_mode):\n",
            ),
        ),
        (STARTING + "test_a_null_device_that_is_another_file_masks_nothing",),
    ),
    Mutation(
        "the console is bound where a link leads",
        (
            Edit(
                f"{OCI}/terminal.py",
                'resolve.make_file_without_symlinks(root, "dev/console")',
                'resolve.make_file(root, "dev/console")',
            ),
        ),
        (ATTACKS + "test_a_console_that_is_a_link_is_refused",),
    ),
    Mutation(
        "any file is a terminal multiplexer",
        (
            Edit(
                f"{OCI}/terminal.py",
                "    if not stat.S_ISCHR(found.st_mode) or found.st_rdev != PTMX_DEVICE:\n",
                "    if stat.S_ISBLK(found.st_mode):\n",
            ),
        ),
        (ATTACKS + "test_a_terminal_multiplexer_that_is_another_file_is_refused",),
    ),
    Mutation(
        "anything may be mounted on /proc",
        (
            Edit(
                f"{OCI}/spec.py",
                '        if "proc" in mount["destination"]:\n',
                '        if "proc" in mount["destination"] and not bind:\n',
            ),
        ),
        (ATTACKS + "test_procfs_cannot_be_replaced_by_a_volume",),
    ),
    Mutation(
        "sysctls are written through the container's /proc",
        (
            Edit(
                f"{OCI}/init.py",
                '    sysctls.write(linux.get("sysctl") or {})\n',
                '    sysctls.write(linux.get("sysctl") or {}, root)\n',
            ),
            Edit(
                f"{OCI}/sysctls.py",
                "def write(sysctls: Mapping[str, str]) -> None:\n",
                "def write(sysctls: Mapping[str, str], root: int) -> None:\n",
            ),
            Edit(
                f"{OCI}/sysctls.py",
                '    proc = m.new_mount("proc", [("source", "proc")])\n',
                '    proc = resolve.open_inside(root, "proc")\n',
            ),
        ),
        (ATTACKS + "test_a_sysctl_is_not_redirected_by_a_volume",),
    ),
    Mutation(
        "labels are written through the container's /proc",
        (
            Edit(
                f"{OCI}/process.py",
                "        _set_label(process, *label)\n",
                '        fd = os.open("/proc/self/attr/exec", os.O_WRONLY)\n'
                "        _set_label(process, fd, label[1])\n",
            ),
        ),
        (ATTACKS + "test_an_exec_label_is_not_written_into_the_containers_procfs",),
    ),
    Mutation(
        "inheritable capabilities are those of the spec",
        (
            Edit(
                "runtimeshim/linux/capabilities.py",
                "    return Sets(bounding, effective, permitted, ambient, ambient), warnings\n",
                '    inheritable = _granted(wanted, "inheritable", permitted, warnings)\n'
                "    return Sets(bounding, effective, permitted, inheritable, ambient), warnings\n",
            ),
        ),
        (ATTACKS + "test_an_exec_has_no_inheritable_capabilities",),
    ),
    Mutation(
        "ids are any integers",
        (Edit(f"{OCI}/fields.py", "_id = integer(0, MAX_ID)\n", "_id = _any_int\n"),),
        (
            ATTACKS + "test_a_container_with_an_id_that_wraps_is_refused",
            ATTACKS + "test_an_exec_with_an_id_that_wraps_is_refused",
        ),
    ),
    Mutation(
        "the primary group is not a supplementary one",
        (
            Edit(
                f"{OCI}/process.py",
                "    os.setgroups(groups if gid in groups else [gid, *groups])\n",
                "    os.setgroups(groups)\n",
            ),
        ),
        (ATTACKS + "test_the_primary_group_cannot_be_given_up",),
    ),
    Mutation(
        "a passwd of any length is read",
        (Edit(f"{OCI}/process.py", "min(found.st_size, MAX_PASSWD)", "found.st_size"),),
        (ATTACKS + "test_a_passwd_is_read_as_far_as_its_limit",),
    ),
    Mutation(
        "a passwd that is no regular file is read",
        (
            Edit(
                f"{OCI}/process.py",
                "        if not stat.S_ISREG(found.st_mode) or found.st_size == 0:\n",
                "        if stat.S_ISBLK(found.st_mode):\n",
            ),
        ),
        (ATTACKS + "test_a_passwd_that_is_a_file_of_the_kernels_is_not_read",),
    ),
    Mutation(
        "opening a passwd waits for the other side of a FIFO",
        (Edit(f"{OCI}/process.py", "os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY", "os.O_RDONLY"),),
        (ATTACKS + "test_a_passwd_that_is_no_file_of_sense_gives_a_home",),
    ),
    Mutation(
        "variables of the environment are lines of passwd",
        (
            Edit(
                f"{OCI}/process.py",
                "    env = environment(process)\n",
                "    env = environment(process)\n"
                '    with open("/etc/passwd", "a") as passwd:\n'
                '        passwd.write(f"user:x:1:1::{env[-1][5:]}:/bin/sh\\n")\n',
            ),
        ),
        (ATTACKS + "test_a_newline_in_the_environment_makes_no_line_of_passwd",),
    ),
    Mutation(
        "any sysctl may be set",
        (
            Edit(
                f"{OCI}/sysctls.py",
                "        needed = _namespace(path(name))\n",
                '        needed = _namespace(path(name)) or "ipc"\n',
            ),
        ),
        (
            "test_oci_fields.py::test_a_sysctl_of_the_host_is_refused",
            "unit/test_oci_spec.py::test_a_sysctl_of_the_host_is_refused",
        ),
    ),
    Mutation(
        "a sysctl's value is parsed again",
        (
            Edit(
                f"{OCI}/sysctls.py",
                "                os.write(fd, value.encode())\n",
                '                os.write(fd, value.partition("+")[0].encode())\n',
            ),
        ),
        ("test_oci_fields.py::test_a_sysctl_value_is_written_as_it_is",),
    ),
    Mutation(
        "powercap is not masked",
        (Edit(f"{OCI}/paths.py", '    "/sys/devices/virtual/powercap",\n', ""),),
        (ATTACKS + "test_powercap_is_masked_by_default",),
    ),
    Mutation(
        "the shim's socket is for everybody",
        (Edit("runtimeshim/shim/supervisor.py", "os.umask(0o177)", "os.umask(0)"),),
        (ATTACKS + "test_sockets_have_names_that_only_root_can_reach",),
    ),
    Mutation(
        "the spawner's socket is for everybody",
        (Edit("runtimeshim/client/launch.py", "os.umask(0o177)", "os.umask(0)"),),
        (ATTACKS + "test_sockets_have_names_that_only_root_can_reach",),
    ),
    Mutation(
        "the shim's socket is an abstract one",
        (
            Edit(
                "runtimeshim/shim/supervisor.py",
                "        listener.bind(path)\n        except",
                "        listener.bind(path)\n            _abstract()\n        except",
            ),
            Edit(
                "runtimeshim/shim/supervisor.py",
                "def listen(bundle: str)",
                "def _abstract():\n"
                "    global ABSTRACT\n"
                "    ABSTRACT = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
                '    ABSTRACT.bind(f"\\0crtest-{os.getpid()}")\n\n\n'
                "def listen(bundle: str)",
            ),
        ),
        (ATTACKS + "test_sockets_have_names_that_only_root_can_reach",),
    ),
    Mutation(
        "an exec's output is kept whole",
        (
            Edit(
                "criserver/container_exec_sync.py",
                "MAX_STREAM = 16 * 1024 * 1024\n",
                "MAX_STREAM = 1 << 40\n",
            ),
        ),
        ("test_cri_exec.py::test_output_without_an_end_costs_neither_memory_nor_disk",),
    ),
    Mutation(
        "an attached client that has gone is found out by writing to it",
        (
            Edit(
                "runtimeshim/shim/streams.py",
                "        self._clients.append(client)\n        self._await_hangup(client)\n",
                "        self._clients.append(client)\n",
            ),
        ),
        ("test_shim_attacks.py::test_a_thousand_attaches_leave_nothing",),
    ),
    Mutation(
        "a connection that has ended is kept",
        (
            Edit(
                "runtimeshim/shim/supervisor.py",
                "            self._poller.unregister(client.fileno())\n"
                "            client.close()\n",
                "            self._poller.unregister(client.fileno())\n"
                "            self._execs[-client.fileno()] = client\n",
            ),
        ),
        ("test_shim_attacks.py::test_a_thousand_connections_leave_nothing",),
    ),
    Mutation(
        "nobody adopts the container of a killed shim",
        (
            Edit(
                "runtimeshim/spawner.py",
                "        if over or not ward.may_be_adopted(killed=self._was_killed(ward.shim)):\n",
                "        if over or ward:\n",
            ),
        ),
        (
            "test_adoption.py::test_a_killed_shim_is_replaced_and_the_container_runs_on",
            "test_adoption.py::test_its_exit_code_arrives",
        ),
    ),
    Mutation(
        "the log is opened where a link leads",
        (Edit("runtimeshim/shim/log.py", " | os.O_NOFOLLOW", ""),),
        (
            "test_shim_attacks.py::test_a_link_in_the_place_of_the_log_is_not_followed",
            "test_shim_attacks.py::test_a_link_to_nowhere_in_the_place_of_the_log_makes_no_file",
            "test_shim_attacks.py::test_a_link_that_comes_with_a_rotation_is_not_followed",
        ),
    ),
    Mutation(
        "links on the way to the log are followed",
        (
            Edit(
                "runtimeshim/shim/log.py",
                "    if directory is None:\n",
                "    if directory is None or path:\n",
            ),
            Edit(
                "criserver/container_create.py",
                "                os.close(resolve.make_directory(base, below))\n",
                '                os.makedirs(f"{directory}/{below}", exist_ok=True)\n',
            ),
        ),
        (
            "test_shim_attacks.py::test_a_link_on_the_way_to_the_log_is_not_followed",
            "test_cri_bad_input.py::test_a_log_directory_with_a_link_in_it",
        ),
    ),
    Mutation(
        "a log path may have dots",
        (
            Edit(
                "criserver/container_create.py",
                'normal in (".", "..") or normal.startswith("../") or ',
                "",
            ),
        ),
        ("test_cri_bad_input.py::test_containers",),
    ),
)
