r"""How a name of the user (of a class, file, folder or run) is written, whatever is in it.

    kept as text    `text_of`: bytes that are not UTF-8 escaped (caf\xe9), all others as they are, whatever the locale
    in a line       `one_line`: line breaks, control characters and other invisible ones escaped too (a\nb, \x1b[31m)
    on the terminal `printed`: every name that holds such characters is escaped where it occurs
    in a command    `word`: quoted, so that a line that is copied means what it says
    in Markdown     `in_markdown`: what would be markup, HTML or mathematics is shown as it is

Files are always written in UTF-8. Figures have their own rule, which knows fonts: `flowimg.figures.letters`.
"""

import os
import re
import shlex
import sys
from collections.abc import Collection, Iterable
from pathlib import Path

from flowimg.errors import SettingsError


def text_of(name: str) -> str:
    r"""A name that the system gave, as text: its bytes read as UTF-8, those that are not UTF-8 escaped: caf\xe9."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def one_line(name: str) -> str:
    """A name in printable form and one line, from any source: whatever cannot be seen is escaped."""
    if not name.isprintable():
        name = "".join(c if c.isprintable() else repr(c)[1:-1] for c in _decoded(name))
    return name


def _decoded(text: str) -> str:
    """Text without surrogates: those that stand for undecoded bytes become UTF-8 where they are."""
    text = re.sub("[\ud800-\udc7f\udd00-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def unprintable(words: Iterable[str]) -> set[str]:
    """The parts of paths among these words that hold line breaks or other characters that cannot be seen."""
    return {part for word in words for part in re.split("[/=]", word) if not part.isprintable()}


def printed(text: str, names: Collection[str] = ()) -> str:
    """Text for the terminal: these names are escaped wherever they occur in it, so that its lines stay lines."""
    for name in names:
        text = text.replace(name, one_line(name))
    return text if text.isascii() else _decoded(text)


def word(value: object) -> str:
    """A path or name as one word of a command to be copied: quoted for a shell, never taken for an option."""
    text = str(value)
    text = f"./{text}" if text.startswith("-") else text
    if text.isprintable():
        return shlex.quote(text)
    return f"$'{''.join(map(_in_shell, text))}'"


def in_markdown(name: str) -> str:
    """A name as text of a Markdown page: every character that could be markup as its number, &#42; for *."""
    plain = " -.,'+"
    return "".join(c if c.isalnum() or c in plain or not c.isascii() else f"&#{ord(c)};" for c in one_line(name))


def _in_shell(character: str) -> str:
    """A character as bash, zsh and newer POSIX shells read it between $' and '."""
    if character in "'\\":
        return f"\\{character}"
    if character.isprintable():
        return character
    if character in "\n\t\r":
        return repr(character)[1:-1]
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))


def on_disk(name: str) -> Path:
    """The path that a setting names, with ~ for the home folder.

    Raises:
        SettingsError: If this user has no home, or the locale has no bytes for the name.
    """
    try:
        path = Path(name).expanduser()
        os.fsencode(path)
    except UnicodeEncodeError:
        raise SettingsError(no_name_here(name)) from None
    except RuntimeError:
        raise SettingsError(f"{name}: the home folder in it is unknown: set HOME, or give the whole path") from None
    return path


def no_name_here(name: str) -> str:
    """A sentence about a name that the locale has no bytes for."""
    return (
        f"{one_line(name)} cannot be the name of a file in this locale, whose encoding is "
        f"{sys.getfilesystemencoding()}: choose one with UTF-8, such as LC_ALL=C.UTF-8"
    )


def no_text(name: str) -> str | None:
    """Why a setting cannot hold this text, and what to do; None for text that is fine."""
    if "\0" in name:
        return "which holds a zero byte: leave it out"
    if not any("\ud800" <= c <= "\udfff" for c in name):
        return None
    try:
        os.fsencode(name).decode("utf-8")
    except UnicodeError:
        return "which is not UTF-8: rename it, or make a link to it (a class is given as it is printed)"
    return f"which this locale reads as {sys.getfilesystemencoding()}: choose one with UTF-8, such as LC_ALL=C.UTF-8"
