"""Photographic cut-outs, sounds and backgrounds from Debian packages.

``debian_media.csv`` names every picture and sound that is used, with what it shows or sounds like
and its licence. The path ``a.rcc!/b`` is member b of the Qt resource file a, and
``a.cat!/NN_title.wav`` is sound NN of the OpenTTD set a; ``fetch`` unpacks both to plain files at
just that path, so that a media folder holds files and nothing else.

The packages also carry what must not be taken for media of these roles: spoken descriptions beside
the sounds, and drawings beside the photographs. ``candidates`` names these with the reason.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path, PurePosixPath

from infra import storage
from synth.sources import openttd_sounds, qt_resource
from synth.tables import ROLES, Candidate

PACKAGES = (
    "gcompris-qt-data",
    "hydrogen-data",
    "lmms-common",
    "openttd-opensfx",
    "simutrans-pak64",
    "sonic-pi-samples",
    "sound-theme-freedesktop",
    "tuxpaint-stamps-default",
)
MARKER = "media.json"

_STAMPS = "usr/share/tuxpaint/stamps"
_APT_SECONDS = 3600
_ELSEWHERE = (
    "name a folder of media with --media.folder (of the demo --media_folder): one made on another "
    "machine, or your own with objects/<class>/*.png, sounds/<class>/*.wav and backgrounds/*.jpg"
)

Progress = Callable[[str], None]


def read_table() -> list[Candidate]:
    """The rows of ``debian_media.csv``, sorted by path.

    Raises:
        ValueError: a row has an unknown role or package, or a path that leads out of its folder.
    """
    text = _table_bytes().decode()
    rows = []
    for row in csv.DictReader(text.splitlines()):
        path = row["path"]
        if row["role"] not in ROLES or row["package"] not in PACKAGES or not _is_inside(path):
            raise ValueError(f"debian_media.csv: {row} has an unknown role, package or path")
        rows.append(
            Candidate(
                role=row["role"],
                class_name=row["class_name"],
                source=row["package"],
                path=path,
                licence=row["licence"],
                author=row["author"],
                origin=row["origin"],
                collection=row["collection"],
            )
        )
    return sorted(rows, key=lambda candidate: candidate.path)


def fetch(cache: Path, *, progress: Progress = lambda line: None) -> Path:
    """The media folder ``cache/media``, made from the packages if it is not there yet.

    Downloads about 256 MB with ``apt-get download``, which installs nothing and needs no rights.

    Raises:
        ValueError: apt-get or dpkg is missing, or a package cannot be had.
    """
    folder = cache / "media"
    if is_whole(folder):
        return folder
    for tool in ("apt-get", "dpkg", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise ValueError(
                f"{tool} is not on this machine, so no media can be fetched: {_ELSEWHERE}"
            )
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".debs-", dir=cache) as downloads:
        progress(f"downloading {len(PACKAGES)} Debian packages (about 256 MB)")
        _download(Path(downloads), progress)
        unpack(Path(downloads), folder, progress=progress)
    return folder


def unpack(debs: Path, folder: Path, *, progress: Progress = lambda line: None) -> None:
    """Make the media folder out of a folder that holds the packages as ``.deb`` files.

    It is built aside and takes its name when it is whole, marker included.

    Raises:
        ValueError: a package is missing or damaged.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".media-", dir=folder.parent))
    try:
        versions = {}
        for package in PACKAGES:
            found = sorted(debs.glob(f"{package}_*.deb"))
            if not found:
                raise ValueError(f"package {package} is missing in {debs}: {_ELSEWHERE}")
            progress(f"unpacking {found[-1].name}")
            versions[package] = _run(["dpkg-deb", "-f", str(found[-1]), "Version"]).strip()
            _run(["dpkg", "-x", str(found[-1]), str(aside)])
        progress("unpacking the containers inside the packages")
        _open_containers(aside, [row.path for row in read_table()])
        marker = {"packages": versions, "table": _table_digest()}
        (aside / MARKER).write_text(json.dumps(marker, sort_keys=True, indent=1) + "\n")
        aside.chmod(0o755)
        _put_in_place(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def is_whole(media: str | Path) -> bool:
    """Whether a media folder was made to its end, and for the table as it is now."""
    try:
        marker = json.loads(storage.read_bytes(storage.join(media, MARKER)))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    return isinstance(marker, dict) and marker.get("table") == _table_digest()


def candidates(media: str | Path) -> Iterator[Candidate]:
    """Every picture and sound of the table, then what upstream's naming rules out, by path.

    ``media`` is a folder that ``fetch`` made, or a copy of one at any URI.

    Raises:
        ValueError: it is not such a folder, or not a whole one.
    """
    if not is_whole(media):
        raise ValueError(f"{media} is no whole folder of Debian media: remove it and run again")
    there = _files_below(storage.normalise(media))
    rows = read_table()
    for row in rows:
        missing = (
            "" if row.path in there else "missing: no such file in this version of the package"
        )
        yield row.refused(missing) if missing else row
    taken = {row.path for row in rows}
    for path in sorted(there - taken):
        reason = naming_rule(path) if path.startswith(f"{_STAMPS}/") else ""
        if reason:
            yield Candidate(
                role="sound" if reason.startswith("speech") else "object",
                source="tuxpaint-stamps-default",
                path=path,
                licence="GPL-2",
                refusal=reason,
            )


def naming_rule(path: str) -> str:
    """Why a file of the stamps must be refused, told from its name; empty when nothing is known.

    Upstream calls the spoken description of ``x.png`` ``x_desc.ogg`` or ``x_desc_fr.ogg``, and
    keeps drawn stamps in folders named ``cartoon`` or as SVG. Some exceptions go by name.
    """
    pure = PurePosixPath(path)
    folders, name = pure.parts[:-1], pure.name
    if pure.suffix in (".ogg", ".wav"):
        if "_desc" in name:
            return "speech: a spoken description"
        if "symbols" in folders:
            return "speech: a spoken symbol"
        if name.startswith("dreydl") or name == "apollo_lander.ogg":
            return "speech: spoken words under the name of an effect"
    elif pure.suffix == ".svg":
        return "drawing: an SVG"
    elif pure.suffix == ".png":
        if "cartoon" in folders:
            return "drawing: a cartoon stamp"
        if "halloween" in folders or "hanukkah" in folders:
            return "drawing: a seasonal stamp"
        if name in ("bee.png", "hedgehog.png"):
            return "drawing: a drawn stamp among photographs"
    return ""


def _table_bytes() -> bytes:
    return (resources.files(__package__) / "debian_media.csv").read_bytes()


def _table_digest() -> str:
    return hashlib.sha256(_table_bytes()).hexdigest()


def _is_inside(path: str) -> bool:
    return bool(path) and not path.startswith("/") and ".." not in path.split("/")


def _files_below(root: str) -> set[str]:
    """Paths of all files, without links that lead out of the folder (packages may hold links)."""
    found = storage.list_files(root)
    if not root.startswith("s3://"):
        real_root = os.path.realpath(root) + os.sep
        found = [uri for uri in found if os.path.realpath(uri).startswith(real_root)]
    return {uri[len(root) + 1 :] for uri in found}


def _open_containers(folder: Path, paths: Sequence[str]) -> None:
    """Write the members that ``paths`` name as plain files, then remove every container."""
    wanted: dict[str, list[str]] = {}
    for path in paths:
        container, inside, member = path.partition("!/")
        if inside:
            wanted.setdefault(container, []).append(member)
    for container, members in sorted(wanted.items()):
        data = storage.read_bytes(folder / container) if (folder / container).is_file() else b""
        try:
            contents = _container_contents(container, data, members) if data else {}
        except ValueError as error:
            raise ValueError(f"{container} cannot be unpacked: {error}") from None
        for member, content in contents.items():
            target = folder / f"{container}!" / member
            assert _is_inside(f"{container}!/{member}"), target
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    for suffix in ("*.rcc", "*.cat"):
        for file in folder.rglob(suffix):
            file.unlink()


def _container_contents(container: str, data: bytes, members: list[str]) -> dict[str, bytes]:
    """The bytes of those ``members`` that the container has."""
    if container.endswith(".rcc"):
        stored = qt_resource.list_members(data)
        return {m: qt_resource.read_member(data, stored[m]) for m in members if m in stored}
    samples = openttd_sounds.read_samples(data)
    numbers = {member: int(member.split("_", 1)[0]) for member in members}
    return {m: samples[k].wave for m, k in numbers.items() if k < len(samples)}


def _put_in_place(aside: Path, folder: Path) -> None:
    if is_whole(folder):  # another process was quicker, with the same result
        return
    try:
        if folder.exists():  # half made, or made for another table
            shutil.rmtree(folder)
        os.replace(aside, folder)
    except OSError as error:
        if not is_whole(folder):
            raise ValueError(f"{folder} cannot be put in place: {error}") from None


def _download(downloads: Path, progress: Progress) -> None:
    try:
        _run(["apt-get", "-q", "download", *PACKAGES], folder=downloads)
        return
    except ValueError:
        progress(
            "the machine's package lists do not do: reading fresh ones into a folder of our own"
        )
    own = downloads / "apt"
    for name in ("lists/partial", "cache/archives/partial"):
        (own / name).mkdir(parents=True)
    options = [
        f"-oDir::State::lists={own / 'lists'}",
        f"-oDir::Cache={own / 'cache'}",
        # As root apt would hand the work to a user who may not write here.
        "-oAPT::Sandbox::User=root",
    ]
    try:
        _run(["apt-get", "-q", *options, "update"], folder=downloads)
        _run(["apt-get", "-q", *options, "download", *PACKAGES], folder=downloads)
    except ValueError as error:
        raise ValueError(
            f"the media packages cannot be downloaded ({error}): {_ELSEWHERE}"
        ) from None


def _run(command: list[str], *, folder: Path | None = None) -> str:
    """Standard output of a command; ValueError with its last complaint when it fails."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_APT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ValueError(f"{command[0]}: {error}") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line and not line.startswith("W:")]
        raise ValueError(f"{command[0]}: {lines[-1] if lines else f'exit code {done.returncode}'}")
    return done.stdout
