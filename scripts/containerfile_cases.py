"""Containerfiles that must be refused: each rule of containerfile.py can fail."""

import sys

import containerfile

# What is replaced in the real one, by what, and what the refusal must say.
CASES = [
    ("USER 1337:1337", "USER 0:0", "proxy: the user is 0:0"),
    ("USER 1337:1337", "USER nobody", "proxy: the user is nobody"),
    ('ENTRYPOINT ["/bulkhead-ca"]', 'ENTRYPOINT ["/bulkhead"]', "ca: the entrypoint /bulkhead is not"),
    ("COPY --from=build /programs/bulkhead-init /", "", "bulkhead-init: that program is in no image"),
    ("COPY --from=build /programs/bulkhead-init /", "", "bulkhead-init is built, and is in no image"),
    ("COPY --from=build /programs/bulkhead-ca /", "COPY --from=build /programs/other /", "/programs/other is none"),
    ("COPY --from=build /programs/bulkhead-ca /", "COPY README.md /", "build stage's programs alone"),
    ("LABEL org.opencontainers.image.title=bulkhead-ca", "", "ca: it has no title"),
    ("ENV PATH=/", "VOLUME /data", "does not know how to VOLUME"),
    ("ENV PATH=/", "ENV PATH /", "one NAME=VALUE is expected"),
    ("FROM scratch AS image", "FROM scratch", "every stage has a name"),
]


def check(text):
    """How many doctored files were refused; ends the program where one was not."""
    for before, after, expected in CASES:
        doctored = text.replace(before, after, 1)
        if doctored == text:
            sys.exit(f"images: a case doctors {before!r}, which the Containerfile does not have")
        said = refusals(doctored)
        if not any(expected in sentence for sentence in said):
            sys.exit(f"images: {after!r} in place of {before!r} was not refused as it must be; said was: {said}")
    return len(CASES)


def refusals(text):
    try:
        return list(containerfile.problems(containerfile.parse(text, {})))
    except containerfile.Wrong as wrong:
        return [str(wrong)]
