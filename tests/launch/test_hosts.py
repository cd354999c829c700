"""How a process finds its place: explicit options, or the environment that Slurm, GKE and TPU VMs give it."""

import jax
import pytest
from jax._src.clusters import ClusterEnv, cloud_tpu_cluster

from launch import evaluate, hosts, train

SLURM = {
  "SLURM_JOB_ID": "4096",
  "SLURM_STEP_NODELIST": "gpu[003-004,009],cpu1",
  "SLURM_NTASKS": "24",
  "SLURM_PROCID": "13",
  "SLURM_LOCALID": "5",
}


@pytest.fixture
def initialised(monkeypatch):
  """Arguments that jax.distributed.initialize gets."""
  calls = []
  monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **kwargs: calls.append((args, kwargs)))
  return calls


@pytest.mark.parametrize(
  "options, message",
  [
    (dict(coordinator="a:1", process_id=0), "belong together; --process_count is missing"),
    (dict(process_count=2), "--coordinator, --process_id is missing"),
    (dict(coordinator="a", process_count=2, process_id=0), "--coordinator=a has no port"),
    (dict(coordinator="a:1", process_count=2, process_id=2), "--process_id=2 is not one of 0..1"),
    (dict(cluster="pbs"), "--cluster=pbs is not known; known: slurm, tpu, gke-tpu"),
    (dict(cluster="slurm", process_id=1), "--cluster=slurm tells every process its place; leave out"),
  ],
)
def test_mistakes_are_explained(options, message):
  with pytest.raises(ValueError, match=message):
    hosts.Hosts(**options)


def test_programs_explain_them_in_one_line(tmp_path, capsys):
  config = f"--config={hosts.__file__.replace('launch/hosts.py', 'configs/demo.py')}"
  assert train.main([config, f"--workdir={tmp_path}", "--process_count=2"]) == 1
  assert evaluate.main([f"--checkpoint={tmp_path}", "--process_count=2"]) == 1
  messages = capsys.readouterr().err.splitlines()
  assert len(messages) == 2 and all("belong together" in message for message in messages)


def test_one_process_joins_nothing(initialised):
  assert hosts.run(hosts.Hosts(), lambda: 7) == 7 and not initialised


def test_explicit_options_are_taken_as_they_are(initialised):
  """Also inside a Slurm job: the scheduler's view of the process is not mixed in."""
  place = hosts.Hosts("10.0.0.1:8476", 4, 3, heartbeat=30)
  assert hosts.run(place, lambda: 0, SLURM) == 0
  ((coordinator,), rest) = initialised.pop()
  assert coordinator == "10.0.0.1:8476" and rest == {
    "num_processes": 4,
    "process_id": 3,
    "cluster_detection_method": "deactivate",
    "heartbeat_timeout_seconds": 30,
  }


def test_a_cluster_is_asked_only_in_its_own_environment(initialised):
  with pytest.raises(ValueError, match="--cluster=slurm: the environment lacks SLURM_STEP_NODELIST.*srun"):
    hosts.join(hosts.Hosts(cluster="slurm"), {"SLURM_JOB_ID": "1"})
  with pytest.raises(ValueError, match="--cluster=gke-tpu: the environment lacks TPU_WORKER_HOSTNAMES, TPU_WORKER_ID"):
    hosts.join(hosts.Hosts(cluster="gke-tpu"), {})
  assert not initialised
  hosts.join(hosts.Hosts(cluster="slurm"), SLURM)
  assert initialised == [((), {"cluster_detection_method": "slurm", "heartbeat_timeout_seconds": 60})]


def place_in(cluster, environment, monkeypatch):
  """What JAX makes of an environment under the name that we give it: coordinator, count, number, local devices."""
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  method, _ = hosts.CLUSTERS[cluster]
  return ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, method, 1)


@pytest.mark.parametrize("nodes, first", [(SLURM["SLURM_STEP_NODELIST"], "gpu003"), ("n1,n2", "n1"), ("one", "one")])
def test_slurm(monkeypatch, nodes, first):
  found = place_in("slurm", SLURM | {"SLURM_STEP_NODELIST": nodes}, monkeypatch)
  assert found == (f"{first}:{65535 - 4095 + 4096 % 4096}", 24, 13, [5])


def test_gke_with_two_slices(monkeypatch):
  monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
  environment = {
    "TPU_WORKER_HOSTNAMES": "localhost,run-1",
    "TPU_WORKER_ID": "1",
    "MEGASCALE_COORDINATOR_ADDRESS": "localhost",
    "MEGASCALE_NUM_SLICES": "2",
    "MEGASCALE_SLICE_ID": "1",
  }
  coordinator, count, number, _ = place_in("gke-tpu", environment, monkeypatch)
  assert (coordinator, count, number) == ("localhost:8482", 4, 3)


def test_tpu_vm(monkeypatch):
  answers = {
    "agent-worker-number": "2",
    "worker-network-endpoints": "x:y:127.0.0.1,x:y:127.0.0.2,x:y:127.0.0.3",
    "tpu-env": "",
  }
  monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
  monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", lambda key: (answers[key], 200))
  monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
  coordinator, count, number, _ = place_in("tpu", {}, monkeypatch)
  assert (coordinator, count, number) == ("127.0.0.1:8482", 3, 2)
