"""The container files, as far as they can be checked without a container runtime."""

from __future__ import annotations

import re
import subprocess
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"
DOCKERFILES = [DOCKER / "Dockerfile", DOCKER / "mlflow.Dockerfile"]
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]


def instructions(path: Path) -> list[tuple[str, str]]:
    """The (instruction, argument) pairs of a Dockerfile, continued lines joined."""
    text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def stages(path: Path) -> list[str]:
    """The images that a Dockerfile begins its stages from, build arguments filled in."""
    defaults = dict(rest.split("=", 1) for word, rest in instructions(path) if word == "ARG")
    images = [rest.split()[0] for word, rest in instructions(path) if word == "FROM"]
    return [re.sub(r"\$\{(\w+)\}", lambda m: defaults[m.group(1)], image) for image in images]


def is_pinned(image: str) -> bool:
    _, _, tag = image.partition(":")
    return bool(re.match(r"\d+\.\d+", tag)) and "latest" not in tag


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.name)
def test_images_begin_from_pinned_bases_and_end_as_a_plain_user(path: Path) -> None:
    assert all(is_pinned(image) for image in stages(path))
    found = instructions(path)
    users = [rest for word, rest in found if word == "USER"]
    assert users
    assert users[-1] not in ("root", "0")
    after = [word for word, _ in found[found.index(("USER", users[-1])) :]]
    assert "RUN" not in after
    assert "ADD" not in [word for word, _ in found]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.name)
def test_packages_are_pinned_or_our_own_wheel(path: Path) -> None:
    arguments = dict(rest.split("=", 1) for word, rest in instructions(path) if word == "ARG")
    for word, rest in instructions(path):
        for command in re.findall(r"pip install ([^&]*)", rest) if word == "RUN" else []:
            text = re.sub(r"\$\{TORCH_INDEX_URL:\+.*?\}\"\}", "", command)
            text = re.sub(r"\$\{(\w+)\}", lambda m: arguments[m.group(1)], text)
            wanted = [word.strip('"') for word in text.split() if not word.startswith("-")]
            assert wanted
            for package in wanted:
                if package.endswith(".lock"):
                    # Nothing else is looked for, and each file is checked.
                    assert {"--no-deps", "--require-hashes"} <= set(text.split())
                else:
                    assert "==" in package or package.endswith(".whl")


LOCKS = sorted(DOCKER.glob("*.lock"))


def pinned(path: Path) -> dict[str, str]:
    """Package -> version of a lock file."""
    lines = re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;\\]+)", path.read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in lines}


@pytest.mark.parametrize("path", LOCKS, ids=lambda p: p.name)
def test_a_lock_names_files_by_hash_and_nowhere_by_address(path: Path) -> None:
    text = path.read_text()
    assert "://" not in text and "--index-url" not in text and "--find-links" not in text
    entries = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)[1:]
    assert len(entries) == len(pinned(path)) > 0
    for entry in entries:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry


