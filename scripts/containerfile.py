"""Reads the Containerfile as far as scripts/images can make images of it.

A stage that builds programs is an engine's affair, but for two lines that are
read here too: which programs it asks scripts/programs for, and `RUN setcap`. The
stages that begin with `scratch` are read wholly, and what is not known in them
is an error: an image must not come out another way than an engine makes it.
"""

import json
import re
import shlex
from dataclasses import dataclass, field, replace


class Wrong(Exception):
    """What is wrong with a Containerfile, and in which line."""


@dataclass(frozen=True)
class Image:
    labels: dict = field(default_factory=dict)
    environment: dict = field(default_factory=dict)
    user: str = ""
    entrypoint: tuple = ()
    # (path of the program in the build stage, its directory in the image)
    copies: tuple = ()


@dataclass
class Containerfile:
    images: dict = field(default_factory=dict)  # by target
    capabilities: dict = field(default_factory=dict)  # setcap's text by path in the build stage
    programs: set = field(default_factory=set)  # what scripts/programs is asked for
    output: str = ""  # where it puts them


def parse(text, arguments):
    """The images that a Containerfile describes, with the build's `arguments`."""
    file = Containerfile()
    stages = {"scratch": Image()}
    stage, values = None, {}
    for number, instruction, rest in instructions(text):
        if instruction == "FROM":
            named = re.fullmatch(r"(?:--platform=\S+ )?(\S+) AS (\S+)", rest)
            if not named:
                raise Wrong(f"line {number}: every stage has a name: FROM … AS NAME")
            base, name = named.groups()
            stage = name if base in stages else None
            if stage:
                stages[stage] = replace(stages[base])
        elif stage is None:
            if instruction == "RUN":
                read_build_step(file, rest)
        elif instruction == "ARG":
            name, _, default = rest.partition("=")
            values[name] = arguments.get(name, default)
        else:
            expanded = re.sub(r"\$\{?(\w+)\}?", lambda match: values[match[1]], rest)
            stages[stage] = with_instruction(stages[stage], number, instruction, expanded)
    # What other stages only begin with has no entrypoint.
    file.images = {name: image for name, image in stages.items() if image.entrypoint}
    return file


def instructions(text):
    """(line number, instruction, the rest) of each, with its continued lines."""
    pending, began = "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("#") or not (pending or line.strip()):
            continue
        began = began if pending else number
        pending += line.strip()
        if pending.endswith("\\"):
            pending = pending[:-1]
            continue
        instruction, _, rest = pending.partition(" ")
        yield began, instruction, rest.strip()
        pending = ""


def read_build_step(file, command):
    words = shlex.split(command)
    if words[0] == "setcap":
        _, capability, path = words
        file.capabilities[path] = capability
    elif "scripts/programs" in words:
        options = words[words.index("scripts/programs") + 1 :]
        while options and options[0].startswith("--"):
            if options[0] == "--output":
                file.output = options[1]
            del options[:2]
        file.programs |= set(options)


def with_instruction(image, number, instruction, rest):
    """What an image becomes by one instruction."""
    match instruction:
        case "LABEL":
            return replace(image, labels={**image.labels, **pair(number, rest)})
        case "ENV":
            return replace(image, environment={**image.environment, **pair(number, rest)})
        case "USER":
            return replace(image, user=rest)
        case "ENTRYPOINT":
            return replace(image, entrypoint=tuple(json.loads(rest)))
        case "COPY":
            copy = re.fullmatch(r"--from=build (\S+) (/\S*)", rest)
            if not copy:
                raise Wrong(f"line {number}: images are made of the build stage's programs alone: COPY --from=build FILE DIRECTORY")
            return replace(image, copies=(*image.copies, copy.groups()))
        case other:
            raise Wrong(f"line {number}: scripts/images does not know how to {other}")


def pair(number, text):
    words = shlex.split(text)
    if len(words) != 1 or "=" not in words[0]:
        raise Wrong(f"line {number}: one NAME=VALUE is expected")
    name, _, value = words[0].partition("=")
    return {name: value}


def problems(file):
    """What breaks the rules for images, one sentence each."""
    if not file.images:
        yield "there is no image in it"
    for name, image in file.images.items():
        copied = {path.rsplit("/", 1)[1]: directory for path, directory in image.copies}
        for path, _ in image.copies:
            program = path.removeprefix(file.output + "/")
            if program not in file.programs:
                yield f"{name}: {path} is none of the programs that scripts/programs is asked for"
        if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", image.user):
            yield f"{name}: the user is {image.user or 'root'}; a kubelet can only tell from numbers that it is not root"
        directory, _, program = image.entrypoint[0].rpartition("/")
        if copied.get(program) != (directory or "/"):
            yield f"{name}: the entrypoint {image.entrypoint[0]} is not in the image"
        if "org.opencontainers.image.title" not in image.labels:
            yield f"{name}: it has no title"
    used = {path for image in file.images.values() for path, _ in image.copies}
    for path in file.capabilities:
        if path not in used:
            yield f"setcap {path}: that program is in no image"
    for program in sorted(file.programs):
        if f"{file.output}/{program}" not in used:
            yield f"{program} is built, and is in no image"
