"""The script of docs/survive.md, run as it stands: on a signal it saves, requeues itself, and resumes the run."""

import os
import re
import signal
import stat
import subprocess
from pathlib import Path

import pytest
from survival import BIN, HANGING, ROOT, status, wait_for

SETTINGS = """
data: {kind: points, source: moons, held_out: 16}
field: {kind: mlp, width: 64, depth: 2}
train: {steps: 3000, batch_size: 4096, log_every: 10, sample_every: 5000, checkpoint_every: 100}
grid: {count: 4, num_steps: 1}
figures: false
"""


@pytest.mark.slow
def test_the_script_for_slurm_saves_requeues_and_goes_on(tmp_path):
    script = re.search(r"```bash\n(.*?)```", (ROOT / "docs" / "survive.md").read_text(), re.S).group(1)
    (tmp_path / "job.sh").write_text(script)
    (tmp_path / "c.yaml").write_text(SETTINGS)
    fake = tmp_path / "bin" / "scontrol"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/requeued\n')
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    run = tmp_path / "run"
    path = f"{fake.parent}:{BIN}:{os.environ['PATH']}"
    more = {"RUN": str(run), "CONFIG": str(tmp_path / "c.yaml"), "SLURM_JOB_ID": "77", "ACCELERATE_USE_CPU": "true"}

    def job():
        environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **more}
        return subprocess.Popen(["bash", tmp_path / "job.sh"], cwd=ROOT, env=environment, start_new_session=True)

    process = job()
    wait_for(lambda: status(run).get("step", 0) > 5)
    process.send_signal(signal.SIGTERM)  # what --signal=B:TERM@120 does: to the script alone
    process.wait(HANGING)
    assert status(run)["state"] == "preempted" and 0 < status(run)["saved"] == status(run)["step"] < 3000
    assert Path(tmp_path / "requeued").read_text() == "requeue 77\n"
    process = job()
    process.wait(HANGING)
    assert status(run)["state"] == "done" and status(run)["step"] == 3000
    assert Path(tmp_path / "requeued").read_text() == "requeue 77\n"  # a run that is done is not requeued
