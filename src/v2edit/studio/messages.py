"""The words of messages for people at a browser, who have no command line and do not know the server's folders."""

from __future__ import annotations

import re

# Hints that only a shell can follow with what becomes of them, and what options are called whose name says too little.
SHELL_HINTS = {
    r"; then go on with: v2edit resume .*$": "",
    r"; v2edit resume \S+ makes it so": "",
    r": go on with v2edit resume .*$": ": resume it",
    r"(; |, or )choose another -o( or remove it)?$": "",
    r"; --timed times [^;]*": "",
    r", which --timed times\b": ", which are not timed here",
    r" \(--[a-z][\w-]*\)": "",
}
NAMES = {
    "--source-prompt": "the source prompt", "--target-prompt": "the target prompt", "--lvlm": "a language model",
    "--lvlm-url": "the language model's address", "-o": "the name of the run", "--vae-tiling": "VAE tiling",
    "--box3d": "the 3D box", "--crf": "quality (CRF)",
}  # fmt: skip
OPTION = re.compile(r"(?<![\w-])(--[a-z][a-z0-9]*(?:-[a-z0-9]+)*|-o(?=\s))")
OS_ERROR = re.compile(r"\[(?:Errno|WinError) -?\d+\] ([^:\[\]]+)(?:: '([^']*)')?(?: -> '([^']*)')?")
PATH = re.compile(r"(?<![\w:/.~-])/(?:[^/\s:;,'\"()]+/)+([^/\s:;,'\"()]*)")


def for_browser(text: str) -> str:
    """Return a message with its command-line words, error numbers and folders in the words of a page: `--target-prompt`
    as "target prompt", `[Errno 28] …` as "No space left on device"."""
    for hint, instead in SHELL_HINTS.items():
        text = re.sub(hint, instead, text)
    text = OS_ERROR.sub(_describe_os_error, text)
    text = PATH.sub(lambda found: found[1] or "a folder", text)
    text = re.sub(r"\ban INSTRUCTION\b", "an instruction", text)
    return OPTION.sub(lambda found: NAMES.get(found[1], found[1].lstrip("-").replace("-", " ")), text)


def _describe_os_error(found: re.Match[str]) -> str:
    """Return the system's words, with the file's name where that is one that people know: no part of a write."""
    name = (found[3] or found[2] or "").rpartition("/")[2]
    return found[1] if not name or name.startswith(".") or name.endswith(".part") else f"{found[1]}: {name}"
