"""Networks of nnU-Net's plans as settings of hnseg's."""

from __future__ import annotations

from typing import Any

from hnseg.errors import HnsegError

_KINDS = {"PlainConvUNet": "plainconv", "ResidualEncoderUNet": "resenc"}
_COUNTS = {"plainconv": ("n_conv_per_stage", "convolutions"), "resenc": ("n_blocks_per_stage", "blocks")}
# What hnseg's networks have in common, as plans spell it; all that nnU-Net's own planners write.
_FIXED: dict[str, tuple[Any, ...]] = {
    "conv_op": ("torch.nn.modules.conv.Conv3d",),
    "conv_bias": (True,),
    "norm_op": ("torch.nn.modules.instancenorm.InstanceNorm3d",),
    "norm_op_kwargs": ({"eps": 1e-5, "affine": True},),
    "dropout_op": (None,),
    "dropout_op_kwargs": (None, {}),
    "nonlin": ("torch.nn.LeakyReLU", "torch.nn.modules.activation.LeakyReLU"),
    "nonlin_kwargs": ({"inplace": True}, {}, None),
    "nonlin_first": (False,),
    "deep_supervision": (True, False),  # follows the mode here
}
_READ = ("n_stages", "features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage_decoder")


def architecture(configuration: dict[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    """hnseg's name of a plan's network, and its settings.

    Args:
        configuration: Of the plans, with what it inherits; of nnU-Net before 2.4 too, which wrote the
            network's numbers beside the others.
        where: To say in an error.

    Raises:
        HnsegError: A network that hnseg does not have.
    """
    told = configuration.get("architecture") or _older(configuration)
    name, settings = str(told["network_class_name"]).rpartition(".")[2], dict(told["arch_kwargs"])
    if name not in _KINDS:
        raise HnsegError(f"{where}: the network {name} is none of hnseg's, which are {', '.join(_KINDS)}")
    kind = _KINDS[name]
    theirs, ours = _COUNTS[kind]
    for key in sorted(settings.keys() - {*_READ, theirs}):
        if key not in _FIXED or settings[key] not in _FIXED[key]:
            wanted = f"hnseg builds it with {_FIXED[key][0]}" if key in _FIXED else "unknown to hnseg"
            raise HnsegError(f"{where}: {name} with {key}={settings[key]}; {wanted}")
    return kind, {
        "features": list(settings["features_per_stage"]),
        "strides": settings["strides"],
        "kernels": settings["kernel_sizes"],
        ours: settings[theirs],
        "decoder_convolutions": settings["n_conv_per_stage_decoder"],
    }


def _older(configuration: dict[str, Any]) -> dict[str, Any]:
    """The same from keys beside the others."""
    name, counts = configuration["UNet_class_name"], configuration["n_conv_per_stage_encoder"]
    base, most = configuration["UNet_base_num_features"], configuration["unet_max_num_features"]
    kind = _KINDS.get(name, "plainconv")  # an unknown one is refused by its name
    return {
        "network_class_name": name,
        "arch_kwargs": {
            "features_per_stage": [min(base * 2**stage, most) for stage in range(len(counts))],
            "strides": configuration["pool_op_kernel_sizes"],
            "kernel_sizes": configuration["conv_kernel_sizes"],
            _COUNTS[kind][0]: counts,
            "n_conv_per_stage_decoder": configuration["n_conv_per_stage_decoder"],
        },
    }
