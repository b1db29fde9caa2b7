"""Writes a container image as `docker save` writes it: a tar of one layer, its
configuration and a manifest. The same files make the same bytes."""

import hashlib
import io
import json
import re
import struct
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

# capability(7): the number is the bit in the sets of a process.
CAPABILITIES = {"cap_net_admin": 12}


@dataclass
class Content:
    """One image: its files, by path in it, and what the engine is told."""

    files: dict
    user: str
    entrypoint: list
    labels: dict = field(default_factory=dict)
    environment: dict = field(default_factory=lambda: {"PATH": "/"})
    capabilities: dict = field(default_factory=dict)  # setcap's text by path in the image


def capability_attribute(text):
    """The extended attribute `security.capability` that `setcap TEXT` sets."""
    match = re.fullmatch(r"(\w+)\+(e?)p", text)
    if not match or match[1] not in CAPABILITIES:
        raise ValueError(f"setcap {text}: only NAME+p and NAME+ep are known, with a NAME of {', '.join(CAPABILITIES)}")
    # struct vfs_cap_data of linux/capability.h: revision 2 and whether what is
    # permitted is effective, then permitted and inheritable, low words before high.
    revision = 0x02000000 | bool(match[2])
    permitted = 1 << CAPABILITIES[match[1]]
    fields = struct.pack("<5I", revision, permitted & 0xFFFFFFFF, 0, permitted >> 32, 0)
    return fields.decode("ascii")


def layer(content):
    """The bytes of the one layer: a tar whose entries have no date and are in order."""
    directories = {str(parent) for path in content.files for parent in Path(path).parents} - {"/"}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(directories | content.files.keys()):
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.mode = 0o755
            if path in directories:
                entry.type = tarfile.DIRTYPE
                tar.addfile(entry)
                continue
            if path in content.capabilities:
                entry.pax_headers["SCHILY.xattr.security.capability"] = capability_attribute(content.capabilities[path])
            data = content.files[path].read_bytes()
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def archive(content, reference, architecture):
    """The image as `docker save` writes it."""
    blob = layer(content)
    digest = hashlib.sha256(blob).hexdigest()
    config = encode({
        "architecture": architecture,
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "User": content.user,
            "Env": [f"{name}={value}" for name, value in content.environment.items()],
            "Entrypoint": content.entrypoint,
            "Labels": content.labels,
            "WorkingDir": "/",
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "scripts/images"}],
    })
    config_name = hashlib.sha256(config).hexdigest() + ".json"
    manifest = encode([{"Config": config_name, "RepoTags": [reference], "Layers": [f"{digest}/layer.tar"]}])
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in (("manifest.json", manifest), (config_name, config), (f"{digest}/layer.tar", blob)):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue(), config_name.removesuffix(".json")


def encode(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
