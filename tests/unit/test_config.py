"""The settings: defaults, files, drop-ins, flags, and one clear line for every mistake."""

import re
from pathlib import Path

import pytest

from criserver import config_command, config_schema, config_text
from criserver.config import Config, ConfigError, RuntimeConfig, load
from criserver.config_observability import Address, parse_address

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = list(config_schema.settings(Config))
ASSIGNED = re.compile(r"^#(\w+ = |\[)", re.MULTILINE)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_the_defaults_are_the_documented_ones():
    settings = Config()
    assert settings.root == Path("/var/lib/criserver")
    assert settings.listen_path == Path("/run/criserver/criserver.sock")
    assert settings.network.cni_conf_dirs == (Path("/etc/cni/net.d"),)


def test_the_documented_default_file_changes_nothing_and_has_the_defaults(tmp_path, capsys):
    assert config_command.main(["default"]) == 0
    printed = capsys.readouterr().out
    assert load(write(tmp_path / "a" / "config.toml", printed)) == Config()
    uncommented, count = ASSIGNED.subn(r"\1", printed)
    assert count >= sum("NAME" not in each.key for each in SETTINGS)
    uncommented = uncommented.replace('"/usr/sbin/runc"', '"/bin/sh"')
    runc = {"runc": RuntimeConfig(path=Path("/bin/sh"))}
    assert load(write(tmp_path / "b" / "config.toml", uncommented)) == Config(runtimes=runc)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda each: each.key)
def test_every_setting_is_in_the_default_file_with_its_documentation(setting):
    lines = config_text.default_toml(Config).splitlines()
    name = setting.key.rpartition(".")[2]
    found = [number for number, line in enumerate(lines) if re.match(rf"#?{name} = ", line)]
    documented = [setting.doc.splitlines()[-1] in lines[number - 1] for number in found]
    assert setting.doc
    assert any(documented) or "NAME" in setting.key


def test_what_is_reloaded_is_marked_in_the_default_file():
    text = config_text.default_toml(Config)
    marked = re.findall(r"\[reload\]\n#(\w+) = ", text)
    reloaded = [each.key for each in SETTINGS if each.reloaded]
    assert marked == [key.rpartition(".")[2] for key in reloaded if "NAME" not in key]
    assert "by the same shim. [reload]\n#[runtimes.runc]" in text


def test_the_files_of_the_repository_are_the_generated_ones():
    assert (ROOT / "deploy/config.toml").read_text() == config_text.default_toml(Config), (
        "run hack/generate-configuration"
    )
    page = (ROOT / "docs/configuration.md").read_text()
    assert config_text.reference(Config) in page, "run hack/generate-configuration"


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda each: each.key)
def test_every_setting_is_in_the_operators_page(setting):
    assert f"- **`{setting.key}`**: " in (ROOT / "docs/configuration.md").read_text()


def test_a_file_sets_values_in_tables(tmp_path):
    text = 'root = "/srv/cri"\n[network]\nbridge = "br9"\nsubnets = ["10.9.0.0/24", "fd09::/64"]\n'
    settings = load(write(tmp_path / "config.toml", text))
    assert settings.root == Path("/srv/cri")
    assert settings.network.bridge == "br9"
    assert settings.network.subnets == ("10.9.0.0/24", "fd09::/64")
    assert settings.network.cni_timeout_seconds == Config().network.cni_timeout_seconds


def test_drop_ins_override_the_file_in_the_order_of_their_names(tmp_path):
    file = write(tmp_path / "config.toml", 'log_level = "error"\ncgroup_driver = "cgroupfs"\n')
    write(tmp_path / "config.d" / "20.toml", 'log_level = "debug"\n')
    write(tmp_path / "config.d" / "10.toml", 'log_level = "warning"\nroot = "/ten"\n')
    write(tmp_path / "config.d" / "99.conf", "not read")
    settings = load(file)
    assert (settings.log_level, settings.root) == ("debug", Path("/ten"))


def test_flags_override_everything(tmp_path, capsys):
    file = write(tmp_path / "config.toml", 'root = "/file"\nrun_dir = "/file"\n')
    flags = ["--root", "/flag", "--cni-bin-dir", "/one", "--cni-bin-dir", "/two"]
    assert config_command.main(["dump", "--config", str(file), *flags]) == 0
    dumped = load(write(tmp_path / "dumped" / "config.toml", capsys.readouterr().out))
    assert (dumped.root, dumped.run_dir) == (Path("/flag"), Path("/file"))
    assert dumped.network.cni_bin_dirs == (Path("/one"), Path("/two"))
    assert dumped.listen_path == Path("/file/criserver.sock")


