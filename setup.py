"""Puts conf/ and sweeps/ into the package, as hnseg/conf and hnseg/sweeps; all else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["hnseg*"]), "hnseg.conf", "hnseg.sweeps"],
    package_dir={"hnseg.conf": "conf", "hnseg.sweeps": "sweeps"},
)