def test_the_lock_has_every_dependency_in_its_range_but_torch() -> None:
    """The service's, too, which the image serves."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = pinned(DOCKER / "requirements.lock")
    for line in project["dependencies"] + project["optional-dependencies"]["service"]:
        wanted = Requirement(line)
        if wanted.name != "torch":
            assert locked[canonicalize_name(wanted.name)] in wanted.specifier, line
    assert not [name for name in locked if name.startswith(("torch", "triton", "nvidia", "cuda"))]
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    built = pinned(DOCKER / "build.lock")
    assert all(built[Requirement(line).name] in Requirement(line).specifier for line in build)


def test_the_lock_lacks_nothing_that_its_packages_need() -> None:
    """As far as the same versions are installed here."""
    locked = pinned(DOCKER / "requirements.lock")
    environment = {"extra": "", "python_version": "3.11", "python_full_version": "3.11.14"}
    missing = set()
    for name, number in locked.items():
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            continue
        if installed.version != number:
            continue
        for line in installed.requires or ():
            wanted = Requirement(line)
            here = wanted.marker is None or wanted.marker.evaluate(environment)
            if here and canonicalize_name(wanted.name) not in {*locked, "torch"}:
                missing.add(f"{name} needs {line}")
    assert missing == set()


def test_everything_that_is_copied_is_there_and_not_ignored() -> None:
    allowed = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    assert allowed[0] == "*"
    for word, rest in instructions(DOCKER / "Dockerfile"):
        if word == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists()
                assert f"!{source}" in allowed


def test_the_servers_mlflow_is_one_that_mergeops_works_with() -> None:
    from importlib.metadata import version

    installed = pinned(DOCKER / "mlflow.lock")["mlflow"]
    assert installed.split(".")[:2] == version("mlflow").split(".")[:2]


def test_services_have_a_pinned_image_or_a_dockerfile_that_is_there() -> None:
    for service in SERVICES.values():
        if "image" in service:
            assert is_pinned(service["image"])
        else:
            context = DOCKER / service["build"]["context"]
            assert (context / service["build"]["dockerfile"]).is_file()


def test_what_a_service_waits_for_exists_and_can_become_ready() -> None:
    for service in SERVICES.values():
        for name, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[name]
            else:
                assert how["condition"] == "service_completed_successfully"
                assert "restart" not in SERVICES[name]


def test_every_mounted_volume_is_declared() -> None:
    mounted = {v.split(":")[0] for s in SERVICES.values() for v in s.get("volumes", [])}
    assert mounted == set(COMPOSE["volumes"])


def test_the_server_answers_to_the_name_under_which_the_others_call_it() -> None:
    command = SERVICES["mlflow"]["command"]
    hosts = command[command.index("--allowed-hosts") + 1].split(",")
    called = SERVICES["mergeops"]["environment"]["MLFLOW_TRACKING_URI"].removeprefix("http://")
    assert called in hosts
    assert called.split(":")[0] in SERVICES
    assert "localhost:*" in hosts
    assert "*" not in hosts


def test_mlflow_takes_the_options_that_it_is_given() -> None:
    from mlflow.cli import server

    known = {name for option in server.params for name in option.opts}
    given = {word for word in SERVICES["mlflow"]["command"] if word.startswith("--")}
    assert given <= known
    env = {option.envvar for option in server.params}
    assert {"MLFLOW_BACKEND_STORE_URI", "MLFLOW_ARTIFACTS_DESTINATION"} <= env


def test_the_job_runner_is_off_and_only_this_machine_reaches_the_server() -> None:
    assert SERVICES["mlflow"]["environment"]["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    published = [port for s in SERVICES.values() for port in s.get("ports", [])]
    assert published == ["127.0.0.1:5000:5000", "127.0.0.1:8321:8321"]


def test_secrets_come_from_the_environment_and_are_named_in_the_example() -> None:
    named = set(re.findall(r"^(\w+)=", (DOCKER / ".env.example").read_text(), re.MULTILINE))
    for service in SERVICES.values():
        for key, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|ACCESS_KEY", key):
                assert re.match(r"^\$\{(\w+):\?", value)
                assert re.findall(r"\$\{(\w+)", value)[0] in named
    assert ".env" in (DOCKER / ".gitignore").read_text().split()


def test_our_own_images_write_to_volumes_and_memory_only() -> None:
    for service in SERVICES.values():
        if "build" in service:
            assert service["read_only"] is True
            assert service["cap_drop"] == ["ALL"]
            assert service["security_opt"] == ["no-new-privileges:true"]
            assert "/tmp" in service["tmpfs"]
    home = [line for _, line in instructions(DOCKER / "Dockerfile") if "--uid 10001" in line]
    assert home
    assert "/home/mergeops:uid=10001" in SERVICES["mergeops"]["tmpfs"]


KUBERNETES = DOCKER / "kubernetes"


def manifests() -> list[dict[str, Any]]:
    files = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["resources"]
    return [m for file in files for m in yaml.safe_load_all((KUBERNETES / file).read_text())]


def containers() -> list[dict[str, Any]]:
    pods = [m["spec"]["template"]["spec"] for m in manifests() if m["kind"] == "Deployment"]
    assert all(pod["securityContext"]["runAsNonRoot"] for pod in pods)
    return [container for pod in pods for container in pod["containers"]]


def test_the_clusters_containers_may_do_nothing_more_than_they_need() -> None:
    for container in containers():
        confined = container["securityContext"]
        assert confined["readOnlyRootFilesystem"] and not confined["allowPrivilegeEscalation"]
        assert confined["capabilities"] == {"drop": ["ALL"]}
        assert all("secretKeyRef" in one["valueFrom"] for one in container["env"])


def test_the_service_is_started_by_words_that_it_takes() -> None:
    import click

    from mergeops.cli.main import cli
    from mergeops.service.operator_config import read_config

    started = [c["args"] for c in containers()]
    started += [SERVICES[name]["command"] for name in ("serve", "worker")]
    for name, *words in started:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        command.make_context(name, words if name == "serve" else [*words, "--database", "x"])
    assert "mergeops" in read_config(KUBERNETES / "service.yaml").hosts


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "echo 'Traceback (most recent call last):' >&2; echo 'ConnectionError: no way' >&2",
            "docker/requirements.lock: no answer about advisories; run it where they are reached "
            "(ConnectionError: no way)\n",
        ),
        ("echo 'Found 1 known vulnerability'", "Found 1 known vulnerability\n"),
    ],
)
def test_an_audit_that_fails_says_why_in_one_line(said: str, told: str, tmp_path: Path) -> None:
    audit = tmp_path / "pip-audit"
    audit.write_text(f"#!/bin/sh\n{said}\nexit 1\n")
    audit.chmod(0o755)
    done = subprocess.run([".ci/audit", audit], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, told)
