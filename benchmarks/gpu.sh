#!/bin/sh
# What a GPU is to show:
#
#   sh benchmarks/gpu.sh PICTURES OUT [--torchcfm CHECKOUT] [--meta CHECKOUT] [--diffusers CHECKOUT]
#
# a step of the two CIFAR-10 networks, in CUDA graphs (the small one also without), beside the floor, the trainers whose
# checkouts are given and floors with one lever more at a time; the tests that need a GPU; 50 Euler steps. PICTURES is any
# set of pictures on disk. What matters most comes first, and each table is printed when it is there; rows that are missing
# are named, and why is in OUT/NAME.err. Ends with 1 if anything failed. Needs flowimg with what its tests need
# (pip install -e '.[dev]'), for torchcfm absl-py, for Meta torchmetrics. A CPU has no graphs, and takes hours; some minutes with
# WITH="--train.batch-size 8 --field.channels 32 64 --field.layers 1 --pairs 1 --seconds 1".
if [ $# -lt 2 ]; then
	echo "usage: sh benchmarks/gpu.sh PICTURES OUT [--torchcfm CHECKOUT] [--meta CHECKOUT] [--diffusers CHECKOUT]" >&2
	exit 2
fi
pictures=$1 out=$2 failed=0
shift 2
mkdir -p "$out" || exit 1
data="--data.size 32 --data.resize pad --data.background 0 0 0 --data.channels rgb --data.augment 0"
turns="--pairs 5 --seconds 1 --figures false"

run() { # NAME COMMAND ...
	name=$1
	shift
	if ! "$@" >"$out/$name.txt" 2>"$out/$name.err"; then
		failed=1
		echo "$name failed: $(tail -n 3 "$out/$name.err")"
	fi
	tail -n 40 "$out/$name.txt"
}

run machine python -c 'import torch, diffusers; print(torch.__version__, diffusers.__version__, torch.cuda.is_available() and torch.cuda.get_device_name())'
# shellcheck disable=SC2086
run cifar10 python benchmarks/speed.py train configs/cifar10.yaml --data.source "$pictures" $data $turns \
	--compile true --levers compiled+graphs compiled+graphs+layout "$@" $WITH
run tests python -m pytest -m gpu -q -n 6 -p no:cacheprovider
# all trainers hold their memory at once: of the large network, for the half of the batch
# shellcheck disable=SC2086
run cifar10_large python benchmarks/speed.py train configs/cifar10_large.yaml --data.source "$pictures" $data $turns \
	--train.batch-size 64 --levers compiled+graphs+layout "$@" $WITH
# shellcheck disable=SC2086
run sample python benchmarks/speed.py sample configs/cifar10.yaml --data.source "$pictures" $data --pairs 5 $WITH
# shellcheck disable=SC2086
run fashion_mnist python benchmarks/speed.py train configs/fashion_mnist.yaml --data.source "$pictures" $data $turns \
	--optim.kind adamw --data.labels false --grid.guidance 1 --levers compiled+graphs compiled+graphs+layout $WITH
exit $failed
