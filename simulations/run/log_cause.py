"""Find in a log why Flower, Ray or Python ended a run that could not say so itself."""

from __future__ import annotations

import re

# Colours, and what the SuperLink's web server puts before a line.
ORNAMENTS = re.compile(r"\x1b\[[0-9;]*m|^\S+Z [A-Z]+ \[[\w.]+\] ", re.MULTILINE)
TRACEBACK = "Traceback (most recent call last):"
WRAPPED = "The above exception was the direct cause of the following exception:"
# The line that ends a traceback is the first one at the margin: an exception's name and message.
RAISED = re.compile(r"[A-Za-z_][\w.]*(?::.*)?$")
# What ends a run without a traceback.
PHRASES = re.compile(
    r"No space left on device|address already in use|Read-only file system|Cannot allocate memory"
    r"|command not found|Fatal Python error|Segmentation fault|out of memory|Bus error",
    re.IGNORECASE,
)
LONGEST = 400


def cause_in(log: str) -> str:
    """Return the cause in one line: what began the last chain of exceptions, or else a phrase.

    Flower wraps an error in others that say only that there was one. Empty where nothing is found.
    """
    lines = ORNAMENTS.sub("", log).splitlines()
    cause, is_open, is_wrapped = "", False, False
    for line in lines:
        if line.endswith(TRACEBACK):
            is_open = True
        elif line == WRAPPED:
            is_wrapped = True
        elif is_open and RAISED.match(line):
            if not is_wrapped:
                cause = line
            is_open = is_wrapped = False
    if not cause:
        cause = next((line for line in reversed(lines) if PHRASES.search(line)), "")
    return " ".join(cause.split())[:LONGEST]
