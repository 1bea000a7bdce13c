#!/bin/sh
# What a GPU is to show, in about 15 minutes on an H100:
#
#   sh benchmarks/gpu.sh PICTURES OUT [--torchcfm CHECKOUT] [--meta CHECKOUT] [--diffusers CHECKOUT]
#
# the tests that need one; a step of the two CIFAR-10 networks beside the floor and the trainers whose checkouts are given;
# a step in CUDA graphs beside floors with one lever more at a time; 50 Euler steps. PICTURES is any set of pictures on disk.
# On a CPU it does the same but graphs, for hours; in some minutes with
# WITH="--train.batch-size 8 --field.channels 32 64 --field.layers 1 --pairs 1 --seconds 1".
set -e
pictures=$1 out=$2
shift 2
mkdir -p "$out"
data="--data.size 32 --data.resize pad --data.background 0 0 0 --data.channels rgb --data.augment 0"
python -c 'import torch, diffusers; print(torch.__version__, diffusers.__version__, torch.cuda.is_available() and torch.cuda.get_device_name())' |
	tee "$out/machine.txt"
python -m pytest -m gpu -q -p no:cacheprovider >"$out/tests.txt" 2>&1 || true
tail -n 1 "$out/tests.txt"
for config in cifar10 cifar10_large; do
	# six trainers of the large one hold their memory at once
	batch=128
	[ $config = cifar10 ] || batch=64
	# shellcheck disable=SC2086
	python benchmarks/speed.py train configs/$config.yaml --data.source "$pictures" $data --train.batch-size $batch \
		--figures false "$@" $WITH 2>"$out/$config.err" | tee "$out/$config.txt"
done
for config in cifar10 fashion_mnist; do
	# shellcheck disable=SC2086
	python benchmarks/speed.py train configs/$config.yaml --data.source "$pictures" $data --figures false --optim.kind adamw \
		--data.labels false --grid.guidance 1 \
		--train.compile graphs --levers compiled compiled+graphs compiled+graphs+layout compiled+graphs+layout+benchmark \
		$WITH 2>"$out/levers_$config.err" | tee "$out/levers_$config.txt"
done
# shellcheck disable=SC2086
python benchmarks/speed.py sample configs/cifar10.yaml --data.source "$pictures" $data $WITH 2>"$out/sample.err" |
	tee "$out/sample.txt"
