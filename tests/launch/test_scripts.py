"""The scripts of launch/: checked by shellcheck, and run against stand-ins that write down how they were called."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
CLUSTER = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "NAME", "TYPE", "ZONE", "PROJECT", "IMAGE", "HOSTS", "TPU", "GPU")


@pytest.fixture
def machine(tmp_path):
  """call(script, *arguments, **environment) -> (exit status, output, calls of the stand-ins).

  `machine.stand_in(name, body)` puts a command on the PATH.
  """
  log, commands = tmp_path / "calls", tmp_path / "bin"
  commands.mkdir()
  log.touch()

  class Machine:
    folder = tmp_path

    def stand_in(self, name, body=""):
      path = commands / name
      path.write_text(f'#!/usr/bin/env bash\nprintf "%s\\n" "{name} $*" >> {log}\n{body}\n')
      path.chmod(0o755)

    def start(self, script, *arguments, **environment):
      kept = {name: value for name, value in os.environ.items() if name not in CLUSTER}
      path = f"{commands}:{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
      return subprocess.Popen(
        [LAUNCH / script, *arguments],
        env={**kept, "PATH": path, "PAUSE": "0.1", "WAIT": "0.1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
      )

    def calls(self):
      return log.read_text().splitlines()

    def __call__(self, script, *arguments, **environment):
      process = self.start(script, *arguments, **environment)
      output, _ = process.communicate(timeout=300)
      return process.returncode, output, self.calls()

  return Machine()


def counted(folder, statuses):
  """Bash that ends with the first status when it is called first, and so on."""
  return f'n=$(cat {folder}/n 2>/dev/null || echo 0); echo $((n + 1)) > {folder}/n; s=({statuses}); exit "${{s[n]}}"'


def test_there_are_scripts_for_every_place():
  assert {path.stem for path in SCRIPTS} == {"gke", "gpus", "local", "restart", "slurm", "tpu_pod"}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_shellcheck_and_head(path, machine):
  checked = subprocess.run(["shellcheck", path], capture_output=True, text=True, env=os.environ | {"PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"})  # fmt: skip # noqa: E501
  assert checked.returncode == 0, checked.stdout
  head = path.read_text().split("\nset -")[0]
  assert head.startswith("#!/usr/bin/env bash\n# ") and f"launch/{path.name}" in head
  assert os.access(path, os.X_OK)
  status, output, _ = machine(path.name)
  assert status == 2 and path.name in output


def test_restart_goes_on_after_a_crash_and_stops_at_a_mistake(machine):
  machine.stand_in("glipv2", counted(machine.folder, "70 134 75 0"))
  status, output, calls = machine("restart.sh", "glipv2", "train", "--x=a b")
  assert status == 0 and calls == ["glipv2 train --x=a b"] * 4
  assert "status 134; starting again" in output
  (machine.folder / "n").unlink()
  machine.stand_in("glipv2", counted(machine.folder, "70 1 0"))
  status, _, calls = machine("restart.sh", "glipv2")
  assert status == 1 and len(calls) == 6
  machine.stand_in("glipv2", "exit 70")
  status, output, calls = machine("restart.sh", "glipv2", RESTARTS="2")
  assert status == 70 and len(calls) == 9 and "giving up" in output


SAVES_AND_STOPS = 'trap "sleep 0.3; exit 75" TERM; touch {0}/on; while :; do sleep 0.05; done'


def wait_for(path):
  deadline = time.monotonic() + 60
  while not path.exists():
    assert time.monotonic() < deadline, path
    time.sleep(0.02)


def test_restart_hands_sigterm_on_and_waits_for_the_checkpoint(machine):
  machine.stand_in("glipv2", SAVES_AND_STOPS.format(machine.folder))
  process = machine.start("restart.sh", "glipv2")
  wait_for(machine.folder / "on")
  process.send_signal(signal.SIGTERM)
  assert process.communicate(timeout=300) and process.returncode == 75
  assert machine.calls() == ["glipv2 "]


def test_slurm_starts_one_process_per_gpu_and_requeues(machine):
  assert machine("slurm.sh", "glipv2")[0] == 2  # outside a job
  machine.stand_in("scontrol")
  machine.stand_in("srun", counted(machine.folder, "0 1 75 139"))
  job = {"SLURM_JOB_ID": "7"}
  run = "srun --kill-on-bad-exit=0 --wait=0 glipv2 train --cluster=slurm"
  assert machine("slurm.sh", "glipv2", "train", **job)[::2] == (0, [run])
  assert machine("slurm.sh", "glipv2", "train", **job)[::2] == (1, [run] * 2)
  status, _, calls = machine("slurm.sh", "glipv2", "train", **job)
  assert status == 75 and calls[2:] == [run, "scontrol requeue 7"]
  status, output, calls = machine("slurm.sh", "glipv2", "train", **job, SLURM_RESTART_COUNT="20")
  assert status == 139 and "giving up" in output and calls[4:] == [run]


def test_slurm_waits_for_the_checkpoint_after_sigterm(machine):
  machine.stand_in("scontrol")
  machine.stand_in("srun", SAVES_AND_STOPS.format(machine.folder))
  process = machine.start("slurm.sh", "glipv2", SLURM_JOB_ID="7")
  wait_for(machine.folder / "on")
  step = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
  for pid in (process.pid, *map(int, step)):  # Slurm signals the batch script and the processes
    os.kill(pid, signal.SIGTERM)
  process.communicate(timeout=300)
  assert process.returncode == 75 and machine.calls()[1:] == ["scontrol requeue 7"]


def test_gpus_of_one_machine(machine):
  machine.stand_in("nvidia-smi", "exit 9")
  status, output, _ = machine("gpus.sh", "glipv2", "train")
  assert status == 1 and "sees no GPU" in output
  machine.stand_in("nvidia-smi", "echo 0, NVIDIA H100")
  machine.stand_in("glipv2", f"echo $JAX_PLATFORMS $CUDA_VISIBLE_DEVICES > {machine.folder}/seen")
  status, output, calls = machine("gpus.sh", "glipv2", "train", GPUS="0,3")
  assert status == 0 and calls[-1] == "glipv2 train" and "NVIDIA H100" in output
  assert (machine.folder / "seen").read_text() == "cuda 0,3\n"


SLICE = {"NAME": "pod", "TYPE": "v5p-128", "ZONE": "here", "SPOT": "yes"}
STATES = 'case "$*" in *describe*) n=$(cat {0}/n 2>/dev/null || echo 0); echo $((n + 1)) > {0}/n; s=({1}); [ "${{s[n]}}" != - ] && echo "${{s[n]}}";; *ssh*restart*) exit $(cat {0}/code);; esac'  # noqa: E501


def test_tpu_pod_end_to_end(machine):
  machine.stand_in("gcloud", STATES.format(machine.folder, "- WAITING_FOR_RESOURCES ACTIVE"))
  (machine.folder / "code").write_text("0")
  status, output, calls = machine("tpu_pod.sh", "keep", "glipv2", "train", "--workdir=gs://b/x y", **SLICE)
  assert status == 0, output
  create, copy, install, run = (call for call in calls if "describe" not in call)
  assert "queued-resources create pod --node-id=pod --accelerator-type=v5p-128" in create and "--spot" in create
  assert all(call.endswith("--zone=here --quiet") for call in calls)
  assert "tpu-vm scp" in copy and "--worker=all" in copy
  assert "tpu-vm ssh pod --worker=all" in install and ".[tpu,data,eval]" in install
  assert "launch/restart.sh glipv2 train --workdir=gs://b/x\\ y --cluster=tpu" in run


def test_tpu_pod_asks_for_another_slice_when_one_is_taken_away(machine):
  states = "ACTIVE ACTIVE SUSPENDED SUSPENDED SUSPENDED - ACTIVE ACTIVE"
  machine.stand_in("gcloud", STATES.format(machine.folder, states))
  (machine.folder / "code").write_text("255")
  status, output, calls = machine("tpu_pod.sh", "keep", "glipv2", **SLICE)
  kinds = [word for call in calls for word in ("create", "delete", "restart.sh") if word in call]
  assert kinds == ["restart.sh", "delete", "create", "restart.sh"]
  assert status == 255 and "asking for another slice" in output  # the second time the slice lives: the hosts gave up


def jobset(machine, **environment):
  machine.stand_in("kubectl", f"cat > {machine.folder}/applied")
  arguments = ("glipv2", "train", '--config.data.root=/a "b"')
  status, output, _ = machine("gke.sh", "print", *arguments, NAME="run", IMAGE="i:1", **environment)
  assert status == 0, output
  assert machine("gke.sh", "apply", *arguments, NAME="run", IMAGE="i:1", **environment)[0] == 0
  assert (machine.folder / "applied").read_text() == output
  found = yaml.safe_load(output)
  assert found["kind"] == "JobSet" and found["metadata"]["name"] == "run"
  (job,) = found["spec"]["replicatedJobs"]
  return found["spec"], job, job["template"]["spec"], job["template"]["spec"]["template"]["spec"]


def test_gke_with_tpus(machine):
  spec, job, template, pod = jobset(machine, HOSTS="16", TPU="tpu-v5p-slice", TOPOLOGY="4x4x4", SLICES="2")
  assert job["replicas"] == 2 and template["parallelism"] == template["completions"] == 16
  assert template["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [1, 2]
  assert spec["failurePolicy"]["rules"] == [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}]
  assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4x4"
  (container,) = pod["containers"]
  assert container["command"] == ["glipv2", "train", '--config.data.root=/a "b"', "--cluster=gke-tpu"]
  assert container["resources"]["limits"] == {"google.com/tpu": 4} and pod["terminationGracePeriodSeconds"] == 300


def test_gke_with_gpus(machine):
  _, _, template, pod = jobset(machine, HOSTS="4", GPU="nvidia-h100-80gb")
  (container,) = pod["containers"]
  assert template["parallelism"] == 4 and container["resources"]["limits"] == {"nvidia.com/gpu": 8}
  assert container["command"][3:] == [
    "--coordinator=run-hosts-0-0.run:8476",
    "--process_count=4",
    "--process_id=$(JOB_COMPLETION_INDEX)",
  ]
  assert machine("gke.sh", "print", "glipv2", NAME="run", IMAGE="i:1", HOSTS="4")[0] == 2