def test_dump_says_where_each_value_is_from(tmp_path, capsys):
    file = write(tmp_path / "config.toml", "log_level = 'error'\n[network]\nbridge = 'br9'\n")
    drop_in = write(tmp_path / "config.d" / "a.toml", "\nlog_level = 'debug'\n")
    assert config_command.main(["dump", "--config", str(file), "--root", "/flag"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f'log_level = "debug"  # {drop_in}:2' in lines
    assert f'bridge = "br9"  # {file}:3' in lines
    assert 'root = "/flag"  # --root' in lines
    assert 'run_dir = "/run/criserver"  # default' in lines


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("colour = 1\n", 1, "unknown key 'colour'"),
        ("\n[network]\n\nbrigde = 'a'\n", 4, "unknown key 'network.brigde'"),
        ("[networks]\nbridge = 'a'\n", 1, "unknown key 'networks'"),
        ("network = 3\n", 1, "network must be a table"),
        ("[network]\nbrigde = 'a'\n", 2, "did you mean 'network.bridge'?"),
        ("log_level = 'info'\nnetwork.brigde = 'a'\n", 2, "unknown key 'network.brigde'"),
        ("\nnetwork = {brigde = 'a'}\n", 2, "unknown key 'network.brigde'"),
        ("[[network]]\nbridge = 'a'\n", 1, "network must be a table"),
        ("root = 1\n", 1, "root must be an absolute path, not 1"),
        ("root = 'relative'\n", 1, "root must be an absolute path"),
        ("\nlog_level = 'loud'\n", 2, "log_level must be one of debug, info"),
        ("[containers]\npids_limit = -1\n", 2, "containers.pids_limit must be 0 or more, not -1"),
        ("[containers]\npids_limit = true\n", 2, "must be an integer, not true"),
        ("[containers]\npids_limit = 1.5\n", 2, "must be an integer, not 1.5"),
        ("[network]\nsubnets = '10.0.0.0/8'\n", 2, "network.subnets must be a list"),
        ("[network]\nsubnets = ['10.0.0.1/8']\n", 2, "without host bits"),
        ("[network]\nsubnets = ['10.1.0.0/16', '10.2.0.0/16']\n", 2, "one IPv4 and/or one IPv6"),
        ("[network]\nbridge = 'sixteen-letters0'\n", 2, "an interface name"),
        ("[network]\ncni_timeout_seconds = 0\n", 2, "more than 0"),
        ("listen = 'tcp://0.0.0.0:1'\n", 1, "unix:///PATH"),
        (f"listen = 'unix:///{'x' * 107}'\n", 1, "at most 107 bytes"),
        ("[streaming]\nport = 65536\n", 2, "0 to 65535"),
        ("[streaming]\naddress = 'localhost'\n", 2, "an IPv4 or IPv6 address"),
        ("[streaming]\nidle_timeout_seconds = 0\n", 2, "more than 0"),
        ("[streaming]\ntls_cert_file = 'tls.crt'\n", 2, "an absolute path, or empty"),
        ("log_format = 'xml'\n", 1, "one of plain, json"),
        ("[metrics]\nlisten = 'localhost:9090'\n", 2, "IP:PORT"),
        ("[metrics]\nlisten = '127.0.0.1:65536'\n", 2, "IP:PORT"),
        ("[metrics]\nlisten = '::1:9090'\n", 2, "[IPv6]:PORT"),
        (f"[metrics]\nlisten = 'unix:///{'x' * 107}'\n", 2, "at most 107 bytes"),
        ("[tracing]\nendpoint = '127.0.0.1:4317'\n", 2, "http://HOST:PORT"),
        ("[tracing]\nendpoint = 'http://collector'\n", 2, "http://HOST:PORT"),
        ("[tracing]\nsampling_ratio = 1.5\n", 2, "0 to 1"),
        ("cgroup_driver = 'docker'\n", 1, "one of cgroupfs"),
        ("runtimes = 1\n", 1, "runtimes must be tables"),
        ("[runtimes]\nrunc = '/bin/sh'\n", 1, "runtimes.runc must be a table"),
        ("[runtimes.Run_C]\npath = '/bin/sh'\n", 1, "must be a DNS label"),
        ("\n[runtimes.runc]\n", 2, "[runtimes.runc] needs 'path'"),
        ("[runtimes.runc]\nbinary = '/bin/sh'\npath = '/bin/sh'\n", 2, "unknown key"),
        ("[runtimes.runc]\npath = 'runc'\n", 2, "must be an absolute path"),
        ("[runtimes.runc]\npath = '/none'\n", 2, "a program that can be executed"),
        ("[runtimes.runc]\npath = '/etc/passwd'\n", 2, "a program that can be executed"),
    ],
)
def test_a_mistake_is_named_with_file_line_and_what_was_expected(tmp_path, text, line, said):
    file = write(tmp_path / "config.toml", text)
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert str(caught.value).startswith(f"{file}:{line}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tls = true\ntls_cert_file = '/tls.crt'\n", "go together"),
        ("tls = true\ntls_key_file = '/tls.key'\n", "go together"),
        ("tls_cert_file = '/tls.crt'\ntls_key_file = '/tls.key'\n", "streaming.tls is false"),
    ],
)
def test_tls_settings_that_do_not_fit_together(tmp_path, text, said):
    file = write(tmp_path / "config.toml", f"[streaming]\n{text}")
    with pytest.raises(ConfigError, match=rf"^{file}:\d: .*{said}"):
        load(file)


