"""How the field of a run is spread over the processes of its launch, by `train.shard`."""

from accelerate import Accelerator

from flowimg.errors import SettingsError
from flowimg.machine.device import memory_bytes
from flowimg.machine.processes import PATIENCE
from flowimg.training.sharding import Sharded
from flowimg.training.strategies import DataParallel, Strategy


def strategy_of(accelerator: Accelerator, shard: int | str = 1) -> Strategy:
    """The strategy for the processes that were launched, of which `shard`, or "all", share one copy of everything.

    Raises:
        SettingsError: If they do not divide into such groups.
    """
    processes = accelerator.num_processes
    count = processes if shard == "all" else int(shard)
    if processes % count:
        launched = "1 process was" if processes == 1 else f"{processes} processes were"
        raise SettingsError(
            f"{launched} launched, which train.shard {count} does not divide: launch a multiple of {count}, or give "
            f"{'1' if processes == 1 else f'a divisor of {processes}'} or all"
        )
    if count > 1:
        return Sharded(accelerator, count, PATIENCE, memory_bytes(accelerator.device))
    return Strategy(accelerator) if processes == 1 else DataParallel(accelerator)
