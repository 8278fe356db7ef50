"""Muon beside AdamW, as one optimizer and as an option of trainers."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers.trainer import OPTIMIZER_NAME
from transformers.training_args import OptimizerNames

from ..operations import layers_of, projectors_of


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon on matrices, AdamW on all other parameters.

    A step of Muon is the momentum of a matrix with all its singular values brought near one (`torch.optim.Muon`), so that directions that few
    examples ask for move as far as common ones. It is scaled to the size of AdamW's steps (arXiv 2502.16982, section 2.2): learning rate
    and weight decay mean the same to both. But matrices bear larger learning rates by Muon than by AdamW, by which projectors grow. Muon
    keeps one moment of a parameter, AdamW two. A matrix whose gradient stays zero still moves by its momentum, in steps that do not shrink.

    Every group has `optimizer`, "muon" or "adamw".

    Args:
        matrices: parameters (rows, columns) that Muon moves.
        others: all others, in the form that AdamW takes.
        lr: learning rate of AdamW, and of Muon where it has none of its own.
        muon_lr: learning rate of Muon.
        weight_decay: of matrices; that of the others stands in their groups.
        adamw: AdamW's class.
        options: what else AdamW is given, such as `betas`.

    Raises:
        ValueError: a parameter for Muon that has not two dimensions.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        lr: float,
        muon_lr: float | None = None,
        weight_decay: float,
        adamw: type[torch.optim.AdamW] = torch.optim.AdamW,
        **options: Any,
    ):
        self._parts = {
            "muon": torch.optim.Muon(matrices, lr if muon_lr is None else muon_lr, weight_decay, adjust_lr_fn="match_rms_adamw"),
            "adamw": adamw(others, lr, **options),
        }
        groups = [{**group, "optimizer": name} for name, part in self._parts.items() for group in part.param_groups]
        super().__init__(groups, {})

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_parts": self._parts}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch.

        Raises:
            ValueError: a group that does not say whose it is.
        """
        name = param_group.get("optimizer")
        if name not in self._parts:
            raise ValueError(f"A group's `optimizer` must be one of {', '.join(map(repr, self._parts))}, got {name!r}.")
        super().add_param_group({**self._parts[name].defaults, **param_group})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch.

        Raises:
            ValueError: the state of another optimizer.
        """
        if not _is_muons(state_dict):
            raise ValueError("This state is of training without Muon: leave out `muon` to resume, or start anew.")
        super().load_state_dict(state_dict)

    def step(self, closure=None):
        """One step of both; `closure`, where given, is called once before."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for name, part in self._parts.items():  # anew in each step, since loading replaces groups and state
            part.param_groups, part.state = [group for group in self.param_groups if group["optimizer"] == name], self.state
            part.step()
        return loss


def _is_muons(state_dict: dict[str, Any]) -> bool:
    return any(group.get("optimizer") == "muon" for group in state_dict["param_groups"])


def check_checkpoint(folder: str | Path, muon: bool) -> None:
    """Refuses a checkpoint whose optimizer is not the one that is to continue.

    Raises:
        ValueError: it was trained with `muon` and is to continue without, or the other way round.
    """
    file = Path(folder) / OPTIMIZER_NAME
    if not file.is_file():  # as of sharded training, which has no Muon
        return
    if (had := _is_muons(torch.load(file, map_location="meta", weights_only=True))) is not muon:
        told, todo = ("with", "give `muon: true`") if had else ("without", "leave it out")
        raise ValueError(f"{folder} was trained {told} `muon`: {todo} to resume, or start in another folder.")


class MuonOption:
    """Lets a trainer of Transformers train by [`MuonWithAdamW`], where `muon` says so; before the trainer among the bases.

    `muon` and `muon_learning_rate` are those of the training's arguments, where these have them. Without a learning rate of its own, Muon has
    AdamW's. A schedule scales both.

    Raises:
        ValueError: `muon` with another optimizer, or with weights that are sharded.
    """

    muon: bool = False
    muon_learning_rate: float | None = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.muon = getattr(self.args, "muon", self.muon)
        self.muon_learning_rate = getattr(self.args, "muon_learning_rate", self.muon_learning_rate)
        if not self.muon:
            return
        if self.optimizer is not None or self.optimizer_cls_and_kwargs is not None:
            raise ValueError("`muon` makes the optimizer: leave it out, or the optimizer that you give.")
        if (name := OptimizerNames(self.args.optim).value) not in ("adamw_torch", "adamw_torch_fused"):
            raise ValueError(f"`muon` stands beside torch's AdamW, not beside optim={name!r}: leave out one of them.")
        if self.is_fsdp_enabled or self.is_deepspeed_enabled or any(isinstance(p, DTensor) for p in self.model.parameters()):
            raise ValueError(
                "`muon` needs whole matrices, which FSDP, DeepSpeed and tensor parallelism spread: leave it out, or train with DDP."
            )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As in `Trainer`.

        Raises:
            ValueError: no matrix to train.
        """
        if self.optimizer is not None or not self.muon:
            return super().create_optimizer(model)
        model = self.model if model is None else model
        adamw, options = self.get_optimizer_cls_and_kwargs(self.args, model)
        decaying, matrices = set(self.get_decay_parameter_names(model)), trained_matrices(model)
        if not matrices:
            raise ValueError("`muon` found no linear layer to train inside the layers of the model: leave it out.")
        known = set(map(id, matrices))
        others = [(name, p) for name, p in model.named_parameters() if p.requires_grad and id(p) not in known]
        groups = [
            {"params": [p for name, p in others if (name in decaying) is decays], "weight_decay": self.args.weight_decay if decays else 0.0}
            for decays in (True, False)
        ]
        settings = {"muon_lr": self.muon_learning_rate, "weight_decay": self.args.weight_decay, "adamw": adamw}
        self.optimizer = MuonWithAdamW(matrices, groups, **settings, **options)
        return self.optimizer


def trained_matrices(model: nn.Module) -> list[nn.Parameter]:
    """What Muon trains: weights of linear layers, those of adapters among them, inside projectors and the layers of all parts of a model."""
    linears = [part.weight for place in (*layers_of(model), *projectors_of(model)) for part in place.modules() if isinstance(part, nn.Linear)]
    return list({id(weight): weight for weight in linears if weight.requires_grad}.values())


__all__ = ["MuonOption", "MuonWithAdamW", "check_checkpoint", "trained_matrices"]