def test_a_mistake_in_a_drop_in_names_the_drop_in(tmp_path):
    file = write(tmp_path / "config.toml", "")
    drop_in = write(tmp_path / "config.d" / "a.toml", "\nrootx = 1\n")
    with pytest.raises(ConfigError, match=rf"^{drop_in}:2: unknown key 'rootx'"):
        load(file)


def test_runtime_handlers_are_tables_by_their_names(tmp_path, capsys):
    text = "[runtimes.runc]\npath = '/bin/sh'\n[runtimes.other]\npath = '/bin/cat'\n"
    file = write(tmp_path / "config.toml", text)
    settings = load(file)
    assert settings.handlers == ("runtimeshim", "other", "runc")
    assert settings.runtimes["runc"].path == Path("/bin/sh")
    assert config_command.main(["dump", "--config", str(file)]) == 0
    assert load(write(tmp_path / "dumped.toml", capsys.readouterr().out)) == settings


def test_a_runtime_handler_cannot_have_the_embedded_ones_name(tmp_path):
    text = "[runtimes.runtimeshim]\npath = '/bin/sh'\n"
    file = write(tmp_path / "config.toml", text)
    with pytest.raises(ConfigError, match=rf"^{file}:2: \[runtimes.runtimeshim\]: the name is"):
        load(file)


def test_a_file_that_is_not_toml_is_refused_with_its_line(tmp_path):
    file = write(tmp_path / "config.toml", "root = \n")
    with pytest.raises(ConfigError, match=rf"^{file}:1: is not TOML: "):
        load(file)


def test_a_named_file_has_to_exist(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "none.toml")


def test_a_wrong_flag_is_named_as_the_flag(capsys):
    assert config_command.main(["check", "--log-level", "loud"]) == 1
    assert capsys.readouterr().err == (
        'criserver: --log-level: log_level must be one of debug, info, warning, error, not "loud"\n'
    )


def test_check_says_that_a_good_configuration_is_good(tmp_path, capsys):
    file = write(tmp_path / "config.toml", "root = '/a'\n")
    assert config_command.main(["check", "--config", str(file)]) == 0
    drop_in = write(tmp_path / "config.d" / "a.toml", "")
    assert config_command.main(["check", "--config", str(file)]) == 0
    good, with_drop_in = capsys.readouterr().out.splitlines()
    assert good == f"the configuration is good: {file}"
    assert with_drop_in == f"{good}, {drop_in}"


def test_a_run_dir_whose_socket_has_no_legal_name_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="listen"):
        load(write(tmp_path / "config.toml", f"run_dir = '/{'r' * 100}'\n"))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:///run/m.sock", Address(path="/run/m.sock")),
        ("127.0.0.1:9090", Address(host="127.0.0.1", port=9090)),
        ("[::1]:0", Address(host="::1", port=0)),
    ],
)
def test_the_metrics_are_served_on_a_socket_or_a_port(text, address):
    assert parse_address(text) == address
