"""The fast path of U-Nets in bf16 on a CPU, partly in C."""
