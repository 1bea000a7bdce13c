"""Networks of diffusers as they lie in a folder or on the hub."""

from collections.abc import Mapping
from typing import Any

from diffusers.utils import logging

from flowimg.names import on_disk


def architecture(network: Any) -> dict[str, Any]:
    """What a network is, without its weights: enough for its class's `from_config`."""
    return {name: value for name, value in network.config.items() if not name.startswith("_")}


def network_of(field: Any) -> Any:
    """The network in a field that diffusers knows."""
    return getattr(field, field.exports)


def stock_network(kind: Any, source: str, subfolder: str) -> Any:
    """A network with all its weights.

    Args:
        kind: Its class in diffusers.
        source: A folder, or an id of the hub, with the network itself or a pipeline that has it.
        subfolder: The part of a pipeline that it is.
    Raises:
        OSError: If there is no such network, in safetensors.
        ValueError: If weights are missing.
    """
    # the other format is pickle, which runs what it likes
    options: dict[str, Any] = {"use_safetensors": True, "output_loading_info": True}
    path = on_disk(source)
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)  # silence its long warnings; we raise one clear error instead
    try:
        if path.is_dir():
            inside = path / subfolder if (path / subfolder).is_dir() else path
            stock, loaded = kind.from_pretrained(str(inside), local_files_only=True, **options)
        elif source.count("/") > 1 or source.startswith(("/", ".", "~")):
            raise FileNotFoundError("there is no such folder")
        else:
            try:
                stock, loaded = kind.from_pretrained(source, **options)
            except OSError:
                stock, loaded = kind.from_pretrained(source, subfolder=subfolder, **options)
    finally:
        logging.set_verbosity(before)
    # diffusers would silently use new weights instead
    if lacking := sorted([*loaded["missing_keys"], *(entry[0] for entry in loaded["mismatched_keys"])]):
        raise ValueError(
            f"{source} is an incomplete {kind.__name__}: {len(lacking)} weights are missing, such as {lacking[0]}"
        )
    return stock


def with_changes(stock: Any, changes: Mapping[str, Any], new: str) -> Any:
    """The network with some settings changed, and its weights; those of the module `new` are new unless they fit."""
    network = type(stock).from_config(architecture(stock) | dict(changes))
    weights = stock.state_dict()
    kept = {
        name: weights[name]
        if not name.startswith(new) or (name in weights and weights[name].shape == value.shape)
        else value
        for name, value in network.state_dict().items()
    }
    network.load_state_dict(kept)
    return network
