"""The Python API of `import flowimg`, loaded when it is first used.

config = flowimg.configure("configs/digits.yaml", {"run": "runs/first", "train.steps": 300})
flowimg.train(config)
run = flowimg.load("runs/first")
run.sample(16, label=3, num_steps=20).save("sixteen.png")
run.evaluate(count=500)
"""

from flowimg.jobs.python import Drawn, Run, configure
from flowimg.jobs.python import load_run as load
from flowimg.jobs.train.run import train

__all__ = ["Drawn", "Run", "configure", "load", "train"]
