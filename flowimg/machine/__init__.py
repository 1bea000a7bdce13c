"""The machine a job runs on: device, precision, compiling, processes, memory, throughput."""
