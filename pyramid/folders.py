"""What all model folders share: where a name leads, and weights that fit or are refused."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn


def load_weights(module: nn.Module, weights: dict[str, Tensor], who: str) -> None:
    """Copy all weights into a module, cast to its dtypes. Raises ValueError, naming `who`, where they don't fit."""
    own = module.state_dict()
    missing, unexpected = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    shapes = [name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape]
    for what, names in (("are missing", missing), ("are unknown", unexpected), ("have another shape", shapes)):
        if names:
            raise ValueError(f"{who}: weights don't fit the config: {len(names)} {what}, the first {names[0]}")
    module.load_state_dict(weights)


def model_folder(model: str | Path) -> Path:
    """The local folder of a model: itself, or the download of a hub id such as "name/model".

    Raises FileNotFoundError if there is neither a folder with a config.json nor such a hub id within reach.
    """
    folder = Path(model)
    if (folder / "config.json").is_file():
        return folder
    if not folder.exists() and str(model).count("/") == 1:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            return Path(snapshot_download(str(model)))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise FileNotFoundError(
                f"model {model}: found no such folder, and no such model on the hub: {reason}"
            ) from None
    raise FileNotFoundError(f"model {model}: expected a folder with config.json, found none")
