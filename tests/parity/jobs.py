"""Composed jobs, each composed once: the tests ask for the same few again and again."""

from functools import cache

from omegaconf import DictConfig, OmegaConf

from hnseg.app import compose as compose_job


@cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    return compose_job(overrides)


def job(*overrides: str, change: str | None = None) -> DictConfig:
    """The configuration of a job; a twin's one changed value is set in a copy, as `key=value`."""
    cfg = _composed(overrides)
    return OmegaConf.merge(cfg, OmegaConf.from_dotlist([change])) if change else cfg
