"""Train one stage with one network on one fold.

    python train.py stage=fine model=resenc fold=0 data.root=PATH
    python train.py stage=fine model=resenc fold=0-4 -m data.root=PATH     five jobs
    python train.py stage=fine model=resenc --cfg job                      what would run

The same command again takes an interrupted run up where it stopped, and reports a finished one.
"""

from hnseg.app import run
from hnseg.cli.train import main

if __name__ == "__main__":
    run(main, config_name="train")
