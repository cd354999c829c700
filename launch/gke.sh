#!/usr/bin/env bash
# Training on Google Kubernetes Engine: prints (or applies) a JobSet with one pod per host.
#
#   export NAME=glipv2-b IMAGE=REGION-docker.pkg.dev/PROJECT/REPOSITORY/glipv2:1
#   TPU=tpu-v5p-slice TOPOLOGY=4x4x4 HOSTS=16 launch/gke.sh apply glipv2 train --config=configs/pretrain.py:b \
#     --workdir=gs://BUCKET/b --config.data.root=/data
#   GPU=nvidia-h100-80gb HOSTS=4 launch/gke.sh print glipv2 train ...
#
# NAME: of the JobSet. IMAGE: container with this project installed. HOSTS: pods, one per host of the slice or one per
# GPU machine. TPU, TOPOLOGY: labels of the node pool; CHIPS per host (4). GPU: accelerator label; CHIPS per host (8).
# SLICES: TPU slices (1). MEMORY: per pod, as Kubernetes writes it (64Gi), RESTARTS: of the whole JobSet (20).
# The cluster needs the JobSet controller (jobset.sigs.k8s.io).
# The forms of layers for TPUs and GPUs: see "What a pod will need" in README.md.
#
# A pod that is evicted gets SIGTERM and 5 minutes: all pods save and end with 75, the JobSet starts them again and they
# go on. Exit statuses 1 and 2 (launch/hosts.py) end the JobSet, they would repeat.
set -eu

usage() {
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2
  exit 2
}

[ $# -ge 2 ] || usage
action=$1
shift
for needed in NAME IMAGE HOSTS; do
  if [ -z "${!needed:-}" ]; then
    echo "gke.sh: set $needed; launch/gke.sh without arguments explains" >&2
    exit 2
  fi
done

if [ -n "${TPU:-}" ]; then
  : "${TOPOLOGY:?gke.sh: TPU needs TOPOLOGY, such as 4x4x4}"
  selector="cloud.google.com/gke-tpu-accelerator: $TPU
                cloud.google.com/gke-tpu-topology: $TOPOLOGY"
  resource="google.com/tpu: ${CHIPS:-4}"
  platform=tpu,cpu
  place=(--cluster=gke-tpu)
elif [ -n "${GPU:-}" ]; then
  selector="cloud.google.com/gke-accelerator: $GPU"
  resource="nvidia.com/gpu: ${CHIPS:-8}"
  platform=cuda
  # The first pod has a name in the JobSet's network; Kubernetes puts in the pod's own number.
  # shellcheck disable=SC2016
  place=(--coordinator="$NAME-hosts-0-0.$NAME:8476" --process_count="$HOSTS" --process_id='$(JOB_COMPLETION_INDEX)')
else
  echo "gke.sh: set TPU and TOPOLOGY, or GPU" >&2
  exit 2
fi

quoted() { # as YAML strings in double quotes, one per line
  local word
  for word in "$@"; do
    word=${word//\\/\\\\}
    printf '                - "%s"\n' "${word//\"/\\\"}"
  done
}

manifest() {
  cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $NAME
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: ${RESTARTS:-20}
    rules:
    - action: FailJobSet
      onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
  - name: hosts
    replicas: ${SLICES:-1}
    template:
      spec:
        parallelism: $HOSTS
        completions: $HOSTS
        completionMode: Indexed
        backoffLimit: 0
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes: {containerName: train, operator: In, values: [1, 2]}
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: 300
            hostNetwork: true
            dnsPolicy: ClusterFirstWithHostNet
            nodeSelector:
                $selector
            containers:
            - name: train
              image: $IMAGE
              command:
$(quoted "$@" "${place[@]}")
              env:
              - {name: JAX_PLATFORMS, value: "$platform"}
              - {name: PYTHONUNBUFFERED, value: "1"}
              ports:
              - containerPort: 8476
              resources:
                requests: {memory: "${MEMORY:-64Gi}"}
                limits: {$resource}
YAML
}

case $action in
  print) manifest "$@" ;;
  apply) manifest "$@" | kubectl apply -f - ;;
  *) usage ;;
esac
