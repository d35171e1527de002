"""What Hydra and OmegaConf have to say about a user's mistake, told in one line."""

import difflib
import re
from collections.abc import Collection, Iterable, Iterator

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)
from yaml import YAMLError

from hnseg.errors import HnsegError

# Hydra's own grammar reads what stands behind the sign of equality.
_QUOTES = """; a value with spaces, commas, brackets or accents is written 'KEY="VALUE"'"""
_UNKNOWN_GROUP = re.compile(r"Could not override '([^']+)'")  # of another entry point, for instance
_UNKNOWN_KEY = (ConfigAttributeError, ConfigKeyError)


def explain(error: Exception, groups: Iterable[str] = ()) -> str | None:
    """Tells a user's mistake in one line.

    Args:
        error: what a Hydra application ended with.
        groups: the names of the config groups, to suggest the one meant.

    Returns:
        The line, without the program's name; None where the error is a defect rather than a
        mistake, and deserves its traceback.
    """
    chain = list(_causes(error))
    for cause in chain:
        if isinstance(cause, HnsegError):
            return str(cause) + _job_of(error)
    if isinstance(error, YAMLError):
        return _on_one_line(str(error))
    if isinstance(error, _UNKNOWN_KEY) or not isinstance(error, HydraException | OmegaConfBaseException):
        return None
    for cause in chain:
        if isinstance(cause, MissingConfigException):
            return _unknown_option(cause)
        if isinstance(cause, _UNKNOWN_KEY):
            return _unknown_key(cause, groups)
        if isinstance(cause, MissingMandatoryValue):
            return f"{cause.full_key}: a value is needed; add {cause.full_key}=VALUE{_job_of(error)}"
        if isinstance(cause, OverrideParseException):
            return f"{cause.override}: cannot be read as key=value: {_on_one_line(str(cause))}{_QUOTES}"
    if match := _UNKNOWN_GROUP.match(str(error)):
        return f"{match[1]}: no such group here; {_remedy(match[1], [*groups])}"
    return _in_their_words(chain) + _job_of(error)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it was raised from; a warning made an error hides the reason in its context."""
    while error is not None:
        yield error
        error = error.__context__ if isinstance(error, Warning) else error.__cause__


def _job_of(error: Exception) -> str:
    return "".join(f" ({note})" for note in getattr(error, "__notes__", ()))


def _on_one_line(text: str) -> str:
    """Joins the lines of a message, without OmegaConf's `full_key`, types and Hydra's links."""
    lines = (line.strip() for line in text.splitlines())
    noise = ("full_key:", "object_type=", "reference_type=", "See http")
    return "; ".join(line.rstrip(":;. ") for line in lines if line and not line.startswith(noise))


def _unknown_option(error: MissingConfigException) -> str:
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    if not error.options:
        return _on_one_line(str(error).partition("Config search path")[0])
    return f"{group}={option}: no such choice; {_remedy(option, error.options)}"


def _unknown_key(error: ConfigAttributeError | ConfigKeyError, groups: Iterable[str]) -> str:
    key = str(error.full_key)
    prefix = key.removesuffix(str(error.key))
    siblings = error.parent_node if isinstance(error.parent_node, DictConfig) else ()
    known = {prefix + str(sibling) for sibling in siblings if sibling != "hydra"}
    if not prefix:
        known.update(groups)
    return f"{key}: no such key; {_remedy(key, known)}"


def _remedy(name: str, known: Collection[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1)
    meant = f"did you mean {nearest[0]}? " if nearest else ""
    return f"{meant}Known: {', '.join(sorted(known)) or 'none here'}"


def _in_their_words(chain: list[BaseException]) -> str:
    """Hydra's or OmegaConf's own words; the key goes first where they leave it out."""
    key = getattr(chain[0], "full_key", None)
    text = f"{key}: " if key else ""
    text += ": ".join(line for cause in chain if (line := _on_one_line(str(cause))))
    if text.startswith("Ambiguous value for argument"):
        override = text.split("'")[1]
        return (
            f"{override}: several values, several jobs; add -m (--multirun) to run one job for each{_QUOTES}"
        )
    return text.removeprefix("Error merging override ")
