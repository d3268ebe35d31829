# SPDX-License-Identifier: Apache-2.0
"""What a command line runs: for an interpreter the script, module or class that it was given."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class _Interpreter:
    """An interpreter, and how its options are to be read.

    Options of one letter may stand together, as in `-euo`; all others are words.

    Attributes:
        names: of its executables.
        letters_with, words_with: options that have the next argument, unless one is attached.
        letters_attached: those that have only what is attached to them.
        letters_named, words_named: those whose argument is what runs.
        letters_alone, words_alone: with these no file is run: the code is on the command line, or
            comes from elsewhere.
        are_words: options with one dash are words, too.
        commands: what may stand before the script.
        endings: what scripts end in; what does not is something else.
    """

    names: str
    letters_with: str = ""
    letters_attached: str = ""
    letters_named: str = ""
    letters_alone: str = ""
    words_with: frozenset[str] = frozenset()
    words_named: frozenset[str] = frozenset()
    words_alone: frozenset[str] = frozenset()
    are_words: bool = False
    commands: frozenset[str] = frozenset()
    endings: tuple[str, ...] = ("",)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_INTERPRETERS = (
    _Interpreter(
        r"(?:python|pypy)[\d.]*[dt]?(?:-dbg)?",
        letters_with="WXQ", letters_named="m", letters_alone="c",
        words_with=_words("--check-hash-based-pycs"),
    ),
    _Interpreter(
        # The name that Node gives its main thread.
        r"node(?:js)?[\d.]*|(?:node-)?MainThread",
        letters_with="rC", letters_alone="ep",
        words_with=_words(
            "--allow-fs-read --allow-fs-write --build-snapshot-config --conditions "
            "--cpu-prof-dir --cpu-prof-interval --cpu-prof-name --debug-port --diagnostic-dir "
            "--disable-proto --disable-warning --dns-result-order --env-file "
            "--env-file-if-exists --es-module-specifier-resolution --experimental-config-file "
            "--experimental-default-type --experimental-loader --experimental-policy "
            "--experimental-sea-config --heap-prof-dir --heap-prof-interval --heap-prof-name "
            "--heapsnapshot-near-heap-limit --heapsnapshot-signal --icu-data-dir --import "
            "--input-type --inspect-port --inspect-publish-uid --loader --localstorage-file "
            "--max-http-header-size --network-family-autoselection-attempt-timeout "
            "--openssl-config --policy-integrity --redirect-warnings --report-dir "
            "--report-directory --report-filename --report-signal --require --secure-heap "
            "--secure-heap-min --snapshot-blob --test-concurrency --test-name-pattern "
            "--test-reporter --test-reporter-destination --test-shard --test-timeout --title "
            "--tls-cipher-list --tls-keylog --trace-event-categories --trace-event-file-pattern "
            "--trace-require-module --unhandled-rejections --use-largepages --v8-pool-size "
            "--watch-path"
        ),
        words_alone=_words("--eval --print --interactive --run"),
        commands=_words("inspect"),
    ),
    _Interpreter(
        r"ruby[\d.]*",
        letters_with="CEIr", letters_attached="FKTWix0", letters_alone="e",
        words_with=_words(
            "--encoding --external-encoding --internal-encoding --enable --disable --parser"
        ),
    ),
    _Interpreter(
        r"perl[\d.]*(?:-[\w-]+)?",
        letters_with="I", letters_attached="CDFMVdimx", letters_alone="eE",
    ),
    _Interpreter(
        r"php(?:-cli)?[\d.]*",
        letters_with="cdtzS", letters_named="f", letters_alone="rBRE",
        words_with=_words("--php-ini --define --docroot --zend-extension --server"),
        words_named=_words("--file"),
        words_alone=_words("--run --process-begin --process-code --process-end"),
    ),
    _Interpreter(
        r"javaw?",
        are_words=True,
        words_with=_words(
            "-cp -classpath --class-path -p --module-path --upgrade-module-path --add-modules "
            "--limit-modules --add-reads --add-exports --add-opens --patch-module "
            "--enable-native-access --source"
        ),
        words_named=_words("-jar -m --module"),
    ),
    _Interpreter(
        r"dotnet",
        are_words=True,
        words_with=_words(
            "--additionalprobingpath --additional-deps --depsfile --runtimeconfig --fx-version "
            "--roll-forward --roll-forward-on-no-candidate-fx"
        ),
        commands=_words("exec"),
        endings=(".dll", ".exe"),
    ),
    _Interpreter(
        r"(?:r?ba|da|z|k|mk|pdk|a|c|tc)?sh",
        letters_with="oO", letters_alone="cs",
        words_with=_words("--rcfile --init-file"),
    ),
)  # fmt: skip
# One executable that is many programs, by the name that it is called by.
_MANY_IN_ONE = ("busybox", "toybox")
# What is behind these is no file that would say what runs.
_NO_FILES = ("/dev/", "/proc/")


def is_interpreter(name: str) -> bool:
    """Does an executable of this name, or a process's main thread, run others' programs?"""
    return _interpreter(name) is not None


def program_of(executable: str, arguments: Sequence[str]) -> str:
    """What a command line runs: the executable, or what the interpreter was given to run.

    Args:
        executable: its file name.
        arguments: the first one is what it was called by; a process may have put a title there.
    Returns:
        a file name, a module or a class; empty: an interpreter runs what has no name.
    """
    first, *rest = arguments or ("",)
    called_by = _base_name(first.removeprefix("-"))
    if executable in _MANY_IN_ONE:
        if called_by in _MANY_IN_ONE and rest:
            called_by, *rest = rest
        executable = called_by
    interpreter = _interpreter(executable)
    if interpreter is None:
        return executable
    if not rest and not is_interpreter(called_by):
        return _of_title(first)
    name = _script(interpreter, iter(rest))
    return "" if name.startswith(_NO_FILES) else _base_name(name)


def _interpreter(name: str) -> _Interpreter | None:
    return next((each for each in _INTERPRETERS if re.fullmatch(each.names, name)), None)


def _base_name(path: str) -> str:
    name = path.rstrip("/").rpartition("/")[2]
    return "" if name in (".", "..", "-") else name


def _of_title(title: str) -> str:
    """Of a process that has written over its arguments, as in `gunicorn: worker [shop]`."""
    name = _base_name(title.partition(" ")[0]).rstrip(":")
    return "" if is_interpreter(name) else name


def _script(interpreter: _Interpreter, rest: Iterator[str]) -> str:
    """The argument that says what runs; empty: none does."""
    for argument in rest:
        if argument == "--":
            return next(rest, "")
        if (argument.startswith("-") and argument != "-") or argument.startswith("+"):
            if argument.startswith("--") or interpreter.are_words:
                ends, name = _word(interpreter, argument, rest)
            else:
                ends, name = _letters(interpreter, argument[1:], rest)
            if ends:
                return name
        elif argument not in interpreter.commands and not argument.startswith("@"):
            return argument if argument.endswith(interpreter.endings) else ""
    return ""


def _word(interpreter: _Interpreter, argument: str, rest: Iterator[str]) -> tuple[bool, str]:
    """(does the search end with this option, and what runs then)."""
    word, is_attached, value = argument.partition("=")
    if word in interpreter.words_alone:
        return True, ""
    if word in interpreter.words_named:
        return True, value if is_attached else next(rest, "")
    if word in interpreter.words_with and not is_attached:
        next(rest, "")
    return False, ""


def _letters(interpreter: _Interpreter, letters: str, rest: Iterator[str]) -> tuple[bool, str]:
    """The same for options that stand together."""
    for at, letter in enumerate(letters, 1):
        if letter in interpreter.letters_alone:
            return True, ""
        if letter in interpreter.letters_attached:
            break
        if letter in interpreter.letters_named:
            return True, letters[at:] or next(rest, "")
        if letter in interpreter.letters_with:
            if not letters[at:]:
                next(rest, "")
            break
    return False, ""
